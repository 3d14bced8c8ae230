"""Mean of the frame features, several learned texts of each class -> logits: of CLIPER."""

import torch
from torch import Tensor

from pipeline.config import CLIPER_TEXTS
from pipeline.kernels.head import frame_logits
from pipeline.model.network import NetworkSpec, Output, TextNetwork, projected, prompts_of

TEMPLATE = "an ID photo of"  # what follows is learned, for each text apart


class CLIPER(TextNetwork):
    """The mean over a class's texts of cos(mean of the frames, text) / tau; no class is named.

    A frame's logits are those of a video of this frame alone.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        own = {"context": "class_specific", "position": "front", "texts": "real"}
        config = spec.method.prompts.model_copy(update={"fine_learnable": True, **own})
        self.fine = prompts_of(spec, [TEMPLATE] * CLIPER_TEXTS * spec.classes, config)

    def _predict(self, x_RBTD: Tensor) -> Output:
        x_RBTD = projected(self.project, x_RBTD)
        frames = torch.cat([x_RBTD.mean(2, keepdim=True), x_RBTD], 2)
        logits = frame_logits(frames, self.fine()[:, None], self.temperature_R)
        logits = logits.unflatten(3, (-1, CLIPER_TEXTS)).mean(4)
        return Output(logits[:, :, 0], logits[:, :, 1:])
