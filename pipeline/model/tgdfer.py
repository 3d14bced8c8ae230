"""Frame features [R, B, T, D] -> class logits [R, B, K]: the complete TG-DFER network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cache.errors import RefusedError
from pipeline.config import MethodConfig
from pipeline.datasets.texts import ClassTexts
from pipeline.kernels.head import frame_logits
from pipeline.model.bag import BagPooling
from pipeline.model.label import LabelHead
from pipeline.model.prompts import Prompts
from pipeline.model.temporal import TemporalNetwork
from pipeline.model.text_tower import TextTower


@dataclass(frozen=True)
class Output:
    """The network's output for B videos in R runs."""

    logits_RBK: Tensor  # bag logits; softmax over K gives eq. 11
    frame_logits_RBTK: Tensor  # cos(X^I_t, label_k) / tau, the influence of a frame
    attention_RBTK: Tensor | None  # frame weights of the visual prompts, if any


class TGDFER(nn.Module):
    """The method for R stacked runs, with one random generator and one configuration per run.

    The configurations may differ only in the temperature. The frozen text tower is part of the
    module, but has no run axis and is never trained.
    """

    temperature_R: Tensor

    def __init__(
        self,
        generators: Sequence[Generator],
        tower: TextTower,
        texts: ClassTexts,
        frames: int,
        methods: Sequence[MethodConfig],
    ) -> None:
        super().__init__()
        self.frames, self.size = frames, tower.size
        size, prompts, label = tower.size, methods[0].prompts, methods[0].label
        fine, coarse = texts.of(prompts.fine_text), texts.of(prompts.coarse_text)
        taus = [method.label.temperature for method in methods]
        self.register_buffer(
            "temperature_R", torch.tensor(taus, dtype=torch.float64), persistent=False
        )
        self.temporal = TemporalNetwork(generators, frames, size, methods[0].temporal)
        visual = label.visual_prompt == "prepend"
        if visual and tower.width != size:
            raise RefusedError(
                f"label.visual_prompt=prepend feeds {size} features to a text tower that reads "
                f"tokens of width {tower.width}; use an encoder for which the two are equal, such "
                "as ViT-B-32"
            )
        self.fine = Prompts(generators, tower, fine, prompts.fine_learnable, prompts, visual)
        self.coarse = Prompts(generators, tower, coarse, prompts.coarse_learnable, prompts)
        self.label = LabelHead(generators, size, label)
        self.bag = BagPooling(generators, size, label)

    def forward(self, features_RBTD: Tensor) -> Output:
        """Features as the image encoder gives them (not normalised) -> Output."""
        instances_RBTD = self.temporal(features_RBTD)
        labels_RBKD, attention_RBTK = self.label(
            instances_RBTD, self.fine, self.coarse, self.temperature_R
        )
        frame_logits_RBTK = frame_logits(instances_RBTD, labels_RBKD, self.temperature_R)
        logits_RBK = self.bag(instances_RBTD, labels_RBKD, frame_logits_RBTK, self.temperature_R)
        return Output(logits_RBK, frame_logits_RBTK, attention_RBTK)
