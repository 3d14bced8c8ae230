"""A run's fold -> the rows of the store that it trains on, validates on and is tested on."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, SelectionConfig
from pipeline.evaluate.metrics import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.features import TrainingData


@dataclass(frozen=True)
class Split:
    """Rows of the store; nothing is held out unless the settings ask for it."""

    train: Rows
    val: Rows
    test: Rows

    @property
    def evaluation_rows(self) -> Rows:
        """Test rows, then validation rows."""
        return np.concatenate([self.test, self.val])


def split_of(data: "TrainingData", run: Run) -> Split:
    """The rows of a run's fold that have features; some are held out if its settings ask for it."""
    return _split(data.store, data.usable_N, run.fold, run.method.selection, run.seed)


def scored_rows(store: Store, fold: str, selection: SelectionConfig, seed: int) -> Rows:
    """Rows of a finished store on which such a run is tested; none for an unknown fold."""
    if fold not in (name for name, _, _ in store.folds):
        return np.empty(0, np.int64)
    usable_N = np.array([video_id not in store.missing for video_id in store.ids])
    return _split(store, usable_N, fold, selection, seed).test


def _split(
    store: Store, usable_N: "NDArray[np.bool_]", fold: str, selection: SelectionConfig, seed: int
) -> Split:
    train, test = next((train, test) for name, train, test in store.folds if name == fold)
    train, test = train[usable_N[train]], test[usable_N[test]]
    in_place_of_test = selection.tested_on == "held_out"
    if selection.rule != "best_on_val" and not in_place_of_test:
        return Split(train, train[:0], test)
    share = selection.validation_share
    left, held = hold_out(store, train, share, seed)
    return Split(left, held[:0], held) if in_place_of_test else Split(left, held, test)


def hold_out(store: Store, rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Training rows -> (rows left for training, rows held out), stratified by class.

    About ``share`` of them are held out; nobody who is known is on both sides. A class with very
    few videos may be on one side only. Raises RefusedError if every class is too rare to be split,
    or if all videos show the same person.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    parts = max(2, round(1 / share))
    labels = store.labels[rows]
    if np.bincount(labels).max() < parts:
        raise RefusedError(
            f"no class has the {parts} training videos that selection.validation_share={share} "
            "needs; use a larger share, or selection.rule=last"
        )
    known = any(store.subjects[row] is not None for row in rows)
    people = store.people(rows) if known else None
    if people is not None and len({*people}) < 2:
        raise RefusedError(
            f"{store.path}: all training videos show {people[0]}, of whom nothing can be held out; "
            "use selection.rule=last"
        )
    kind = StratifiedGroupKFold if known else StratifiedKFold
    splitter = kind(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        train, held = next(splitter.split(rows, labels, people))
    return rows[train], rows[held]
