"""Frame features -> excited frames, and excited channels of these -> logits: of DPCNet."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.model.layers import Dropout, Linear, divergence, per_run, uniform
from pipeline.model.network import Network, NetworkSpec, Output

TAPS = 3  # of the convolutions over frames


class DPCNet(Network):
    """Two paths, one after the other, whose predictions training keeps together.

    y = x + x s(conv(W x)), one number per frame; z = y + y s(U ReLU(conv(V y))), one per frame and
    channel; s is the logistic function and conv is over frames. Each path has a linear layer that
    classifies it; the logits of a video are the mean of both over its frames. The penalty is the
    divergence of the two paths' predictions.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, hidden = spec.generators, spec.size, spec.head.width(spec.size)
        self.frame = Linear(generators, size, 1)
        self.frame_join = _OverFrames(generators, 1)
        self.down, self.up = Linear(generators, size, hidden), Linear(generators, hidden, size)
        self.channel_join = _OverFrames(generators, hidden)
        self.drop = Dropout(spec.dropout)
        self.frame_classifier = Linear(generators, size, spec.classes)
        self.channel_classifier = Linear(generators, size, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        kind = x_RBTD.dtype
        excited = x_RBTD * (1 + self.frame_join(self.frame(x_RBTD)).sigmoid().to(kind))
        joined = F.relu(self.channel_join(self.down(excited)))
        aggregated = excited * (1 + self.up(joined).sigmoid().to(kind))
        first = self.frame_classifier(self.drop(excited)).to(kind)
        second = self.channel_classifier(self.drop(aggregated)).to(kind)
        frame_logits_RBTK = (first + second) / 2
        penalty_RB = divergence(first.mean(2), second.mean(2))
        return Output(frame_logits_RBTK.mean(2), frame_logits_RBTK, penalty_RB=penalty_RB)


class _OverFrames(nn.Module):
    """A convolution over the frames of each channel, zeros outside: [R, B, T, C] -> the same."""

    def __init__(self, generators: Sequence[Generator], channels: int) -> None:
        super().__init__()
        bound = TAPS**-0.5
        self.weight_RJC = per_run(generators, uniform(TAPS, channels, bound=bound))
        self.bias_RC = per_run(generators, uniform(channels, bound=bound))

    def forward(self, x_RBTC: Tensor) -> Tensor:
        frames, padded = x_RBTC.shape[2], F.pad(x_RBTC, (0, 0, 1, 1))
        taps_R11C = self.weight_RJC[:, None, None].unbind(3)
        y = self.bias_RC[:, None, None]
        for j, tap_R11C in enumerate(taps_R11C):
            y = y + tap_R11C * padded[:, :, j : j + frames]
        return y
