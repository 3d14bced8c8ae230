"""Layers whose parameters have a leading run axis: [R, ..., in] -> [R, ..., out].

Run r of a stack computes what it would compute alone. Its initial weights are drawn from its own
generator, so they do not depend on how many runs are stacked.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.kernels.windows import Factors, normalised_factors, projected_factors


def per_run(generators: Sequence[Generator], draw: Callable[[Generator], Tensor]) -> nn.Parameter:
    """One parameter [R, ...] from one draw per run."""
    return nn.Parameter(torch.stack([draw(generator) for generator in generators]))


def normal(*shape: int, std: float) -> Callable[[Generator], Tensor]:
    """Draws N(0, std²) of ``shape``."""
    return lambda generator: torch.randn(shape, generator=generator) * std


def uniform(*shape: int, bound: float) -> Callable[[Generator], Tensor]:
    """Draws U(-bound, bound) of ``shape``."""
    return lambda generator: (torch.rand(shape, generator=generator) * 2 - 1) * bound


class Linear(nn.Module):
    """y_r = x_r W_r + b_r, initialised by U(±bound): as in torch.nn.Linear, 1/sqrt(inputs)."""

    def __init__(
        self,
        generators: Sequence[Generator],
        inputs: int,
        outputs: int,
        bound: float | None = None,
    ) -> None:
        super().__init__()
        bound = bound or inputs**-0.5
        self.weight_RIO = per_run(generators, uniform(inputs, outputs, bound=bound))
        self.bias_RO = per_run(generators, uniform(outputs, bound=bound))

    def set_zero(self, run: int) -> None:
        """Let a run begin with y = 0."""
        self.weight_RIO.data[run] = 0
        self.bias_RO.data[run] = 0

    def forward(self, x: Tensor) -> Tensor:
        runs, inputs, outputs = self.weight_RIO.shape
        flat = x.reshape(runs, -1, inputs)
        y = torch.baddbmm(self.bias_RO[:, None], flat, self.weight_RIO)
        return y.view(*x.shape[:-1], outputs)


class Product(nn.Module):
    """y_r = x_r W_r, initialised as in torch.nn.Linear."""

    def __init__(self, generators: Sequence[Generator], inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_RIO = per_run(generators, uniform(inputs, outputs, bound=inputs**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        runs, inputs, outputs = self.weight_RIO.shape
        y = torch.bmm(x.reshape(runs, -1, inputs), self.weight_RIO)
        return y.view(*x.shape[:-1], outputs)


class LayerNorm(nn.Module):
    """Normalise the last axis, then scale and shift by each run's own weights."""

    def __init__(self, generators: Sequence[Generator], size: int) -> None:
        super().__init__()
        self.weight_RD = nn.Parameter(torch.ones(len(generators), size))
        self.bias_RD = nn.Parameter(torch.zeros(len(generators), size))

    def forward(self, x: Tensor) -> Tensor:
        runs, size = self.weight_RD.shape
        shape = (runs, *[1] * (x.ndim - 2), size)
        normed = F.layer_norm(x, (size,))
        return torch.addcmul(self.bias_RD.view(shape), normed, self.weight_RD.view(shape))


class Dropout(nn.Module):
    """Sets a share of the numbers of each run to zero and scales up the others, while it has keys.

    Which ones depends only on the run's key, the site in the network and the place in the run's
    part of the tensor: a run in a stack drops what it would drop alone.
    """

    share_R: Tensor

    def __init__(self, shares: Sequence[float]) -> None:
        super().__init__()
        share_R = torch.tensor(shares, dtype=torch.float64)
        self.register_buffer("share_R", share_R, persistent=False)
        self.drops, self.site = any(shares), 0
        self.keys_R: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.keys_R is None or not self.drops:
            return x
        numbers_RN = hashed(self.keys_R, self.site, x[0].numel())
        kept = (numbers_RN >= self.share_R[:, None]).view(x.shape)
        return x * kept / (1 - self.share_R).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def hashed(keys_R: Tensor, site: int, count: int) -> Tensor:
    """Pseudo-random numbers in [0, 1) of each run, [R, count], from 32-bit integer hashes.

    The finaliser is ``lowbias32`` by C. Wellons. ``keys_R`` are int64 in [0, 2^32).
    """
    mask = 0xFFFFFFFF
    place_N = torch.arange(count, device=keys_R.device) * 0x9E3779B1
    x = (place_N + (keys_R[:, None] ^ (site * 0x85EBCA77 & mask))) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return (x ^ (x >> 16)).double() / 2**32


