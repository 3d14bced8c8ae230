"""Which videos are held out of the training part."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import RefusedError
from cache.store import Store
from pipeline.train.split import hold_out
from support.stores import write_store
from support.tiny import make_plan

LABELS = np.array([0] * 100 + [1] * 60 + [2] * 12)
ROWS = np.arange(0, 172, 2)


def store_of(
    folder: Path, labels: np.ndarray = LABELS, subjects: Sequence[str | None] | None = None
) -> Store:
    features = np.zeros((len(labels), 1, 1, 2))
    return write_store(folder / "s.zarr", features, labels, subjects=subjects)


def test_hold_out_keeps_the_shares_of_the_classes_and_loses_nothing(tmp_path: Path) -> None:
    train, held = hold_out(store_of(tmp_path), ROWS, 0.2, seed=0)
    assert sorted([*train, *held]) == ROWS.tolist()
    assert np.bincount(LABELS[held]).tolist() == [10, 6, 2]


@pytest.mark.parametrize("unknown", [0, 40])
def test_hold_out_puts_nobody_who_is_known_on_both_sides(tmp_path: Path, unknown: int) -> None:
    people = [None if row < unknown else f"person {row // 4}" for row in range(172)]
    train, held = hold_out(store_of(tmp_path, subjects=people), ROWS, 0.1, seed=3)
    sides = ({people[row] for row in side} - {None} for side in (train, held))
    assert not set.intersection(*sides)
    assert 4 <= len(held) <= 14


@settings(max_examples=30, deadline=None)
@given(
    videos=st.lists(st.integers(1, 7), min_size=12, max_size=40),
    classes=st.integers(2, 4),
    share=st.sampled_from([0.5, 0.25, 0.1]),
    known=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_hold_out_is_stratified_by_class_and_disjoint_by_subject(
    videos: list[int], classes: int, share: float, known: bool, seed: int
) -> None:
    people = np.repeat(np.arange(len(videos)), videos)
    labels = np.random.default_rng(seed).permutation(np.arange(len(people)) % classes)
    labels[: 10 // classes * classes] = 0  # at least ten of one class
    subjects = [f"person {p}" if known else None for p in people]
    rows = np.arange(len(people))
    train, held = hold_out(described(labels, subjects), rows, share, seed)
    assert sorted([*train, *held]) == rows.tolist()
    assert len(train)
    assert not (known and {*people[train]} & {*people[held]})
    wanted = np.bincount(labels) * share
    # A person is never cut in two, so a class may be off by as much as one has videos.
    assert np.abs(np.bincount(labels[held], minlength=classes) - wanted).max() <= (
        max(videos) if known else 1
    )


def described(labels: np.ndarray, subjects: Sequence[str | None]) -> Store:
    """A store that only describes its videos."""
    plan = make_plan(len(labels))
    about = {"labels": tuple(labels.tolist()), "subjects": tuple(subjects)}
    videos = plan.videos.model_copy(update=about)
    return Store(Path("none"), "none", plan.model_copy(update={"videos": videos}), {"missing": {}})


def test_hold_out_is_refused_where_all_videos_show_one_person() -> None:
    store = described(np.arange(40) % 2, ["anna"] * 40)
    with pytest.raises(RefusedError, match=r"show anna, of whom nothing can be held out; use sel"):
        hold_out(store, np.arange(40), 0.25, 0)


@pytest.mark.filterwarnings("error")
def test_rare_class_is_accepted_unless_all_are_rare(tmp_path: Path) -> None:
    store = store_of(tmp_path, np.array([0] * 40 + [1] * 3))
    train, held = hold_out(store, np.arange(43), 0.1, seed=0)
    assert len(train) + len(held) == 43
    with pytest.raises(RefusedError, match=r"no class has the 10 .* larger share"):
        hold_out(store, np.arange(31, 43), 0.1, seed=0)


def test_hold_out_depends_on_the_seed_only(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    first, second, other = (hold_out(store, ROWS, 0.1, seed)[1] for seed in (0, 0, 1))
    assert first.tolist() == second.tolist() != other.tolist()
