"""How much of the new weights enters their average."""

import pytest

from pipeline.config import OptimiserConfig
from pipeline.train.average import epoch_share, step_shares


@pytest.mark.parametrize(("epochs", "averaged", "mean"), [(6, 3, 3.0), (3, 5, 5.0), (1, 5, 8.0)])
def test_the_last_epochs_have_equal_shares(epochs: int, averaged: int, mean: float) -> None:
    config = OptimiserConfig(
        epochs=epochs, average="last_epochs", average_epochs=averaged, milestones=()
    )
    average = 1e6  # the initial weights, which must not count
    for epoch, weight in enumerate([8.0, 5.0, 2.0, 1.0, 2.0, 6.0][:epochs]):
        average += epoch_share(config, epoch) * (weight - average)
    assert average == pytest.approx(mean)
    assert epoch_share(OptimiserConfig(), 3) == 1  # no average: the latest weights


def test_the_moving_average_begins_with_the_first_weights_and_then_keeps_its_share() -> None:
    config = OptimiserConfig(average="ema", average_decay=0.5)
    shares = [*step_shares(config, 0, 4), *step_shares(config, 1, 4), *step_shares(config, 2, 4)]
    assert shares == pytest.approx([1 - min(0.5, (1 + n) / (10 + n)) for n in range(12)])
    assert list(step_shares(OptimiserConfig(), 0, 2)) == [0, 0]
