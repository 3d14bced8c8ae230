"""GPU kernels of attention within windows, which windows.py defines, forward and backward."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


class WindowAttention(torch.autograd.Function):
    """``window_attention`` of the four ``Factors``, the stride and the number of heads."""

    @staticmethod
    def forward(
        ctx: Any,
        frames_RBTE: Tensor,
        places_RwE: Tensor,
        scale_RBTw: Tensor,
        bias_RE: Tensor,
        stride: int,
        heads: int,
    ) -> Tensor:
        factors = [x.contiguous() for x in (frames_RBTE, places_RwE, scale_RBTw, bias_RE)]
        ctx.save_for_backward(*factors)
        ctx.stride, ctx.heads = stride, heads
        sizes = _sizes(frames_RBTE, places_RwE, stride, heads)
        R, B, _, E = frames_RBTE.shape
        out = frames_RBTE.new_empty(R, B, sizes["N"], sizes["W"], E // 3)
        groups = triton.cdiv(sizes["N"], sizes["M"] // sizes["W"])
        with torch.cuda.device_of(out):
            _forward[R * B, heads, groups](*factors, out, B, **sizes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        frames, places, scale, bias = ctx.saved_tensors
        sizes = _sizes(frames, places, ctx.stride, ctx.heads)
        (R, B, T, E), w = frames.shape, sizes["W"]
        blocks = triton.cdiv(T, sizes["F"])
        grad_frames = torch.empty_like(frames)
        # Sums over videos and heads: each program writes its part, added here in a fixed order.
        places_and_bias = frames.new_empty(R, B * blocks, w + 1, E, dtype=torch.float32)
        # Zero where no window has frame t at place j.
        grad_scale = frames.new_zeros(R, B, ctx.heads, T, w, dtype=torch.float32)
        inputs = (frames, places, scale, bias, grad_out.contiguous())
        outputs = (grad_frames, places_and_bias, grad_scale)
        # Prefetching windows would cost registers and shared memory, and there are few windows.
        with torch.cuda.device_of(frames):
            _backward[R * B, ctx.heads, blocks](*inputs, *outputs, B, **sizes, num_stages=1)
        summed = places_and_bias.sum(1)
        return (
            grad_frames,
            summed[:, :w].to(places.dtype),
            grad_scale.sum(2).to(scale.dtype),
            summed[:, w].to(bias.dtype),
            None,
            None,
        )


def _sizes(frames_RBTE: Tensor, places_RwE: Tensor, stride: int, heads: int) -> dict[str, int]:
    """Sizes that the kernels are compiled for; a dot needs tiles of a power of two, at least 16."""
    (T, E), w = frames_RBTE.shape[2:], places_RwE.shape[1]
    return {
        "T": T,
        "N": (T - w) // stride + 1,
        "W": w,
        "STRIDE": stride,
        "D": E // 3,
        "SIZE": E // 3 // heads,
        "SIZE_TILE": max(16, triton.next_power_of_2(E // 3 // heads)),
        "M": max(16, triton.next_power_of_2(w)),  # tokens in a tile: those of M // W windows
        "F": max(16, triton.next_power_of_2(w + 1)),  # frames of one program of the backward
    }


@triton.jit
def _forward(
    frames_ptr,
    places_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    B,
    T: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    M: tl.constexpr,
    F: tl.constexpr,
):
    # One program: one head of M // W neighbouring windows of one video.
    video, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    group, place = tl.arange(0, M) // W, tl.arange(0, M) % W
    column = head * SIZE + tl.arange(0, SIZE_TILE)[None, :]
    inside = column < (head + 1) * SIZE
    window = tl.program_id(2) * (M // W) + group
    valid = (group < M // W) & (window < N)
    mask = valid[:, None] & inside
    frame = video * T + window * STRIDE + place
    scale = tl.load(scale_ptr + frame * W + place, valid, other=0.0).to(tl.float32)
    frames_ptr += frame[:, None] * 3 * D + column
    places_ptr += (video // B * W + place)[:, None] * 3 * D + column
    bias_ptr += video // B * 3 * D + column

    _, q = _read(frames_ptr, places_ptr, bias_ptr, scale, inside, mask)
    _, k = _read(frames_ptr + D, places_ptr + D, bias_ptr + D, scale, inside, mask)
    _, v = _read(frames_ptr + 2 * D, places_ptr + 2 * D, bias_ptr + 2 * D, scale, inside, mask)
    mixed = tl.dot(_attend(q, k, group, SIZE), v, input_precision="ieee")
    out_ptr += ((video * N + window) * W + place)[:, None] * D + column
    tl.store(out_ptr, mixed.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _backward(
    frames_ptr,
    places_ptr,
    scale_ptr,
    bias_ptr,
    grad_out_ptr,
    grad_frames_ptr,
    places_and_bias_ptr,
    grad_scale_ptr,
    B,
    T: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    M: tl.constexpr,
    F: tl.constexpr,
):
    # One program: one head of F neighbouring frames of one video, in all windows that contain them.
    video, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    group, place = tl.arange(0, M) // W, tl.arange(0, M) % W
    column = head * SIZE + tl.arange(0, SIZE_TILE)[None, :]
    inside = column < (head + 1) * SIZE
    places_ptr += (video // B * W + place)[:, None] * 3 * D + column
    bias_ptr += video // B * 3 * D + column
    grad_scale_ptr += (video * tl.num_programs(1) + head) * T * W
    # Rows of the sums: F frames, W places, the bias.
    row = tl.arange(0, 2 * F)[:, None]
    sum_q = tl.zeros([2 * F, SIZE_TILE], tl.float32)
    sum_k = tl.zeros([2 * F, SIZE_TILE], tl.float32)
    sum_v = tl.zeros([2 * F, SIZE_TILE], tl.float32)

    begin = block * F
    first = (tl.maximum(begin - W + 1, 0) + STRIDE - 1) // STRIDE
    last = tl.minimum((begin + F - 1) // STRIDE, N - 1)
    for start in range(first, last + 1, M // W):
        window = start + group
        valid = (group < M // W) & (window <= last)
        mask = valid[:, None] & inside
        frame = window * STRIDE + place
        scale = tl.load(scale_ptr + (video * T + frame) * W + place, valid, other=0.0)
        scale = scale.to(tl.float32)
        a_ptr = frames_ptr + (video * T + frame)[:, None] * 3 * D + column
        plain_q, q = _read(a_ptr, places_ptr, bias_ptr, scale, inside, mask)
        plain_k, k = _read(a_ptr + D, places_ptr + D, bias_ptr + D, scale, inside, mask)
        plain_v, v = _read(a_ptr + 2 * D, places_ptr + 2 * D, bias_ptr + 2 * D, scale, inside, mask)
        grad_ptr = grad_out_ptr + ((video * N + window) * W + place)[:, None] * D + column
        grad = tl.load(grad_ptr, mask, other=0.0).to(tl.float32)

        shares = _attend(q, k, group, SIZE)
        grad_shares = tl.dot(grad, tl.trans(v), input_precision="ieee")
        grad_scores = shares * (grad_shares - tl.sum(shares * grad_shares, 1)[:, None])
        grad_scores *= SIZE**-0.5
        grad_q = tl.dot(grad_scores, k, input_precision="ieee")
        grad_k = tl.dot(tl.trans(grad_scores), q, input_precision="ieee")
        grad_v = tl.dot(tl.trans(shares), grad, input_precision="ieee")

        # A window at the border reaches into another program's frames; each frame counts once.
        own = valid & (frame >= begin) & (frame < begin + F)
        grad_scale = tl.sum(plain_q * grad_q + plain_k * grad_k + plain_v * grad_v, 1)
        tl.store(grad_scale_ptr + frame * W + place, grad_scale, own)
        belongs = (row == (frame - begin)[None, :]) | (row == (F + place)[None, :])
        weight = tl.where(belongs, scale[None, :], tl.where(row == F + W, 1.0, 0.0))
        weight = tl.where(own[None, :], weight, 0.0)
        sum_q += tl.dot(weight, grad_q, input_precision="ieee")
        sum_k += tl.dot(weight, grad_k, input_precision="ieee")
        sum_v += tl.dot(weight, grad_v, input_precision="ieee")

    mask = inside & (row < F) & (begin + row < T)
    grad_frames_ptr += (video * T + begin + row) * 3 * D + column
    dtype = grad_frames_ptr.dtype.element_ty
    tl.store(grad_frames_ptr, sum_q.to(dtype), mask)
    tl.store(grad_frames_ptr + D, sum_k.to(dtype), mask)
    tl.store(grad_frames_ptr + 2 * D, sum_v.to(dtype), mask)
    mask = inside & (row >= F) & (row <= F + W)
    part = video * tl.num_programs(2) + block
    places_and_bias_ptr += (part * (W + 1) + row - F) * 3 * D + column
    tl.store(places_and_bias_ptr, sum_q, mask)
    tl.store(places_and_bias_ptr + D, sum_k, mask)
    tl.store(places_and_bias_ptr + 2 * D, sum_v, mask)


@triton.jit
def _read(frames_ptr, places_ptr, bias_ptr, scale, inside, mask):
    # Queries, keys or values of M tokens, [M, SIZE_TILE]: frame + place, raw and scaled with bias.
    frame = tl.load(frames_ptr, mask, other=0.0).to(tl.float32)
    plain = frame + tl.load(places_ptr, mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr, inside, other=0.0).to(tl.float32)
    return plain, plain * scale[:, None] + bias


@triton.jit
def _attend(q, k, group, SIZE: tl.constexpr):
    # [M, M]: how each token attends to the tokens of its own window.
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SIZE**-0.5
    scores = tl.where(group[:, None] == group[None, :], scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    return shares / tl.sum(shares, 1)[:, None]
