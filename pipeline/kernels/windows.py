"""Attention within overlapping windows of neighbouring frames, which share their projections.

For frame t at place j of a window, attention reads LN(x_t + p_j) W + b. The mean that LN subtracts
is linear in its input and the deviation that it divides by is a scalar, so

    LN(x_t + p_j) W + b = s_tj (A_t + P_j) + c

where A_t and P_j are projected once per frame and once per place, not once per window.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.kernels import Impl, runs_triton

EPS = 1e-5  # of torch's layer norm
TOGETHER = 32  # windows that share one product of all their frames


class Factors(NamedTuple):
    """Queries, keys and values [.., 3D] of frame t at place j: scale_tj (frame_t + place_j) + bias.

    Window n contains frames n * stride .. n * stride + w - 1.
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

    s_tj = ((|x_t|² + 2 x_t·p_j + |p_j|²) / D + eps)^-1/2, with the means of x and p subtracted.
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
    """Output of attention at every place of every window: [R, B, N, w, D].

    softmax(q k^T / sqrt(D / heads)) v within each window and head. ``heads`` divides D.
    """
    if runs_triton(impl, factors.frames_RBTE):
        from pipeline.kernels.windows_triton import WindowAttention

        return WindowAttention.apply(*factors, stride, heads)
    return _definition(factors, stride, heads)


def _definition(factors: Factors, stride: int, heads: int) -> Tensor:
    """Some windows after the other, so that the cost is linear in T."""
    T, w = factors.frames_RBTE.shape[2], factors.places_RwE.shape[1]
    N, parts = (T - w) // stride + 1, []
    for n in range(0, N, TOGETHER):
        of = slice(n * stride, (min(n + TOGETHER, N) - 1) * stride + w)
        frames_RBTE, scale_RBTw = factors.frames_RBTE[:, :, of], factors.scale_RBTw[:, :, of]
        part = factors._replace(frames_RBTE=frames_RBTE, scale_RBTw=scale_RBTw)
        parts.append(_together(part, stride, heads))
    return torch.cat(parts, 2)


def _together(factors: Factors, stride: int, heads: int) -> Tensor:
    """Computed from products of frames and places, rather than of copies of them per window.

    With L = T + w rows [A; P], the score of places i and j of window n is

        s_i s_j (A_t + P_i)·(A_u + P_j) + s_j c·(A_u + P_j),  t = n stride + i, u = n stride + j,

    a sum of entries of one product [A; P; c] [A; P]^T. The keys' bias adds a constant to all scores
    of a query, which softmax ignores; the values' bias is added to the output unchanged.
    """
    frames_RBTE, places_RwE, scale_RBTw, bias_RE = factors
    R, B, T, E = frames_RBTE.shape
    w, size = places_RwE.shape[1], E // 3 // heads
    frame_Nw, place_w = _places(T, w, stride, frames_RBTE.device)
    N, L = len(frame_Nw), T + w
    every_w = T + place_w.expand(N, w)  # rows of P, for each window
    # Indices into a table [N w, L] of what place i of window n takes from frame u and from place j.
    row_Nw1 = L * torch.arange(N * w, device=frame_Nw.device).view(N, w, 1)
    from_frame = (row_Nw1 + frame_Nw[:, None]).flatten()
    from_place = (row_Nw1 + every_w[:, None]).flatten()

    constants = [places_RwE, bias_RE[:, None]]
    rows = [x[:, None].expand(-1, B, -1, -1) for x in constants]
    all_RBME = torch.cat([frames_RBTE, *rows], 2)  # [A; P; c], with the biases of all three
    q, k, v = all_RBME.view(R, B, L + 1, 3, heads, size).permute(3, 0, 1, 4, 2, 5)
    products = (q * size**-0.5) @ k[..., :L, :].transpose(-1, -2)  # [R, B, H, L + 1, L]
    scale_RBNw = scale_RBTw.flatten(2)[..., (frame_Nw * w + place_w).flatten()]
    scale_i, scale_j = scale_RBNw[:, :, None, :, None], scale_RBNw.view(R, B, 1, N, 1, w)

    of_query = products.index_select(3, frame_Nw.flatten())
    of_query = of_query + products.index_select(3, every_w.flatten())
    table = torch.addcmul(products[..., L:, :], of_query, scale_i).flatten(3)  # [R, B, H, N w L]
    scores = table.index_select(3, from_frame) + table.index_select(3, from_place)
    weights = (scores.view(R, B, heads, N, w, w) * scale_j).softmax(-1) * scale_j

    shares = torch.zeros_like(table).index_copy(3, from_frame, weights.flatten(3))
    shares = shares.index_copy(3, from_place, weights.flatten(3)).view(R, B, heads, N * w, L)
    mixed = shares @ v[..., :L, :] + v[..., L:, :]
    return mixed.transpose(2, 3).reshape(R, B, N, w, E // 3)


def _places(T: int, w: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(frame at every place of every window [N, w], places [w])."""
    place_w = torch.arange(w, device=device)
    start_N1 = torch.arange(0, T - w + 1, stride, device=device)[:, None]
    return start_N1 + place_w, place_w
