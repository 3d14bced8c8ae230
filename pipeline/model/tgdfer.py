"""Frame features [R, B, T, D] -> class logits [R, B, K]: the complete TG-DFER network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from cache.errors import RefusedError
from pipeline.config import MethodConfig
from pipeline.datasets.texts import ClassTexts
from pipeline.kernels.head import frame_logits
from pipeline.model.bag import BagPooling
from pipeline.model.label import LabelHead
from pipeline.model.layers import Dropout
from pipeline.model.prompts import Prompts
from pipeline.model.scaling import InputScale, log_quality
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

    The configurations may differ in the temperature, in initial values, in whether texts are
    centred, and in a quality and a dropout above 0.
    The frozen text tower is part of the module, but has no run axis and is never trained.
    ``frames`` is the number of frames in the features, of which ``input.frames`` may choose some.
    """

    temperature_R: Tensor
    quality_R: Tensor
    chosen_T: Tensor

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
        for name in ("temperature", "quality"):
            values = [getattr(method.label, name) for method in methods]
            values_R = torch.tensor(values, dtype=torch.float64)
            self.register_buffer(f"{name}_R", values_R, persistent=False)
        self.weighted = label.quality > 0
        chosen = methods[0].input.chosen(frames)
        self.register_buffer("chosen_T", torch.tensor(chosen), persistent=False)
        self.input = InputScale(len(methods), size, methods[0].input.scale)
        temporal = [method.temporal for method in methods]
        self.temporal = TemporalNetwork(generators, len(chosen), size, temporal)
        visual = label.visual_prompt == "prepend"
        if visual and tower.width != size:
            raise RefusedError(
                f"label.visual_prompt=prepend feeds {size} features to a text tower that reads "
                f"tokens of width {tower.width}; use an encoder for which the two are equal, such "
                "as ViT-B-32"
            )
        centre = [method.input.centre_text for method in methods]
        if prompts.tower == "random":
            tower = tower.redrawn()
        self.fine = Prompts(
            generators, tower, fine, prompts.fine_learnable, prompts, visual, centre
        )
        self.coarse = Prompts(
            generators, tower, coarse, prompts.coarse_learnable, prompts, centre=centre
        )
        self.label = LabelHead(generators, size, [method.label for method in methods])
        self.bag = BagPooling(generators, size, label)
        self._dropouts = [module for module in self.modules() if isinstance(module, Dropout)]
        for site, module in enumerate(self._dropouts):
            module.site = site

    def choose(self, features_RBTD: Tensor) -> Tensor:
        """Those of the features' frames that the network uses."""
        if len(self.chosen_T) == self.frames:
            return features_RBTD
        return features_RBTD.index_select(2, self.chosen_T)

    @contextmanager
    def dropping(self, keys_R: Tensor) -> Iterator[None]:
        """Within the context, dropout is applied, by a key of each run for this step."""
        for module in self._dropouts:
            module.keys_R = keys_R
        yield
        for module in self._dropouts:
            module.keys_R = None

    def kept(self) -> dict[str, Tensor]:
        """What tells a run's network from another's, with the run axis.

        The trained parameters, the statistics of the input, and where orthogonal texts began.
        """
        learned = {name: p for name, p in self.named_parameters() if p.requires_grad}
        fixed = {f"input.{name}": b for name, b in self.input.named_buffers()}
        offsets = {"fine": self.fine.offset_RKD, "coarse": self.coarse.offset_RKD}
        fixed |= {f"{name}.offset_RKD": b for name, b in offsets.items() if b is not None}
        return learned | fixed

    def forward(self, features_RBTD: Tensor) -> Output:
        """Features as the image encoder gives them (not normalised) -> Output."""
        x_RBTD, temperature_R = self.input(self.choose(features_RBTD)), self.temperature_R
        prior_RBT = log_quality(x_RBTD, self.quality_R) if self.weighted else None
        instances_RBTD = self.temporal(x_RBTD)
        labels_RBKD, attention_RBTK = self.label(
            instances_RBTD, self.fine, self.coarse, temperature_R, prior_RBT
        )
        frame_logits_RBTK = frame_logits(instances_RBTD, labels_RBKD, temperature_R)
        logits_RBK = self.bag(
            instances_RBTD, labels_RBKD, frame_logits_RBTK, temperature_R, prior_RBT
        )
        return Output(logits_RBK, frame_logits_RBTK, attention_RBTK)
