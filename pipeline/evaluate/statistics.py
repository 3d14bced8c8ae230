"""Labels and predictions -> metrics with 95 % bootstrap intervals, and of their differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import Rows, uar, war

Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # counts [..., K, K] -> [...]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, form: str, scale: float = 1) -> str:
        """As in tables, each number times ``scale``.

        >>> Interval(0.5, 0.25, 0.75).text("+.1f", 100)
        '+50.0 [+25.0, +75.0]'
        """
        value, low, high = (f"{scale * own:{form}}" for own in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Sample:
    """What was said of some videos, and the group of each, such as the person shown."""

    labels: Rows
    predictions: Rows
    groups: Sequence[object]


def bootstrap(
    labels: Rows,
    predictions: Rows,
    classes: int,
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """(UAR, WAR) with 95 % percentile intervals over resampled videos.

    If ``groups`` (one per video, e.g. the person shown) is given, whole groups are resampled, since
    videos of one person are not independent. Concatenated seeds give the mean of their metrics.
    """
    weights, member = _resamples(len(labels), groups, resamples, seed)
    counts, drawn = _resampled(labels, predictions, classes, weights, member)
    return _interval(uar(counts), uar(drawn)), _interval(war(counts), war(drawn))


def bootstrap_difference(
    labels: Rows,
    predictions: Rows,
    baseline: Rows,
    classes: int,
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    metrics: Sequence[Metric] = (uar, war),
) -> tuple[Interval, ...]:
    """``metrics`` of ``predictions`` minus those of ``baseline`` on the same videos, paired.

    As ``bootstrap_between``, of which it is a case.
    """
    groups = range(len(labels)) if groups is None else groups
    first, second = (Sample(labels, each, groups) for each in (predictions, baseline))
    return bootstrap_between(first, second, classes, resamples, seed, metrics)


def bootstrap_between(
    sample: Sample,
    baseline: Sample,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    metrics: Sequence[Metric] = (uar, war),
) -> tuple[Interval, ...]:
    """``metrics`` of a sample minus those of another, each over its own videos.

    The groups are resampled for both samples together, so that whatever makes a person easy or hard
    weighs the same in both. A resample does not count if it draws no video of one of the samples,
    or if a metric is not defined in it, such as the recall of a class that was not drawn.
    """
    groups = [*sample.groups, *baseline.groups]
    weights, member = _resamples(len(groups), groups, resamples, seed)
    parts = zip((sample, baseline), np.split(member, [len(sample.labels)]), strict=True)
    (counts, drawn), (counts_base, drawn_base) = (
        _resampled(own.labels, own.predictions, classes, weights, members) for own, members in parts
    )
    shown = (drawn.sum((1, 2)) > 0) & (drawn_base.sum((1, 2)) > 0)
    return tuple(
        _interval(
            metric(counts) - metric(counts_base), metric(drawn[shown]) - metric(drawn_base[shown])
        )
        for metric in metrics
    )


def bootstrap_mean(
    values: NDArray[np.float64],
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of finite values with its 95 % interval over resampled videos, or groups of them."""
    weights, member = _resamples(len(values), groups, resamples, seed)
    sums, sizes = (np.bincount(member, each) for each in (values, np.ones(len(values))))
    drawn, size = weights @ sums, weights @ sizes
    drawn = np.divide(drawn, size, out=np.full(len(drawn), np.nan), where=size > 0)
    return _interval(values.mean(), drawn)


def _resamples(
    videos: int, groups: Sequence[object] | None, resamples: int, seed: int
) -> tuple[NDArray[np.int64], Rows]:
    """How often each group is drawn [resample, group], and each video's group."""
    names = np.arange(videos) if groups is None else np.array([str(g) for g in groups])
    _, member = np.unique(names, return_inverse=True)
    number = int(member.max()) + 1
    generator = np.random.default_rng(seed)
    return generator.multinomial(number, np.full(number, 1 / number), size=resamples), member


def _resampled(
    labels: Rows, predictions: Rows, classes: int, weights: NDArray[np.int64], member: Rows
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confusion counts as observed [K, K] and of each resample [resample, K, K]."""
    cells = np.zeros((weights.shape[1], classes * classes))
    np.add.at(cells, (member, labels * classes + predictions), 1.0)
    shape = (classes, classes)
    return cells.sum(0).reshape(shape), (weights @ cells).reshape(len(weights), *shape)


def _interval(value: NDArray[np.float64], resampled: NDArray[np.float64]) -> Interval:
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
