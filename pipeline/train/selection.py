"""Epochs of a run -> the one that is reported, by a rule that is named with the result."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from pipeline.config import SelectionConfig

Rows = NDArray[np.int64]


def hold_out(
    rows: Rows, labels: Rows, subjects: Sequence[str | None], share: float, seed: int
) -> tuple[Rows, Rows]:
    """Training rows -> (rows left for training, rows held out), stratified by class.

    About ``share`` of them are held out; where all subjects are known, nobody is on both sides. A
    class with very few videos may be on one side only. ``labels`` and ``subjects`` are those of all
    videos. Raises RefusedError where every class is too rare to be split so.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    parts = max(2, round(1 / share))
    if np.bincount(labels[rows]).max() < parts:
        raise RefusedError(
            f"no class has the {parts} training videos that selection.validation_share={share} "
            "needs; give a larger share, or use selection.rule=last"
        )
    own = [subjects[row] for row in rows]
    grouped = all(subject is not None for subject in own)
    kind = StratifiedGroupKFold if grouped else StratifiedKFold
    splitter = kind(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        train, held = next(splitter.split(rows, labels[rows], own if grouped else None))
    return rows[train], rows[held]


def better(config: SelectionConfig, epoch: dict[str, float], best: dict[str, float] | None) -> bool:
    """Whether ``epoch``'s network is to be reported rather than that of the epoch ``best``.

    Best means highest WAR; the earlier of two equal epochs wins.
    """
    if best is None or config.rule == "last":
        return True
    score = "val_war" if config.rule == "best_on_val" else "test_war"
    return epoch[score] > best[score]
