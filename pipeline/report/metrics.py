"""Labels and predictions -> UAR, WAR, recalls and bootstrap intervals, as fractions in [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def confusion(labels: Rows, predictions: Rows, classes: int) -> NDArray[np.float64]:
    """Counts [true class, predicted class]."""
    flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.float64)


def war(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted average recall = accuracy, from confusion counts [..., K, K]."""
    correct = np.trace(counts, axis1=-2, axis2=-1)
    accuracy: NDArray[np.float64] = correct / counts.sum((-2, -1))
    return accuracy


def recalls(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Recall of every class [..., K]; NaN for a class that is absent from the truth."""
    shown = counts.sum(-1)
    correct = np.diagonal(counts, axis1=-2, axis2=-1)
    return np.divide(correct, shown, out=np.full_like(shown, np.nan), where=shown > 0)


def uar(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unweighted average recall: mean of the recalls of the classes that are present."""
    mean: NDArray[np.float64] = np.nanmean(recalls(counts), axis=-1)
    return mean


def bootstrap(
    labels: Rows,
    predictions: Rows,
    classes: int,
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """(UAR, WAR) with 95 % percentile intervals over resampled videos.

    Where ``groups`` (one per video, e.g. who is seen) is given, whole groups are resampled, since
    videos of one person are not independent.
    """
    names = np.arange(len(labels)) if groups is None else np.array([str(g) for g in groups])
    _, member = np.unique(names, return_inverse=True)
    number = int(member.max()) + 1
    cells = np.zeros((number, classes * classes))
    np.add.at(cells, (member, labels * classes + predictions), 1.0)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(number, np.full(number, 1 / number), size=resamples)
    resampled = (weights @ cells).reshape(resamples, classes, classes)
    observed = cells.sum(0).reshape(classes, classes)
    return _interval(uar(observed), uar(resampled)), _interval(war(observed), war(resampled))


def _interval(value: NDArray[np.float64], resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
