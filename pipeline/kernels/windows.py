"""Attention inside overlapping windows of neighbouring frames, which share their projections.

Frame t stands at place j of a window, and attention reads LN(x_t + p_j) W + b. The mean that LN
subtracts is linear and the deviation that it divides by is a scalar, so that

    LN(x_t + p_j) W + b = s_tj (A_t + P_j) + c

with A of every frame and P of every place projected once, where windows would project each frame
as often as they overlap.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.kernels import Impl, runs_triton

EPS = 1e-5  # of torch's layer norm


class Factors(NamedTuple):
    """Queries, keys and values [.., 3D] of frame t at place j: scale_tj (frame_t + place_j) + bias.

    Window n holds frames n * stride .. n * stride + w - 1.
    """

    frames_RBTE: Tensor
    places_RwE: Tensor
    scale_RBTw: Tensor
    bias_RE: Tensor


def projected_factors(
    frames_RBTD: Tensor, places_RwD: Tensor, weight_RDE: Tensor, bias_RE: Tensor
) -> Factors:
    """Factors of (x_t + p_j) W + b."""
    R, B, T, D = frames_RBTD.shape
    return Factors(
        torch.bmm(frames_RBTD.reshape(R, B * T, D), weight_RDE).view(R, B, T, -1),
        torch.bmm(places_RwD, weight_RDE),
        frames_RBTD.new_ones(R, B, T, places_RwD.shape[1]),
        bias_RE,
    )


def normalised_factors(
    frames_RBTD: Tensor,
    places_RwD: Tensor,
    gain_RD: Tensor,
    shift_RD: Tensor,
    weight_RDE: Tensor,
    bias_RE: Tensor,
) -> Factors:
    """Factors of LN(x_t + p_j) W + b, where LN has ``gain`` and ``shift``.

    s_tj = ((|x_t|² + 2 x_t·p_j + |p_j|²) / D + eps)^-1/2, of x and p less their means.
    """
    x_RBTD = frames_RBTD - frames_RBTD.mean(-1, keepdim=True)
    p_RwD = places_RwD - places_RwD.mean(-1, keepdim=True)
    products_RBTw = torch.matmul(x_RBTD, p_RwD.transpose(1, 2)[:, None])
    squares_RBTw = x_RBTD.square().sum(-1, keepdim=True) + p_RwD.square().sum(-1)[:, None, None]
    variance_RBTw = (squares_RBTw + 2 * products_RBTw) / x_RBTD.shape[-1]
    constant_RE = torch.baddbmm(bias_RE[:, None], shift_RD[:, None], weight_RDE)[:, 0]
    factors = projected_factors(x_RBTD, p_RwD, gain_RD[:, :, None] * weight_RDE, constant_RE)
    return factors._replace(scale_RBTw=(variance_RBTw + EPS).rsqrt())


def window_attention(factors: Factors, stride: int, heads: int, impl: Impl = "auto") -> Tensor:
    """What attention gives every place of every window: [R, B, N, w, D].

    softmax(q k^T / sqrt(D / heads)) v inside each window and head. ``heads`` divides D.
    """
    if runs_triton(impl, factors.frames_RBTE):
        from pipeline.kernels.windows_triton import WindowAttention

        return WindowAttention.apply(*factors, stride, heads)
    return _definition(*factors, stride, heads)


def _definition(
    frames_RBTE: Tensor,
    places_RwE: Tensor,
    scale_RBTw: Tensor,
    bias_RE: Tensor,
    stride: int,
    heads: int,
) -> Tensor:
    R, B, _, E = frames_RBTE.shape
    w, size = places_RwE.shape[1], E // 3 // heads
    windows_RBNwE = frames_RBTE.unfold(2, w, stride).transpose(-1, -2) + places_RwE[:, None, None]
    tokens = windows_RBNwE.flatten(1, 2).unflatten(-1, (3, heads, size))
    q, k, v = tokens.permute(3, 0, 1, 4, 2, 5)  # each [R, B*N, H, w, D/H]
    scale_RN1w = scale_RBTw.unfold(2, w, stride).diagonal(dim1=-2, dim2=-1).reshape(R, -1, 1, w)
    # Scores hold fewer numbers than keys and values: s_j scales them instead. The bias of values
    # comes through as it is, sum_j a_ij (s_j v_j + c) = sum_j a_ij s_j v_j + c, and that of keys
    # adds the same to all scores of a query, which softmax does not see.
    bias_q, _, bias_v = bias_RE.reshape(R, 1, 3, heads, 1, size).unbind(2)
    q = torch.addcmul(bias_q, q, scale_RN1w[..., None])
    scores = (q @ k.transpose(-1, -2)) * (scale_RN1w * size**-0.5)[:, :, :, None]
    mixed = (scores.softmax(-1) * scale_RN1w[:, :, :, None]) @ v + bias_v
    return mixed.transpose(2, 3).reshape(R, B, -1, w, E // 3)
