"""A method -> the learning rate with which it is trained in each fold, chosen on held-out videos.

Methods are compared fairly only after equal tuning. So each of them has the same grid of rates, and
in every fold the one is used that does best on videos held out of that fold's own training part;
or, if training with it diverges in the fold for one of the seeds asked for, the next best. Test
videos are never looked at. All of these are ordinary runs, which are trained once.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from cache.errors import RefusedError
from pipeline.config import MethodConfig, Run, method_from
from pipeline.train.halving import SEARCHED
from pipeline.train.record import Record
from pipeline.train.records import Records

Tuned = tuple[MethodConfig, str]  # a method in a fold

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of both rates of the base
EDGES = FACTORS[0], FACTORS[-1]  # beyond which a better one may lie
SEED = 0  # of the one run with each


@dataclass(frozen=True)
class Tried:
    """What is known of learning rates while some are not tried."""

    factors: Mapping[Tuned, float]  # as of ``best_factors``
    lacking: Mapping[Tuned, str]  # of all others: why none is chosen

    def settled(self) -> Mapping[Tuned, float]:
        """The factors; raises RefusedError if one is lacking."""
        for (_, fold), why in self.lacking.items():
            raise RefusedError(
                f"fold {fold}: {why}; run the same table with tgdfer ablate, with "
                "--retrain-damaged if a run is damaged, or with a lower optimiser.lr if all diverge"
            )
        return self.factors


def with_rates(method: MethodConfig, factor: float) -> MethodConfig:
    """The method with both learning rates multiplied."""
    optimiser = method.optimiser
    rates = {"lr": optimiser.lr * factor, "lr_prompts": optimiser.lr_prompts * factor}
    return _changed(method, "optimiser", rates)


def trials(method: MethodConfig, fold: str) -> list[Run]:
    """One run with each of FACTORS, tested on videos held out of the fold's training part."""
    own = _changed(method, "selection", SEARCHED)
    return [Run(method=with_rates(own, factor), fold=fold, seed=SEED) for factor in FACTORS]


def best_factors(
    methods: Sequence[MethodConfig], folds: Sequence[str], seeds: Sequence[int], records: Records
) -> Mapping[Tuned, float]:
    """For each method and fold, the factor with the highest mean of UAR and WAR of its trial.

    Of equal ones the smallest; without those with which a run of the seeds is known to have
    diverged, unless there is no other. Raises RefusedError if a trial is not finished, if its
    record is damaged, or if all of a method's trials diverged.
    """
    return tried_factors(methods, folds, seeds, records).settled()


def tried_factors(
    methods: Sequence[MethodConfig], folds: Sequence[str], seeds: Sequence[int], records: Records
) -> Tried:
    """As ``best_factors``, with a reason in the place of an error."""
    factors, lacking = {}, {}
    for method, fold in product(methods, folds):
        found = [records.find(run) for run in trials(method, fold)]
        known = _by_score(found)
        if why := _lacking(found):
            lacking[method, fold] = why
        elif not known:
            lacking[method, fold] = "training diverged with every learning rate"
        else:
            steady = (own for own in known if not _diverges(method, own, fold, seeds, records))
            factors[method, fold] = next(steady, known[0])
    return Tried(factors, lacking)


def _lacking(found: Sequence[Record | None]) -> str:
    """Which of a method's trials are missing or damaged; "" if none is."""
    untried = [f"{n:g}" for n, own in zip(FACTORS, found, strict=True) if own is None]
    if untried:
        return f"learning rates not tried: {', '.join(untried)} times the base's"
    return next((own.damage for own in found if own is not None and own.damage), "")


def _by_score(found: Sequence[Record | None]) -> list[float]:
    """The factors whose trial has scores, the best first, of equal ones the smallest."""
    scores = zip(map(_score, found), FACTORS, strict=True)
    by_score = sorted(scores, key=lambda own: (-own[0], own[1]))
    return [factor for score, factor in by_score if score > -math.inf]


def _diverges(
    method: MethodConfig, factor: float, fold: str, seeds: Sequence[int], records: Records
) -> bool:
    """Whether one of the seeds' runs is known to have diverged."""
    own = with_rates(method, factor)
    found = (records.find(Run(method=own, fold=fold, seed=seed)) for seed in seeds)
    return any(record is not None and record.status == "diverged" for record in found)


def _score(record: Record | None) -> float:
    """Mean of UAR and WAR on the held-out videos; −inf if there are none, as if it diverged."""
    result = (record.result if record else None) or {}
    scores: list[float | None] = [result.get(name) for name in ("uar", "war")]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else -math.inf


def _changed(method: MethodConfig, table: str, values: Mapping[str, object]) -> MethodConfig:
    settings = method.model_dump()
    settings[table] = {**settings[table], **values}
    return method_from(settings, "a learning rate")
