"""Videos per class among a run's training videos -> what evens out rare and common classes.

Each formula takes the numbers n_k of videos of K classes; a class without any counts as one video.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.config import OptimiserConfig
from pipeline.evaluate.metrics import Rows

Array = NDArray[np.float64]

RARITY_MAX = 10.0  # the most by which the rate of a rare class's context is raised


def class_counts(labels: Rows, classes: int) -> Array:
    """n_k of the training videos with these labels, [K]."""
    return np.maximum(np.bincount(labels, minlength=classes), 1).astype(np.float64)


def loss_weights(config: OptimiserConfig, counts_K: Array) -> Array:
    """Weight of each class in the loss, [K]; ones unless the loss is class_balanced.

    (1 - beta) / (1 - beta^n_k), divided by its mean over the training videos (Cui et al. 2019).
    """
    if config.loss != "class_balanced":
        return np.ones_like(counts_K)
    weight_K = 1 / (1 - config.balance_beta**counts_K)
    mean = np.average(weight_K, weights=counts_K)
    balanced_K: Array = weight_K / mean
    return balanced_K


def logit_shifts(config: OptimiserConfig, counts_K: Array) -> Array:
    """What the loss adds to each class's logit, [K]; zeros unless it is logit_adjusted.

    tau log(n_k / n) (Menon et al. 2021, eq. 10); predictions are made without it.
    """
    if config.loss != "logit_adjusted":
        return np.zeros_like(counts_K)
    shift_K: Array = config.adjust_tau * np.log(counts_K / counts_K.sum())
    return shift_K


def draw_chances(config: OptimiserConfig, labels: Rows) -> Array | None:
    """The chance of each training video in every draw, [N]; None if each is shown once.

    n_k^(1 - oversample) / sum_j n_j^(1 - oversample) for class k, the same for all its videos.
    """
    if not config.oversample:
        return None
    count_N = np.bincount(labels)[labels].astype(np.float64)
    chance_N: Array = count_N**-config.oversample
    return chance_N / chance_N.sum()


def prompt_rates(config: OptimiserConfig, counts_K: Array) -> Array:
    """Factor of the learning rate of each class's context vectors, [K].

    (mean n / n_k)^text_rarity, at most RARITY_MAX.
    """
    return np.minimum((counts_K.mean() / counts_K) ** config.text_rarity, RARITY_MAX)
