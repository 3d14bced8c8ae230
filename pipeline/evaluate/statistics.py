"""Labels and predictions -> metrics with 95 % bootstrap intervals, and of their differences."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit  # scipy.stats takes a second to import

from pipeline.evaluate.metrics import Rows, uar, war

Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # counts [..., K, K] -> [...]

# (fold, or "" for all; networks of it) -> how often each is drawn, [resample, network].
Shares = dict[tuple[str, tuple[str, ...]], NDArray[np.float64]]

FEW = 0.01  # of the resamples: fewer tell a tail only roughly, and nothing below one of them
POWERED = 1.96 + 0.84  # standard errors: quantiles of the normal distribution at 97.5 and 80 %


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
class Difference(Interval):
    """A difference with its 95 % interval, its standard error and the p-value of no difference."""

    error: float
    p: float

    @property
    def detectable(self) -> float:
        """The true difference that a test at 5 % finds in about 80 % of all cases."""
        return POWERED * self.error


@dataclass(frozen=True)
class Sample:
    """What was said of some videos, the group of each, such as the person shown, and by whom.

    ``networks`` are the (fold, seed) of the network that predicted each video; () if nothing about
    the predictions is random.
    """

    labels: Rows
    predictions: Rows
    groups: Sequence[object]
    networks: Sequence[tuple[str, int]] = ()


def bootstrap(
    sample: Sample,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    metrics: Sequence[Metric] = (uar, war),
) -> tuple[Interval, ...]:
    """``metrics`` with 95 % percentile intervals over groups of videos and trainings.

    Whole groups are resampled, since videos of one person are not independent. Where a fold has
    networks of several seeds, or each of several folds has one, the intervals also cover how far
    another training would differ; see ``_spread``. Several seeds give the mean of their metrics.
    """
    (counts,), networks = _resampled([sample], classes, resamples, seed)
    return tuple(_interval(_spread(counts.each(metric), networks), 0) for metric in metrics)


def bootstrap_difference(
    sample: Sample,
    baseline: Sample,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    metrics: Sequence[Metric] = (uar, war),
) -> tuple[Difference, ...]:
    """``metrics`` of a sample minus those of another, each over its own videos.

    As ``bootstrap``. The groups are resampled for both samples together, so that whatever makes a
    person easy or hard weighs the same in both; so are the seeds of folds that have the same ones
    in both, and the folds if both have the same. A resample does not count if it draws no video of
    one of the samples, or if a metric is not defined in it, such as the recall of a class that was
    not drawn.
    """
    (ours, theirs), networks = _resampled([sample, baseline], classes, resamples, seed)
    return tuple(
        _difference(_spread(ours.each(metric) - theirs.each(metric), networks))
        for metric in metrics
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests by the method of Holm (1979).

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    order = np.argsort(p_values, kind="stable")
    left = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * left)
    return np.minimum(corrected, 1).tolist()


def mcnemar(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Exact two-sided p-value that two networks are right equally often (McNemar 1947).

    ``right`` and ``other`` say of the same videos who was right, [video]. Videos count as
    independent and the networks as given, so for videos of few people p is too small.

    >>> mcnemar(np.array([True] * 6), np.array([False] * 6))
    0.03125
    """
    ours, theirs = int((right & ~other).sum()), int((other & ~right).sum())
    return min(1.0, 2 * float(bdtr(min(ours, theirs), ours + theirs, 0.5)))


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
    return _interval(_Spread(float(values.mean()), drawn))


def bootstrap_of_groups(
    metric: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    groups: Sequence[object],
    resamples: int = 2000,
    seed: int = 0,
    part: int = 100,
) -> Interval:
    """A metric with its 95 % interval over resampled groups of videos.

    ``metric`` takes how often each video counts, [resample, video], for ``part`` resamples or fewer
    at a time, and gives [resample].
    """
    weights, member = _resamples(len(groups), groups, resamples, seed)
    parts = (weights[n : n + part, member].astype(float) for n in range(0, resamples, part))
    drawn = np.concatenate([metric(own) for own in parts])
    return _interval(_Spread(float(metric(np.ones((1, len(groups))))[0]), drawn))


