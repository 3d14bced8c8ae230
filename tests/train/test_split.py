"""Which videos are held out of the training part."""

import numpy as np
import pytest

from cache.errors import RefusedError
from pipeline.train.split import hold_out

LABELS = np.array([0] * 100 + [1] * 60 + [2] * 12)
ROWS = np.arange(0, 172, 2)


def test_hold_out_keeps_the_shares_of_the_classes_and_loses_nothing() -> None:
    train, held = hold_out(ROWS, LABELS, [None] * 172, 0.2, seed=0)
    assert sorted([*train, *held]) == ROWS.tolist()
    assert np.bincount(LABELS[held]).tolist() == [10, 6, 2]


def test_hold_out_puts_nobody_on_both_sides() -> None:
    people = [f"person {row // 4}" for row in range(172)]
    train, held = hold_out(ROWS, LABELS, people, 0.1, seed=3)
    assert not {people[row] for row in train} & {people[row] for row in held}
    assert 4 <= len(held) <= 14


@pytest.mark.filterwarnings("error")
def test_rare_class_is_accepted_unless_all_are_rare() -> None:
    labels = np.array([0] * 40 + [1] * 3)
    train, held = hold_out(np.arange(43), labels, [None] * 43, 0.1, seed=0)
    assert len(train) + len(held) == 43
    with pytest.raises(RefusedError, match=r"no class has the 10 .* larger share"):
        hold_out(np.arange(9), np.arange(9) % 3, [None] * 9, 0.1, seed=0)


def test_hold_out_depends_on_the_seed_only() -> None:
    first, second, other = (hold_out(ROWS, LABELS, [None] * 172, 0.1, s)[1] for s in (0, 0, 1))
    assert first.tolist() == second.tolist() != other.tolist()
