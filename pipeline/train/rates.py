"""A method -> the learning rate with which it is trained in each fold, chosen on held-out videos.

Methods are compared fairly only after equal tuning. So each of them has the same grid of rates, and
in every fold the one is used that does best on videos held out of that fold's own training part;
or, if training with it diverges in the fold for one of the seeds asked for, the next best. Test
videos are never looked at. All of these are ordinary runs, which are trained once.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cache.errors import RefusedError
from pipeline.config import MethodConfig, Run, method_from
from pipeline.train.halving import SEARCHED
from pipeline.train.records import Records

FACTORS = (0.3, 1.0, 3.0, 10.0)  # of both rates of the base
EDGES = FACTORS[0], FACTORS[-1]  # beyond which a better one may lie
SEED = 0  # of the one run with each


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
) -> Mapping[tuple[MethodConfig, str], float]:
    """For each method and fold, the factor with the highest mean of UAR and WAR of its trial.

    Of equal ones the smallest; without those with which a run of the seeds is known to have
    diverged, unless there is no other. Raises RefusedError if a trial is not finished, if its
    record is damaged, or if all of a method's trials diverged.
    """
    return {
        (method, fold): _best(method, fold, seeds, records) for method in methods for fold in folds
    }


def factors_at_hand(
    methods: Sequence[MethodConfig], folds: Sequence[str], seeds: Sequence[int], records: Records
) -> Mapping[tuple[MethodConfig, str], float]:
    """As ``best_factors``, of the methods for which it refuses nothing."""
    found: dict[tuple[MethodConfig, str], float] = {}
    for method in methods:
        with suppress(RefusedError):
            found |= best_factors([method], folds, seeds, records)
    return found


def _best(method: MethodConfig, fold: str, seeds: Sequence[int], records: Records) -> float:
    scores = [_score(run, records) for run in trials(method, fold)]
    by_score = sorted(zip(scores, FACTORS, strict=True), key=lambda own: (-own[0], own[1]))
    known = [factor for score, factor in by_score if score > -math.inf]
    if not known:
        raise RefusedError(f"fold {fold}: training diverged with every learning rate")
    return next(
        (own for own in known if not _diverges(method, own, fold, seeds, records)), known[0]
    )


def _diverges(
    method: MethodConfig, factor: float, fold: str, seeds: Sequence[int], records: Records
) -> bool:
    """Whether one of the seeds' runs is known to have diverged."""
    own = with_rates(method, factor)
    found = (records.find(Run(method=own, fold=fold, seed=seed)) for seed in seeds)
    return any(record is not None and record.status == "diverged" for record in found)


def _score(run: Run, records: Records) -> float:
    """Mean of UAR and WAR on the held-out videos; −inf if the run diverged."""
    record = records.find(run)
    if record is None:
        raise RefusedError(
            f"fold {run.fold}: its learning rates are not all tried yet; run the same table with: "
            "tgdfer ablate"
        )
    if record.damage:
        raise RefusedError(f"{record.damage}; choose again with --retrain-damaged")
    result = record.result or {}
    scores: list[float | None] = [result.get(name) for name in ("uar", "war")]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else -math.inf


def _changed(method: MethodConfig, table: str, values: Mapping[str, object]) -> MethodConfig:
    settings = method.model_dump()
    settings[table] = {**settings[table], **values}
    return method_from(settings, "a learning rate")
