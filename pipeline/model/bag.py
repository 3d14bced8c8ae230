"""Frames of a video -> the prediction for the video (eq. 11), by one of six poolings."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from pipeline.config import LabelConfig
from pipeline.kernels.head import frame_logits
from pipeline.model.layers import Linear


class BagPooling(nn.Module):
    """Instance features [R, B, T, D], frame logits [R, B, T, K] -> bag logits [R, B, K].

    f_tk = cos(x_t, label_k) / tau are the frame logits; softmax over k of the bag logits is the
    prediction.

    - mean_logits: mean_t f_tk, the default reading of eq. 11
    - mean_feature: cos(mean_t x_t, label_k) / tau
    - mean_probability: log mean_t softmax_k(f_tk)
    - top_k: mean of the k largest f_tk of each class
    - log_sum_exp: log mean_t exp(f_tk), a smooth maximum
    - attention: sum_t a_t f_tk, a = softmax_t(w · tanh(U x_t)) (Ilse et al. 2018)

    With log weights of the frames, ``prior`` [R, B, T], every mean over frames is weighted by them,
    that of the k largest too, and they are added inside the softmax of ``attention``.
    """

    def __init__(self, generators: Sequence[Generator], size: int, config: LabelConfig) -> None:
        super().__init__()
        self.config = config
        if config.pooling == "attention":
            self.hidden = Linear(generators, size, size // 4 or 1)
            self.score = Linear(generators, size // 4 or 1, 1)

    def forward(
        self,
        instances_RBTD: Tensor,
        labels_RBKD: Tensor,
        frame_logits_RBTK: Tensor,
        temperature_R: Tensor,
        prior_RBT: Tensor | None = None,
    ) -> Tensor:
        if prior_RBT is not None:
            prior_RBT1 = prior_RBT[..., None]
            return self._weighted(
                instances_RBTD, labels_RBKD, frame_logits_RBTK, temperature_R, prior_RBT1
            )
        config, frames = self.config, frame_logits_RBTK.shape[2]
        if config.pooling == "mean_feature":
            mean_RB1D = instances_RBTD.mean(dim=2, keepdim=True)
            return frame_logits(mean_RB1D, labels_RBKD, temperature_R)[:, :, 0]
        if config.pooling == "mean_probability":
            return frame_logits_RBTK.log_softmax(3).logsumexp(2) - math.log(frames)
        if config.pooling == "top_k":
            return frame_logits_RBTK.topk(min(config.top_k, frames), dim=2).values.mean(2)
        if config.pooling == "log_sum_exp":
            return frame_logits_RBTK.logsumexp(2) - math.log(frames)
        if config.pooling == "attention":
            weights_RBT1 = self._scores(instances_RBTD).softmax(dim=2)
            return (weights_RBT1 * frame_logits_RBTK).sum(2)
        return frame_logits_RBTK.mean(2)

    def _weighted(
        self,
        instances_RBTD: Tensor,
        labels_RBKD: Tensor,
        frame_logits_RBTK: Tensor,
        temperature_R: Tensor,
        prior_RBT1: Tensor,
    ) -> Tensor:
        config = self.config
        if config.pooling == "mean_feature":
            mean_RB1D = (prior_RBT1.exp() * instances_RBTD).sum(2, keepdim=True)
            return frame_logits(mean_RB1D, labels_RBKD, temperature_R)[:, :, 0]
        if config.pooling == "mean_probability":
            return (frame_logits_RBTK.log_softmax(3) + prior_RBT1).logsumexp(2)
        if config.pooling == "log_sum_exp":
            return (frame_logits_RBTK + prior_RBT1).logsumexp(2)
        if config.pooling == "attention":
            prior_RBT1 = prior_RBT1 + self._scores(instances_RBTD)
        if config.pooling == "top_k":
            count = min(config.top_k, frame_logits_RBTK.shape[2])
            frame_logits_RBTK, chosen_RBTK = frame_logits_RBTK.topk(count, dim=2)
            prior_RBT1 = prior_RBT1.expand(-1, -1, -1, chosen_RBTK.shape[3]).gather(2, chosen_RBTK)
        return (prior_RBT1.softmax(2) * frame_logits_RBTK).sum(2)

    def _scores(self, instances_RBTD: Tensor) -> Tensor:
        """What ``attention`` weights frames by, [R, B, T, 1]."""
        scores_RBT1: Tensor = self.score(torch.tanh(self.hidden(instances_RBTD)))
        return scores_RBT1
