"""Instance features and text features -> one label feature per class (eqs. 7-10)."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from pipeline.config import LabelConfig
from pipeline.kernels.head import frame_logits, visual_prompt, weighted_sum
from pipeline.model.layers import Linear, quick_gelu
from pipeline.model.prompts import Prompts


def visual_prompts(
    instances_RBTD: Tensor,
    fine_RKD: Tensor,
    temperature_R: Tensor,
    config: LabelConfig,
    prior_RBT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Visual prompts V [R, B, K, D] (eq. 7) and their frame weights A_I [R, B, T, K] (eq. 8).

    a_tk = softmax_t(cos(x_t, fine_k) / tau), or the cosine itself if ``weighting`` is linear.
    A shared prompt averages the cosines over classes. V_k = normalise(sum_t a_tk x_t). Log weights
    of the frames, ``prior``, are added inside the softmax; cosines are multiplied by the weights.
    """
    if config.weighting == "softmax" and config.scope == "per_class" and prior_RBT is None:
        return visual_prompt(instances_RBTD, fine_RKD, temperature_R)
    scores_RBTK = frame_logits(instances_RBTD, fine_RKD[:, None], temperature_R)
    if config.scope == "shared":
        scores_RBTK = scores_RBTK.mean(dim=3, keepdim=True).expand_as(scores_RBTK)
    if config.weighting == "softmax":
        if prior_RBT is not None:
            scores_RBTK = scores_RBTK + prior_RBT[..., None]
        weights_RBTK = scores_RBTK.softmax(dim=2)
    else:
        weights_RBTK = (
            scores_RBTK if prior_RBT is None else scores_RBTK * prior_RBT[..., None].exp()
        )
    return weighted_sum(instances_RBTD, weights_RBTK), weights_RBTK


class LabelHead(nn.Module):
    """label_k = MLP(fine_k enriched by V_k) + coarse_k; MLP: D -> 4D -> D with QuickGELU.

    ``add``: fine_k + V_k (eq. 9). ``prepend``: V_k is the first input token of the fine prompt.
    ``concat``: [V_k; fine_k]. ``none``: fine_k alone. Without fusion the label is the enriched
    fine_k itself: no MLP, no coarse text. The configurations of the runs may differ in ``init``:
    with identity, the MLP's output begins at zero, so that label_k is coarse_k.
    """

    def __init__(
        self, generators: Sequence[Generator], size: int, configs: Sequence[LabelConfig]
    ) -> None:
        super().__init__()
        self.config = config = configs[0]
        if config.fusion == "none":
            return
        inputs = 2 * size if config.visual_prompt == "concat" else size
        self.up = Linear(generators, inputs, 4 * size)
        self.down = Linear(generators, 4 * size, size)
        for run, own in enumerate(configs):
            if own.init == "identity":
                self.down.set_zero(run)

    def forward(
        self,
        instances_RBTD: Tensor,
        fine: Prompts,
        coarse: Prompts,
        temperature_R: Tensor,
        prior_RBT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(labels [R, B, K, D], attention [R, B, T, K] or None without a visual prompt)."""
        fine_RKD = fine().expand(len(instances_RBTD), -1, -1)
        attention_RBTK = None
        enriched = fine_RKD[:, None]
        if self.config.visual_prompt != "none":
            visual_RBKD, attention_RBTK = visual_prompts(
                instances_RBTD, fine_RKD, temperature_R, self.config, prior_RBT
            )
            enriched = self._enrich(visual_RBKD, fine, fine_RKD)
        return self._fuse(enriched, coarse), attention_RBTK

    def _fuse(self, enriched: Tensor, coarse: Prompts) -> Tensor:
        if self.config.fusion == "none":
            return enriched
        labels_RBKD: Tensor = self.down(quick_gelu(self.up(enriched))) + coarse()[:, None]
        return labels_RBKD

    def _enrich(self, visual_RBKD: Tensor, fine: Prompts, fine_RKD: Tensor) -> Tensor:
        if self.config.visual_prompt == "add":
            return fine_RKD[:, None] + visual_RBKD
        if self.config.visual_prompt == "prepend":
            return fine.with_visual(visual_RBKD)
        fine_RBKD = fine_RKD[:, None].expand_as(visual_RBKD)
        return torch.cat([visual_RBKD, fine_RBKD], dim=-1)
