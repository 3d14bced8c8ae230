"""Frame features [R, B, T, D] -> class logits [R, B, K]: the complete TG-DFER network."""

import torch
from torch import Tensor

from cache.errors import RefusedError
from pipeline.kernels.head import frame_logits
from pipeline.model.bag import BagPooling
from pipeline.model.label import LabelHead
from pipeline.model.network import Network, NetworkSpec, Output, projected, projection
from pipeline.model.prompts import Prompts
from pipeline.model.scaling import log_quality
from pipeline.model.temporal import TemporalNetwork


class TGDFER(Network):
    """The method for R stacked runs.

    The configurations may differ in the temperature, in initial values, in whether texts are
    centred, and in a quality and a dropout above 0.
    The frozen text tower is part of the module, but has no run axis and is never trained. Frames
    encoded by another encoder than the tower's own are first projected, x W + b, to its D.
    """

    temperature_R: Tensor
    quality_R: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        self.project = projection(spec)
        generators, tower, methods = spec.generators, spec.text_tower, spec.methods
        size, prompts, label = tower.size, spec.method.prompts, spec.method.label
        fine, coarse = spec.texts.of(prompts.fine_text), spec.texts.of(prompts.coarse_text)
        for name in ("temperature", "quality"):
            values = [getattr(method.label, name) for method in methods]
            values_R = torch.tensor(values, dtype=torch.float64)
            self.register_buffer(f"{name}_R", values_R, persistent=False)
        self.weighted = label.quality > 0
        temporal = [method.temporal for method in methods]
        self.temporal = TemporalNetwork(generators, len(self.chosen_T), size, temporal)
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

    def _predict(self, x_RBTD: Tensor) -> Output:
        temperature_R = self.temperature_R
        prior_RBT = log_quality(x_RBTD, self.quality_R) if self.weighted else None
        instances_RBTD = self.temporal(projected(self.project, x_RBTD))
        labels_RBKD, attention_RBTK = self.label(
            instances_RBTD, self.fine, self.coarse, temperature_R, prior_RBT
        )
        frame_logits_RBTK = frame_logits(instances_RBTD, labels_RBKD, temperature_R)
        logits_RBK = self.bag(
            instances_RBTD, labels_RBKD, frame_logits_RBTK, temperature_R, prior_RBT
        )
        return Output(logits_RBK, frame_logits_RBTK, attention_RBTK)
