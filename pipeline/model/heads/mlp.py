"""Mean of the frame features -> linear layer or MLP -> logits: the plainest trained heads."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.layers import Dropout, Linear
from pipeline.model.network import Network, NetworkSpec, Output


class MeanLinear(Network):
    """A linear layer on the mean of the frames, which is the mean of the frames' logits."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.classifier = Linear(spec.generators, spec.size, spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        frame_logits_RBTK = self.classifier(x_RBTD).to(x_RBTD.dtype)
        return Output(frame_logits_RBTK.mean(2), frame_logits_RBTK)


class MeanMLP(Network):
    """Hidden layers with ReLU and dropout, then a linear layer, on the mean of the frames.

    A frame's logits are those of a video of this frame alone.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        sizes = [spec.size, *[spec.head.width(spec.size)] * spec.head.depth]
        self.hidden = nn.ModuleList(Linear(spec.generators, *sides) for sides in pairwise(sizes))
        self.drop = nn.ModuleList(Dropout(spec.dropout) for _ in self.hidden)
        self.classifier = Linear(spec.generators, sizes[-1], spec.classes)

    def _predict(self, x_RBTD: Tensor) -> Output:
        x = torch.cat([x_RBTD.mean(2, keepdim=True), x_RBTD], 2)
        for hidden, drop in zip(self.hidden, self.drop, strict=True):
            x = drop(F.relu(hidden(x)))
        logits = self.classifier(x).to(x_RBTD.dtype)
        return Output(logits[:, :, 0], logits[:, :, 1:])
