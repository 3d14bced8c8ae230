"""Frame features X^v [R, B, T, D] -> instance features X^I of the same shape (eqs. 2-5).

The fine module sees short windows of neighbouring frames, the coarse module the whole video; a
fully connected layer joins them.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from pipeline.config import TemporalConfig
from pipeline.kernels.windows import window_attention
from pipeline.model.layers import Linear, TransformerLayer

MERGED = 64  # frames whose windows are merged by one product, so that the cost is linear in T


class FineModule(nn.Module):
    """Encoder layers inside each window, then one output per frame.

    A frame's output is the average over the windows that contain it, or that of the last one.
    """

    belongs_TM: Tensor

    def __init__(
        self,
        generators: Sequence[Generator],
        frames: int,
        size: int,
        configs: Sequence[TemporalConfig],
    ) -> None:
        super().__init__()
        config = configs[0]
        starts = config.window_starts(frames)
        self.width, self.stride = config.window, config.stride
        index_M = torch.tensor([start + j for start in starts for j in range(self.width)])
        belongs_TM = index_M == torch.arange(frames)[:, None]
        if config.merge == "last":
            later_TM = belongs_TM.flip(1).cumsum(1).flip(1)  # windows from here on that contain t
            belongs_TM &= later_TM == 1
        self.register_buffer("belongs_TM", belongs_TM.float(), persistent=False)
        tables = 1 if config.positions == "shared" else len(starts)
        self.positions_RNwD = _positions(generators, configs, tables, self.width, size)
        self.layers = _layers(generators, size, config.fine_depth, configs)

    def forward(self, x_RBTD: Tensor) -> Tensor:
        R, B, _, D = x_RBTD.shape
        windows = x_RBTD.unfold(2, self.width, self.stride).transpose(-1, -2)
        windows = (windows + self.positions_RNwD[:, None]).flatten(1, 2)  # [R, B*N, w, D]
        first = cast(TransformerLayer, self.layers[0])
        if self.positions_RNwD.shape[1] == 1:
            factors = first.factors(x_RBTD, self.positions_RNwD[:, 0])
            mixed = window_attention(factors, self.stride, first.heads)
            inside = first.after_heads(windows, mixed.flatten(1, 2))
        else:
            inside = first(windows)
        inside = self.layers[1:](inside)
        inside = inside.view(R, B, -1, D)
        parts = []
        for start in range(0, len(self.belongs_TM), MERGED):
            tokens = self._tokens_of(start)
            part = self.belongs_TM[start : start + MERGED, tokens]
            parts.append(torch.matmul(part, inside[:, :, tokens]) / part.sum(1, keepdim=True))
        return torch.cat(parts, 2)

    def _tokens_of(self, start: int) -> slice:
        """Tokens of the windows that hold any of the frames from ``start`` on."""
        windows = self.belongs_TM.shape[1] // self.width
        first = max(0, -(-(start - self.width + 1) // self.stride))
        last = min(windows - 1, (start + MERGED - 1) // self.stride)
        return slice(first * self.width, (last + 1) * self.width)


class CoarseModule(nn.Module):
    """Encoder layers over all T frames (eq. 4); with ``coarse_keys``, at a cost linear in T."""

    def __init__(
        self,
        generators: Sequence[Generator],
        frames: int,
        size: int,
        configs: Sequence[TemporalConfig],
    ) -> None:
        super().__init__()
        self.positions_RTD = _positions(generators, configs, frames, size)
        depth, keys = configs[0].coarse_depth, configs[0].coarse_keys
        self.layers = _layers(generators, size, depth, configs, keys)

    def forward(self, x_RBTD: Tensor) -> Tensor:
        output: Tensor = self.layers(x_RBTD + self.positions_RTD[:, None])
        return output


class TemporalNetwork(nn.Module):
    """X^I = FC([fine, coarse]) (eq. 5); one branch alone: FC(branch); none: X^I = X^v.

    With ``residual``, X^v is added. The configurations of the runs may differ in ``init``,
    ``positions_std`` and ``dropout``. With ``init`` identity, FC starts as the mean of the branches
    and the layers add nothing, so that X^I is X^v plus the branches' mean position.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        frames: int,
        size: int,
        configs: Sequence[TemporalConfig],
    ) -> None:
        super().__init__()
        config = configs[0]
        branches: list[nn.Module] = []
        if config.fine_depth:
            branches.append(FineModule(generators, frames, size, configs))
        if config.coarse_depth:
            branches.append(CoarseModule(generators, frames, size, configs))
        self.branches = nn.ModuleList(branches)
        self.join = Linear(generators, len(branches) * size, size) if branches else None
        self.residual = config.residual
        for run, own in enumerate(configs):
            if own.init == "identity":
                self._begin_as_identity(run)

    def forward(self, x_RBTD: Tensor) -> Tensor:
        if self.join is None:
            return x_RBTD
        joined: Tensor = self.join(torch.cat([branch(x_RBTD) for branch in self.branches], -1))
        joined = joined.to(x_RBTD.dtype)  # cosines are never in bfloat16, even if products are
        return joined + x_RBTD if self.residual else joined

    def _begin_as_identity(self, run: int) -> None:
        for module in self.modules():
            if isinstance(module, TransformerLayer):
                module.out.set_zero(run)
                module.down.set_zero(run)
        if self.join is not None:
            self.join.set_zero(run)
            size = self.join.bias_RO.shape[1]
            mean_DD = torch.eye(size) / len(self.branches)
            self.join.weight_RIO.data[run] = mean_DD.repeat(len(self.branches), 1)


def _positions(
    generators: Sequence[Generator], configs: Sequence[TemporalConfig], *shape: int
) -> nn.Parameter:
    draws = [
        torch.randn(shape, generator=generator) * own.positions_std
        for generator, own in zip(generators, configs, strict=True)
    ]
    return nn.Parameter(torch.stack(draws))


def _layers(
    generators: Sequence[Generator],
    size: int,
    depth: int,
    configs: Sequence[TemporalConfig],
    keys: int = 0,
) -> nn.Sequential:
    heads, ratio, norm = configs[0].heads(size), configs[0].mlp_ratio, configs[0].norm
    dropout = [config.dropout for config in configs]
    return nn.Sequential(
        *[
            TransformerLayer(generators, size, heads, ratio, norm, dropout, keys)
            for _ in range(depth)
        ]
    )
