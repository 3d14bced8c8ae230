"""Frame features -> bottlenecks with attention over time -> mean -> logits: of S2D."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.config import ATTENTION_HEADS, HeadConfig
from pipeline.model.layers import Dropout, LayerNorm, Linear, Product, attend, normal, per_run
from pipeline.model.network import Network, NetworkSpec, Output

POSITIONS_STD = 0.02


class S2D(Network):
    """A linear layer on the mean of the frames, which adapters have changed.

    It begins as a linear probe of frames and positions. A frame's logits are those of the linear
    layer on the frame; without dropout, which is applied to the mean, theirs is the prediction.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        generators, size, head = spec.generators, spec.size, spec.head
        draw = normal(len(self.chosen_T), size, std=POSITIONS_STD)
        self.positions_RTD = per_run(generators, draw)
        self.adapters = nn.Sequential(
            *(TemporalAdapter(generators, size, head) for _ in range(head.depth))
        )
        self.drop = Dropout(spec.dropout)
        self.classifier = Linear(generators, size, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        adapted_RBTD = self.adapters(x_RBTD + self.positions_RTD[:, None])
        logits_RBK = self.classifier(self.drop(adapted_RBTD.mean(2)))
        frame_logits_RBTK = self.classifier(adapted_RBTD)
        return Output(logits_RBK.to(x_RBTD.dtype), frame_logits_RBTK.to(x_RBTD.dtype))


class TemporalAdapter(nn.Module):
    """S2D's temporal-modelling adapter (TMA) between frames [R, B, T, D]: x + V(LN(U(LN(x)))).

    U(x) = up(Attention(GELU(down(x)))) of a few features, with 8 heads over the frames, and
    V(x) = up'(GELU(down'(x))), which begins as 0. Queries, keys and values have no biases.
    """

    def __init__(self, generators: Sequence[Generator], size: int, head: HeadConfig) -> None:
        super().__init__()
        hidden = head.width(size)
        self.norm_in, self.norm = (LayerNorm(generators, size) for _ in range(2))
        self.down, self.up = Linear(generators, size, hidden), Linear(generators, hidden, size)
        self.qkv = Product(generators, hidden, 3 * hidden)
        self.out = Linear(generators, hidden, hidden)
        self.last_down = Linear(generators, size, hidden)
        self.last_up = Linear(generators, hidden, size)
        for run in range(len(generators)):
            self.last_up.set_zero(run)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.down(self.norm_in(x)))
        mixed = self.up(self.out(attend(self.qkv(hidden), ATTENTION_HEADS["s2d"])))
        added: Tensor = self.last_up(F.gelu(self.last_down(self.norm(mixed))))
        return x + added
