"""Random settings -> the best of them, by successive halving on held-out training videos.

Every trial is trained for a few epochs, the best of them anew for more, and so on (Jamieson and
Talwalkar 2016). Trials are scored on videos held out of the training part of one fold, several
times, by the seeds; test videos are never looked at. All of these are ordinary runs, so that a
search that was stopped goes on where it was.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import MethodConfig, Run, method_from, runs_of
from pipeline.evaluate.metrics import Rows
from pipeline.train.records import Records
from pipeline.train.space import Space
from pipeline.train.split import hold_out

HELD_OUT_SHARE = 0.2  # of the training videos
# Settings of runs that are scored on these, and not on test videos.
SEARCHED = {"rule": "last", "tested_on": "held_out", "validation_share": HELD_OUT_SHARE}
TRIALS_MAX, HOLD_OUTS_MAX = 10_000, 100
DRAWS = 100  # per trial, to find settings that the store can train


@dataclass(frozen=True)
class Rung:
    """How many trials are trained for how many epochs, each on how many hold-outs."""

    trials: int
    epochs: int
    hold_outs: int

    @property
    def run_epochs(self) -> int:
        """What it costs."""
        return self.trials * self.epochs * self.hold_outs


@dataclass(frozen=True)
class HeldOut:
    """How one run of a trial did on the videos that it held out."""

    run: str  # the folder of its record
    uar: float | None  # None if it diverged
    war: float | None
    seconds: float

    @property
    def score(self) -> float:
        """Mean of UAR and WAR."""
        return math.nan if self.uar is None or self.war is None else (self.uar + self.war) / 2


@dataclass(frozen=True)
class Trial:
    """Settings that are tried, and how they did on each rung that they reached."""

    number: int
    method: MethodConfig
    rungs: tuple[tuple[HeldOut, ...], ...] = ()

    @property
    def scores(self) -> tuple[float, ...]:
        """Mean of UAR and WAR on each rung; NaN if a run diverged."""
        return tuple(statistics.fmean(own.score for own in rung) for rung in self.rungs)


@dataclass(frozen=True)
class Search:
    """What determines a search, besides the store and the code."""

    base: MethodConfig
    fold: str
    rungs: tuple[Rung, ...]
    trials: tuple[MethodConfig, ...]

    def runs(self, method: MethodConfig, rung: Rung) -> list[Run]:
        """The runs of a trial on a rung: one per hold-out.

        Raises RefusedError for settings that do not fit so few epochs.
        """
        own = _with(method, rung.epochs, method.selection.model_dump() | SEARCHED)
        return runs_of(own, [self.fold], range(rung.hold_outs))

    def chosen(self, method: MethodConfig) -> MethodConfig:
        """A trial's settings as they are used after the search."""
        return _with(method, self.rungs[-1].epochs, self.base.selection.model_dump())


def parse_rungs(text: str) -> tuple[Rung, ...]:
    """``TRIALS:EPOCHS:HOLDOUTS,…`` -> rungs; raises RefusedError unless the trials get fewer.

    >>> parse_rungs("9:10:2,3:30:2")
    (Rung(trials=9, epochs=10, hold_outs=2), Rung(trials=3, epochs=30, hold_outs=2))
    """
    try:
        numbers = [tuple(int(part) for part in rung.split(":")) for rung in text.split(",")]
        rungs = tuple(Rung(*own) for own in numbers)
    except (TypeError, ValueError):
        rungs = ()
    fewer = all(a.trials > b.trials for a, b in pairwise(rungs))
    fits = all(
        0 < r.trials <= TRIALS_MAX and r.epochs > 0 and 0 < r.hold_outs <= HOLD_OUTS_MAX
        for r in rungs
    )
    if not rungs or not fewer or not fits:
        raise RefusedError(
            f"--rungs {text:.80}: expected TRIALS:EPOCHS:HOLDOUTS of each rung, with fewer trials "
            f"on each, at most {TRIALS_MAX} trials and {HOLD_OUTS_MAX} hold-outs, such as "
            "48:10:2,16:30:3,5:90:5"
        )
    return rungs


def searched_hold_out(store: Store) -> Callable[[Rows, int], tuple[Rows, Rows]]:
    """(training rows, seed) -> (rows left for training, rows held out), as a search does it."""

    def split(train: Rows, seed: int) -> tuple[Rows, Rows]:
        return hold_out(store, train, HELD_OUT_SHARE, seed)

    return split


def plan_search(
    base: MethodConfig,
    space: Space,
    fold: str,
    rungs: Sequence[Rung],
    seed: int,
    check: Callable[[Sequence[Run]], None],
) -> Search:
    """The trials of a search, drawn by ``seed``; the first is the base itself.

    ``check`` raises RefusedError for runs that the store cannot train; others are drawn instead.
    """
    search = Search(base, fold, tuple(rungs), (base,))
    for rung in rungs:
        check(search.runs(base, rung))
    rng = np.random.default_rng(seed)
    trials, why = [base], "the space has no more"
    for _ in range(DRAWS * rungs[0].trials):
        if len(trials) == rungs[0].trials:
            return replace(search, trials=tuple(trials))
        method = space.draw(rng, base)
        try:
            for rung in rungs:
                check(search.runs(method, rung))
        except RefusedError as error:
            why = str(error)
            continue
        if method not in trials:
            trials.append(method)
    raise RefusedError(
        f"only {len(trials)} of {rungs[0].trials} different settings were found that can be "
        f"trained: {why}; use fewer trials in --rungs, or a larger --space"
    )


def halve(
    search: Search, records: Records, train: Callable[[Sequence[Run]], object]
) -> list[Trial]:
    """Train and score the trials rung by rung; the best one first.

    ``train`` trains those of the runs that have no record.  Of equal trials, the earlier one is
    better.
    """
    trials = [Trial(number, method) for number, method in enumerate(search.trials)]
    out: list[Trial] = []
    for rung in search.rungs:
        trials, left = trials[: rung.trials], trials[rung.trials :]
        out = left + out
        train([run for trial in trials for run in search.runs(trial.method, rung)])
        scored = [_scored(trial, search.runs(trial.method, rung), records) for trial in trials]
        trials = sorted(scored, key=_rank)
    return trials + out


def _with(method: MethodConfig, epochs: int, selection: dict[str, Any]) -> MethodConfig:
    settings = method.model_dump()
    settings["optimiser"]["epochs"] = epochs
    return method_from(settings | {"selection": selection}, f"{epochs} epochs")


def _scored(trial: Trial, runs: Sequence[Run], records: Records) -> Trial:
    found = [records.find(run) for run in runs]
    lost = [record.damage for record in found if record is not None and record.damage]
    if lost:
        raise RefusedError(f"{lost[0]}; search again with --retrain-damaged")
    results = [(r.folder.name, r.result) for r in found if r is not None and r.result is not None]
    assert len(results) == len(runs)
    own = tuple(
        HeldOut(name, result.get("uar"), result.get("war"), result["seconds"])
        for name, result in results
    )
    return replace(trial, rungs=(*trial.rungs, own))


def _rank(trial: Trial) -> tuple[float, int]:
    score = trial.scores[-1]
    return (math.inf if math.isnan(score) else -score), trial.number
