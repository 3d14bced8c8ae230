"""Settings of a run -> the factor of its learning rates in every step."""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.config import OptimiserConfig


def rate_factors(config: OptimiserConfig, epoch: int, steps: int) -> NDArray[np.float64]:
    """Factors of the ``steps`` steps of an epoch, [S]; epochs count from 0.

    steps: gamma^n after n milestones; cosine: (1 + cos(pi t)) / 2 at the share t of the steps after
    the warm-up (Loshchilov and Hutter 2017). During the warm-up they rise linearly.
    """
    step_S = epoch * steps + np.arange(steps)
    total = config.epochs * steps
    warm = round(config.warm_up * total)
    if config.schedule == "cosine":
        share_S = np.maximum(step_S - warm, 0) / (total - warm)
        factor_S = (1 + np.cos(math.pi * share_S)) / 2
    else:
        factor_S = np.full(steps, config.gamma ** sum(last <= epoch for last in config.decays()))
    return factor_S * np.minimum(1, (step_S + 1) / max(warm, 1))
