"""Instance features and text features -> one label feature per class (eqs. 7-10)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pipeline.model.config import LabelConfig
from pipeline.model.layers import Linear
from pipeline.model.prompts import Prompts


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the rows of a [..., M, D] and b [..., N, D]: [..., M, N]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2)


def visual_prompt(instances_RBTD: Tensor, fine_RKD: Tensor, config: LabelConfig) -> Tensor:
    """V^P [R, B, K, D] (eqs. 7-8): for each class a weighted sum of the frames, normalised.

    a_tk = softmax_t(cos(x_t, fine_k) / tau), or the cosine itself where ``weighting`` is linear;
    V_k = normalise(sum_t a_tk x_t). A shared prompt takes the mean of the cosines over classes.
    """
    scores_RBTK = cosine(instances_RBTD, fine_RKD[:, None]) / config.temperature
    if config.scope == "shared":
        scores_RBTK = scores_RBTK.mean(dim=3, keepdim=True).expand_as(scores_RBTK)
    weights_RBTK = scores_RBTK.softmax(dim=2) if config.weighting == "softmax" else scores_RBTK
    return F.normalize(weights_RBTK.transpose(-1, -2) @ instances_RBTD, dim=-1)


class LabelHead(nn.Module):
    """label_k = MLP(fine_k enriched by V_k) + coarse_k; MLP: D -> 4D -> D with QuickGELU.

    ``add``: fine_k + V_k (eq. 9). ``prepend``: V_k is the first input token of the fine prompt.
    ``concat``: [V_k; fine_k]. ``none``: fine_k alone. Without fusion the label is the enriched
    fine_k itself: no MLP, no coarse text.
    """

    def __init__(self, generators: Sequence[Generator], size: int, config: LabelConfig) -> None:
        super().__init__()
        self.config = config
        if config.fusion == "none":
            return
        inputs = 2 * size if config.visual_prompt == "concat" else size
        self.up = Linear(generators, inputs, 4 * size)
        self.down = Linear(generators, 4 * size, size)

    def forward(self, instances_RBTD: Tensor, fine: Prompts, coarse: Prompts) -> Tensor:
        runs = len(instances_RBTD)
        enriched = self._enrich(instances_RBTD, fine, fine().expand(runs, -1, -1))
        if self.config.fusion == "none":
            return enriched
        hidden = self.up(enriched)
        hidden = hidden * torch.sigmoid(1.702 * hidden)  # QuickGELU, as in CLIP
        labels_RBKD: Tensor = self.down(hidden) + coarse()[:, None]
        return labels_RBKD

    def _enrich(self, instances_RBTD: Tensor, fine: Prompts, fine_RKD: Tensor) -> Tensor:
        kind = self.config.visual_prompt
        if kind == "none":
            return fine_RKD[:, None]
        visual_RBKD = visual_prompt(instances_RBTD, fine_RKD, self.config)
        if kind == "add":
            return fine_RKD[:, None] + visual_RBKD
        if kind == "prepend":
            return fine.with_visual(visual_RBKD)
        fine_RBKD = fine_RKD[:, None].expand_as(visual_RBKD)
        return torch.cat([visual_RBKD, fine_RBKD], dim=-1)
