"""Epochs of a run -> the one that is reported, by a rule that is named with the result."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.train.config import SelectionConfig

Rows = NDArray[np.int64]


def hold_out(
    rows: Rows, labels: Rows, subjects: Sequence[str | None], share: float, seed: int
) -> tuple[Rows, Rows]:
    """Training rows -> (rows left for training, rows held out), stratified by class.

    About ``share`` of them are held out; where all subjects are known, nobody is on both sides.
    ``labels`` and ``subjects`` are those of all videos.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    parts = max(2, round(1 / share))
    own = [subjects[row] for row in rows]
    if all(subject is not None for subject in own):
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        train, held = next(splitter.split(rows, labels[rows], own))
    else:
        splitter = StratifiedKFold(parts, shuffle=True, random_state=seed)
        train, held = next(splitter.split(rows, labels[rows]))
    return rows[train], rows[held]


def better(config: SelectionConfig, epoch: dict[str, float], best: dict[str, float] | None) -> bool:
    """Whether ``epoch``'s network is to be reported rather than that of the epoch ``best``.

    Best means highest WAR; the earlier of two equal epochs wins.
    """
    if best is None or config.rule == "last":
        return True
    score = "val_war" if config.rule == "best_on_val" else "test_war"
    return epoch[score] > best[score]