def _resamples(
    videos: int, groups: Sequence[object] | None, resamples: int, seed: int
) -> tuple[NDArray[np.float32], Rows]:
    """How often each group is drawn [resample, group], and each video's group."""
    names = np.arange(videos) if groups is None else np.array([str(g) for g in groups])
    _, member = np.unique(names, return_inverse=True)
    return _drawn(int(member.max()) + 1, resamples, seed), member


@lru_cache(maxsize=1)  # all rows of a table show the same people
def _drawn(number: int, resamples: int, seed: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(number, np.full(number, 1 / number), size=resamples)
    return drawn.astype(np.float32)


@dataclass(frozen=True)
class _Counts:
    """Confusion counts [K, K] as observed, and in each resample of people, networks, both."""

    observed: NDArray[np.float64]
    people: NDArray[np.float64]
    networks: NDArray[np.float64]
    both: NDArray[np.float64]

    def each(self, metric: Metric) -> NDArray[np.float64]:
        """A metric of the counts, [4, resample]; NaN where no video was drawn."""
        found = np.full((4, len(self.people)), np.nan)
        found[0] = metric(self.observed)
        for own, counts in zip(found[1:], (self.people, self.networks, self.both), strict=True):
            shown = counts.sum((1, 2)) > 0
            own[shown] = metric(counts[shown])
        return found


@dataclass(frozen=True)
class _Networks:
    """How much is known of the variation between networks."""

    freedom: int  # networks beyond one in each group that they are resampled in
    by_fold: bool  # networks of other folds, which also differ by the people that they are asked of


@dataclass(frozen=True)
class _Spread:
    """A value, and resampled ones; what these tell of its variance has ``freedom`` degrees."""

    value: float
    resampled: NDArray[np.float64]
    freedom: float = math.inf

    @property
    def widened(self) -> float:
        """How much wider than the normal distribution Student's is at 95 %."""
        return float(stdtrit(self.freedom, 0.975) / ndtri(0.975)) if self.freedom < math.inf else 1


def _spread(values: NDArray[np.float64], networks: _Networks) -> _Spread:
    """A value, and resampled ones that vary as it would with other people and other trainings.

    Resampling the people of given networks covers the people and what is specific to a person and
    a network, V_p + V_pn. Resampling the networks of a fold covers V_n + V_pn, and resampling both
    V_p + V_n + 3 V_pn (Owen 2007); resampling folds, each of one network and of people of its own,
    covers V_p + V_n + V_pn. To the deviations of the first, those of the networks are added, shrunk
    so that V = V_p + V_n + V_pn is left. The variance between few networks is known with
    ``freedom`` degrees of freedom, so V is with freedom (V / that variance)² (Satterthwaite 1946),
    but not with less: all deviations are widened as Student's distribution is.
    """
    value, people, trained, both = values[0, 0], *values[1:]
    if not networks.freedom or np.nanmax(trained) == np.nanmin(trained):
        return _Spread(float(value), people)
    of_people, of_trained, of_both = (float(np.nanvar(own)) for own in (people, trained, both))
    own = of_trained - of_people if networks.by_fold else 2 * of_trained + of_people - of_both
    own = min(max(own, 0), of_trained)  # V_n
    freedom = networks.freedom * max((of_people + own) / of_trained, 1) ** 2
    deviations = people - value + np.sqrt(own / of_trained) * (trained - value)
    spread = _Spread(float(value), deviations, freedom)
    return replace(spread, resampled=value + spread.widened * deviations)


def _resampled(
    samples: Sequence[Sample], classes: int, resamples: int, seed: int
) -> tuple[list[_Counts], _Networks]:
    """The counts of each sample, and how much is known of its networks.

    People and networks are drawn for all samples together.
    """
    groups = [group for sample in samples for group in sample.groups]
    weights, member = _resamples(len(groups), groups, resamples, seed)
    members = np.split(member, np.cumsum([len(sample.labels) for sample in samples])[:-1])
    generator = np.random.default_rng([seed, 1])
    shares: Shares = {}
    by_fold = not any(_has_several_seeds(sample) for sample in samples)
    found = []
    for sample, own in zip(samples, members, strict=True):
        observed = np.zeros(classes * classes)
        people, networks, both = np.zeros((3, resamples, classes * classes))
        at = sample.labels * classes + sample.predictions
        for rows, share in _networks(sample, by_fold, resamples, generator, shares):
            shown, place = np.unique(own[rows], return_inverse=True)
            counts = np.zeros((len(shown), classes * classes))
            np.add.at(counts, (place, at[rows]), 1.0)
            drawn = weights[:, shown] @ counts
            observed += counts.sum(0)
            people += drawn
            networks += share[:, None] * counts.sum(0)
            both += share[:, None] * drawn
        shape = (-1, classes, classes)
        every = (part.reshape(shape) for part in (people, networks, both))
        found.append(_Counts(observed.reshape(classes, classes), *every))
    return found, _Networks(sum(len(drawn) - 1 for _, drawn in shares), by_fold)


def _has_several_seeds(sample: Sample) -> bool:
    networks = {*sample.networks}
    return len({fold for fold, _ in networks}) < len(networks)


def _networks(
    sample: Sample, by_fold: bool, resamples: int, generator: np.random.Generator, shares: Shares
) -> Iterator[tuple[Rows, NDArray[np.float64]]]:
    """The rows of each network, and how often it is drawn in each resample, on average once.

    It is one of its fold's, or ``by_fold`` one of all folds'.
    """
    if not sample.networks:
        yield np.arange(len(sample.labels)), np.ones(resamples)
        return
    rows: dict[str, dict[str, list[int]]] = {}
    for row, (fold, seed) in enumerate(sample.networks):
        among, name = ("", fold) if by_fold else (fold, str(seed))
        rows.setdefault(among, {}).setdefault(name, []).append(row)
    for among, own in rows.items():
        names = tuple(sorted(own))
        if (among, names) not in shares:
            shares[among, names] = _shares(len(names), resamples, generator)
        for n, name in enumerate(names):
            yield np.array(own[name]), shares[among, names][:, n]


def _shares(number: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each of N networks is drawn, [resample, N], on average once.

    N - 1 of N are drawn (Rao and Wu 1988): the variance of N of them is too small by (N - 1) / N.
    """
    if number == 1:
        return np.ones((resamples, 1))
    drawn = generator.multinomial(number - 1, np.full(number, 1 / number), size=resamples)
    return np.asarray(drawn, np.float64) * (number / (number - 1))


def _interval(spread: _Spread, lowest: float = -math.inf) -> Interval:
    """With bounds in the possible range: from ``lowest`` to 1, if a lowest value is given."""
    highest = math.inf if lowest == -math.inf else 1
    low, high = np.clip(np.nanquantile(spread.resampled, [0.025, 0.975]), lowest, highest)
    return Interval(spread.value, float(low), float(high))


def _difference(spread: _Spread) -> Difference:
    """With a two-sided p-value, by Student's distribution where networks vary.

    Else it is counted, or by the normal distribution where few resamples are beyond zero.
    """
    own, finite = _interval(spread, -1), spread.resampled[np.isfinite(spread.resampled)]
    error = float(finite.std())
    beyond = int(min((finite <= 0).sum(), (finite >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(finite) + 1))
    if spread.freedom < math.inf and error:
        p = 2 * float(stdtr(spread.freedom, -abs(own.value) * spread.widened / error))
    elif beyond < FEW * len(finite) and error:
        p = min(p, 2 * float(ndtr(-abs(own.value) / error)))
    return Difference(own.value, own.low, own.high, error, p)