def divergence(logits_RBK: Tensor, others_RBK: Tensor) -> Tensor:
    """KL(p, q) + KL(q, p) = sum_k (p_k - q_k) (log p_k - log q_k) of two predictions, [R, B]."""
    log_p, log_q = logits_RBK.log_softmax(-1), others_RBK.log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


def segment_means(x: Tensor, count: int) -> Tensor:
    """Means of ``count`` equal segments of the second-last axis: [..., L, D] -> [..., count, D].

    Frame t is in segment floor(t count / L), so the lengths differ by at most one.
    """
    segment_L = torch.arange(x.shape[-2], device=x.device) * count // x.shape[-2]
    belongs_NL = (segment_L == torch.arange(count, device=x.device)[:, None]).to(x.dtype)
    return torch.matmul(belongs_NL / belongs_NL.sum(1, keepdim=True), x)


def attend(qkv: Tensor, heads: int, keys: int = 0) -> Tensor:
    """Queries, keys and values [R, S, L, 3D] -> what the heads mix of the values, [R, S, L, D].

    With ``keys``, the means of that many equal segments of keys and values.
    """
    R, S, L, D3 = qkv.shape
    D = D3 // 3
    q, k, v = qkv.view(R * S, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)  # [R*S, H, L, D/H]
    if keys:  # the projection is linear, so it may come before the mean
        k, v = segment_means(k, keys), segment_means(v, keys)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(R, S, L, D)


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's own activation, x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class TransformerLayer(nn.Module):
    """One encoder layer over the second-last axis: [R, S, L, D] -> the same; GELU by default.

    pre-norm:  x + Attention(LN(x)), then x + MLP(LN(x));
    post-norm: LN(x + Attention(x)), then LN(x + MLP(x)). ``heads`` divides D. Each
    run's share of dropout is applied to the outputs of Attention and MLP. With ``keys`` above 0,
    keys and values are those of the means of that many equal segments of Attention's input, so that
    the cost is linear in L.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        size: int,
        heads: int,
        mlp_ratio: float,
        norm: Literal["pre", "post"] = "pre",
        dropout: Sequence[float] = (),
        keys: int = 0,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        self.activation = activation
        hidden = max(1, round(size * mlp_ratio))
        self.heads, self.norm, self.keys = heads, norm, keys
        self.norm_attention = LayerNorm(generators, size)
        self.qkv = Linear(generators, size, 3 * size)
        self.out = Linear(generators, size, size)
        self.norm_mlp = LayerNorm(generators, size)
        self.up = Linear(generators, size, hidden)
        self.down = Linear(generators, hidden, size)
        self.drop_attention, self.drop_mlp = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_heads(x, self._heads(self.norm_attention(x) if self.norm == "pre" else x))

    def factors(self, x_RBTD: Tensor, places_RwD: Tensor) -> Factors:
        """The heads' input for x_t + p_j, for all frames t and places j in a window."""
        weight_RDE, bias_RE = self.qkv.weight_RIO, self.qkv.bias_RO
        if self.norm == "post":
            return projected_factors(x_RBTD, places_RwD, weight_RDE, bias_RE)
        gain_RD, shift_RD = self.norm_attention.weight_RD, self.norm_attention.bias_RD
        return normalised_factors(x_RBTD, places_RwD, gain_RD, shift_RD, weight_RDE, bias_RE)

    def after_heads(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, given its input and the heads' output, both [..., D]."""
        x = x + self.drop_attention(self.out(mixed))
        if self.norm == "pre":
            return x + self._mlp(self.norm_mlp(x))
        x = self.norm_attention(x)
        normed: Tensor = self.norm_mlp(x + self._mlp(x))
        return normed

    def _mlp(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop_mlp(self.down(self.activation(self.up(x))))
        return hidden

    def _heads(self, x: Tensor) -> Tensor:
        return attend(self.qkv(x), self.heads, self.keys)
