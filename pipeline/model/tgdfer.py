"""Frame features [R, B, T, D] -> class logits [R, B, K]: the whole of TG-DFER."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.model.config import LabelConfig, PromptConfig, TemporalConfig
from pipeline.model.layers import Linear
from pipeline.model.prompts import ClassTexts, make_prompts
from pipeline.model.temporal import TemporalNetwork
from pipeline.model.text_tower import TextTower


@dataclass(frozen=True)
class Prediction:
    """What the network says of B videos in R runs."""

    logits_RBK: Tensor  # bag logits; softmax over K gives eq. 11
    frame_logits_RBTK: Tensor  # cos(X^I_t, label_k) / tau, the influence of a frame


def visual_prompt(instances_RBTD: Tensor, fine_RKD: Tensor, temperature: float) -> Tensor:
    """V^P [R, B, K, D] (eqs. 7-8): for each class a weighted sum of the frames, normalised.

    a_tk = softmax_t(cos(x_t, fine_k) / tau);  V_k = normalise(sum_t a_tk x_t)
    """
    scores_RBTK = cosine(instances_RBTD, fine_RKD[:, None]) / temperature
    weights_RBTK = scores_RBTK.softmax(dim=2)
    return F.normalize(weights_RBTK.transpose(-1, -2) @ instances_RBTD, dim=-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the rows of a [..., M, D] and b [..., N, D]: [..., M, N]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2)


class LabelHead(nn.Module):
    """label_k = MLP(fine_k + V_k) + coarse_k (eqs. 9-10); MLP: D -> 4D -> D with QuickGELU."""

    def __init__(self, generators: Sequence[Generator], size: int, config: LabelConfig) -> None:
        super().__init__()
        self.config = config
        self.up = Linear(generators, size, 4 * size)
        self.down = Linear(generators, 4 * size, size)

    def forward(self, instances_RBTD: Tensor, fine_RKD: Tensor, coarse_RKD: Tensor) -> Tensor:
        enriched = fine_RKD[:, None]
        if self.config.visual_prompt == "add":
            prompt = visual_prompt(instances_RBTD, fine_RKD, self.config.temperature)
            enriched = enriched + prompt
        hidden = self.up(enriched)
        hidden = hidden * torch.sigmoid(1.702 * hidden)  # QuickGELU, as in CLIP
        labels_RBKD: Tensor = self.down(hidden) + coarse_RKD[:, None]
        return labels_RBKD


class TGDFER(nn.Module):
    """The method for R stacked runs; ``generators`` holds one random generator a run.

    ``state_of_run`` leaves the frozen text tower out: it is in the store.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        tower: TextTower,
        texts: ClassTexts,
        frames: int,
        size: int,
        temporal: TemporalConfig,
        prompts: PromptConfig,
        label: LabelConfig,
    ) -> None:
        super().__init__()
        fine, coarse = texts.of(prompts.fine_text), texts.of(prompts.coarse_text)
        self.temperature = label.temperature
        self.temporal = TemporalNetwork(generators, frames, size, temporal)
        self.fine = make_prompts(generators, tower, fine, prompts.fine_learnable, prompts)
        self.coarse = make_prompts(generators, tower, coarse, prompts.coarse_learnable, prompts)
        self.label = LabelHead(generators, size, label)

    def forward(self, features_RBTD: Tensor) -> Prediction:
        """Features as the image encoder gives them (not normalised) -> Prediction."""
        instances_RBTD = self.temporal(features_RBTD)
        runs = len(features_RBTD)
        fine_RKD, coarse_RKD = self.fine(), self.coarse()
        labels_RBKD = self.label(instances_RBTD, fine_RKD.expand(runs, -1, -1), coarse_RKD)
        frame_logits_RBTK = cosine(instances_RBTD, labels_RBKD) / self.temperature
        return Prediction(frame_logits_RBTK.mean(dim=2), frame_logits_RBTK)
