"""Averages of the weights over a run's last steps or epochs; evaluation uses them instead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import OptimiserConfig
from pipeline.train.optimisers import like


class WeightAverage:
    """Averages of parameters with a leading run axis."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, share_R: Tensor) -> None:
        """average <- average + share (parameter - average), with each run's own share."""
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, like(share_R, parameter))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context, the parameters have the values of their averages."""
        with torch.no_grad():
            # Copied, not exchanged: a captured CUDA graph knows the parameters by address.
            kept = [parameter.clone() for parameter in self.parameters]
            torch._foreach_copy_(self.parameters, self.averages)
            yield
            torch._foreach_copy_(self.parameters, kept)


def step_shares(config: OptimiserConfig, epoch: int, steps: int) -> NDArray[np.float64]:
    """Share of the new weights after each of an epoch's steps, [S]; epochs count from 0.

    For ``ema``, 1 - min(decay, (1 + n) / (10 + n)) after step n = 0, 1, …, so that the first steps
    are soon forgotten.
    """
    if config.average != "ema":
        return np.zeros(steps)
    done_S = epoch * steps + np.arange(steps)
    return 1 - np.minimum(config.average_decay, (1 + done_S) / (10 + done_S))


def epoch_share(config: OptimiserConfig, epoch: int) -> float:
    """Share of the new weights after an epoch, counted from 0.

    For ``last_epochs``, the result is the mean over the last ``average_epochs`` epochs' ends, or
    over all if there are fewer, and the latest weights before that. For ``none``, it is always the
    latest, so that such a run can share a stack with others.
    """
    if config.average == "ema":
        return 0.0
    if config.average == "none":
        return 1.0
    counted = epoch + 1 - max(config.epochs - config.average_epochs, 0)
    return 1 / max(counted, 1)
