"""Which epoch is reported."""

import pytest

from pipeline.config import SelectionConfig
from pipeline.train.selection import better


@pytest.mark.parametrize(
    ("rule", "expected"), [("last", 3), ("best_on_val", 1), ("best_on_test", 2)]
)
def test_rule_picks_its_epoch_and_the_earlier_of_equals(rule: str, expected: int) -> None:
    epochs = [
        {"val_war": 0.2, "test_war": 0.1},
        {"val_war": 0.6, "test_war": 0.3},
        {"val_war": 0.6, "test_war": 0.5},
        {"val_war": 0.1, "test_war": 0.5},
    ]
    best = None
    for epoch in epochs:
        if better(SelectionConfig.model_validate({"rule": rule}), epoch, best):
            best = epoch
    assert best is epochs[expected]
