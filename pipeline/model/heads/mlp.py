"""Mean of the frame features -> MLP -> logits: the plainest head that is trained."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.config import MethodConfig
from pipeline.datasets.texts import ClassTexts
from pipeline.model.layers import Dropout, Linear
from pipeline.model.network import Network, Output
from pipeline.model.text_tower import TextTower


class MeanMLP(Network):
    """Hidden layers with ReLU and dropout, then a linear layer, on the mean of the frames.

    A frame's logits are those of a video of this frame alone.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        tower: TextTower,
        texts: ClassTexts,
        frames: int,
        methods: Sequence[MethodConfig],
    ) -> None:
        super().__init__(frames, tower.features, methods)
        head = methods[0].head
        sizes = [tower.features, *[head.width(tower.features)] * head.depth]
        self.hidden = nn.ModuleList(Linear(generators, *sides) for sides in pairwise(sizes))
        self.drop = nn.ModuleList(Dropout([head.dropout] * len(methods)) for _ in self.hidden)
        self.classifier = Linear(generators, sizes[-1], len(texts.classes))

    def _predict(self, x_RBTD: Tensor) -> Output:
        x = torch.cat([x_RBTD.mean(2, keepdim=True), x_RBTD], 2)
        for hidden, drop in zip(self.hidden, self.drop, strict=True):
            x = drop(F.relu(hidden(x)))
        logits = self.classifier(x).to(x_RBTD.dtype)
        return Output(logits[:, :, 0], logits[:, :, 1:])
