"""Learning rates over a run, by the formulas in plain Python."""

import math

import pytest
import torch

from pipeline.config import OptimiserConfig
from pipeline.train.schedule import rate_factors


def whole_run(config: OptimiserConfig, steps: int) -> list[float]:
    return [f for epoch in range(config.epochs) for f in rate_factors(config, epoch, steps)]


def test_rates_decay_after_each_milestone() -> None:
    config = OptimiserConfig(epochs=5, milestones=(2, 4), gamma=0.5)
    assert whole_run(config, 3) == [1.0] * 6 + [0.5] * 6 + [0.25] * 3


def test_rates_follow_half_a_cosine_after_a_linear_warm_up() -> None:
    config = OptimiserConfig(epochs=4, schedule="cosine", warm_up=0.25)
    expected = [(t + 1) / 5 for t in range(5)]
    expected += [(1 + math.cos(math.pi * t / 15)) / 2 for t in range(15)]
    assert whole_run(config, 5) == pytest.approx(expected)


def test_cosine_equals_torch() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=21)
    for factor in whole_run(OptimiserConfig(epochs=3, schedule="cosine"), 7):
        assert factor == pytest.approx(reference.get_last_lr()[0])
        optimiser.step()
        reference.step()


def test_warm_up_precedes_the_milestones() -> None:
    config = OptimiserConfig(epochs=2, milestones=(0.5,), warm_up=0.5)
    assert whole_run(config, 2) == pytest.approx([0.5, 1.0, 0.1, 0.1])
