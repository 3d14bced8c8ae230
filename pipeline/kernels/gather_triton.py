"""GPU kernel of ``gather``, which gather.py defines."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def gathered(
    features_NVTD: Tensor, video_RB: Tensor, view_RB: Tensor, dtype: torch.dtype
) -> Tensor:
    """features[video, view] as ``dtype``, [R, B, T, D]."""
    (N, V, T, D), (R, B) = features_NVTD.shape, video_RB.shape
    out = features_NVTD.new_empty(R, B, T, D, dtype=dtype)
    index = video_RB.contiguous(), view_RB.contiguous()
    grid = R * B, triton.cdiv(T * D, BLOCK)
    strides = features_NVTD.stride()
    with torch.cuda.device_of(out):
        _gather[grid](features_NVTD, *index, out, *strides, N, V, T * D, D, BLOCK)
    return out


@triton.jit
def _gather(
    features_ptr,
    video_ptr,
    view_ptr,
    out_ptr,
    stride_N,
    stride_V,
    stride_T,
    stride_D,
    N,
    V,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: BLOCK numbers of one video in one view.
    place = tl.program_id(0).to(tl.int64)
    video = tl.load(video_ptr + place).to(tl.int64)
    view = tl.load(view_ptr + place).to(tl.int64)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    features_ptr += video * stride_N + view * stride_V
    features_ptr += number // D * stride_T + number % D * stride_D
    exists = (video >= 0) & (video < N) & (view >= 0) & (view < V)
    values = tl.load(features_ptr, number < tl.where(exists, SIZE, 0), other=float("nan"))
    out_ptr += place * SIZE + number
    tl.store(out_ptr, values.to(out_ptr.dtype.element_ty), number < SIZE)
