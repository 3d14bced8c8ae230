"""Cosines of frames and class texts, and the visual prompt weighted by them (eqs. 7-8, 11)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.kernels import Impl, runs_triton


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the rows of a [..., M, D] and b [..., N, D]: [..., M, N]."""
    # In bfloat16, a cosine's rounding error divided by tau = 0.01 would be half a logit.
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2)


def weighted_sum(instances_RBTD: Tensor, weights_RBTK: Tensor) -> Tensor:
    """V_k = normalise(sum_t a_tk x_t), [R, B, K, D]."""
    return F.normalize(weights_RBTK.transpose(-1, -2) @ instances_RBTD, dim=-1)


def frame_logits(
    instances_RBTD: Tensor, labels_RBKD: Tensor, temperature_R: Tensor, impl: Impl = "auto"
) -> Tensor:
    """cos(x_t, label_k) / tau, [R, B, T, K]; the labels' B may be 1."""
    if runs_triton(impl, instances_RBTD):
        from pipeline.kernels.head_triton import FrameLogits

        labels_RBKD = labels_RBKD.expand(-1, instances_RBTD.shape[1], -1, -1)
        return FrameLogits.apply(instances_RBTD, labels_RBKD, temperature_R)
    cosines_RBTK = cosine(instances_RBTD, labels_RBKD)
    return cosines_RBTK / temperature_R.to(cosines_RBTK.dtype)[:, None, None, None]


def visual_prompt(
    instances_RBTD: Tensor, fine_RKD: Tensor, temperature_R: Tensor, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Visual prompt V [R, B, K, D] of each class and its frame weights a [R, B, T, K].

    a_tk = softmax_t(cos(x_t, fine_k) / tau), V_k = normalise(sum_t a_tk x_t).
    """
    if runs_triton(impl, instances_RBTD):
        from pipeline.kernels.head_triton import VisualPrompt

        return VisualPrompt.apply(instances_RBTD, fine_RKD, temperature_R)
    weights_RBTK = frame_logits(instances_RBTD, fine_RKD[:, None], temperature_R, impl).softmax(2)
    return weighted_sum(instances_RBTD, weights_RBTK), weights_RBTK
