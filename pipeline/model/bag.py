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
    ) -> Tensor:
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
            weights_RBT1 = self.score(torch.tanh(self.hidden(instances_RBTD))).softmax(dim=2)
            return (weights_RBT1 * frame_logits_RBTK).sum(2)
        return frame_logits_RBTK.mean(2)
