"""What train, ablate and compare share: training with a progress bar."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cache.errors import DamagedError, RefusedError
from cli.options import DEFAULT_CONFIG, DEFAULT_RUNS, LOGS
from cli.progress import progress
from cli.show import count, next_step, show
from pipeline.resources import check_folder, check_writable

if TYPE_CHECKING:
    from cache.store import Store
    from pipeline.config import Run
    from pipeline.engines.choose import EngineChoice
    from pipeline.evaluate.baselines import PredictedLabels
    from pipeline.train.features import TrainingData
    from pipeline.train.records import Records

DONE_WITHOUT_DAMAGED = 3


def open_records(
    runs: Sequence["Run"],
    store: "Store",
    root: Path,
    device: str,
    allow_missing: bool,
    allow_duplicates: bool,
) -> "Records":
    """The records below ``root``, after a check that the store can train the runs."""
    from pipeline.device import device_kind
    from pipeline.train.grid import check_runs
    from pipeline.train.records import Records

    for place in (root, root / ".tmp", root / ".locks"):
        check_folder(place, "--runs")
    check_runs(runs, store, allow_missing=allow_missing, allow_duplicates=allow_duplicates)
    return Records(root, store, device_kind(device))


def train_pending(
    runs: Sequence["Run"],
    records: "Records",
    device: str,
    workers: int | None,
    features: str,
    engine: "EngineChoice",
) -> int:
    """Train the runs that have no record, with a progress bar; returns how many it trained.

    Runs that another process is training are waited for.
    """
    from pipeline.train.grid import train_runs

    pending = records.pending(runs)
    place = engine.place(device) if pending else ""
    prepare_folder(runs, pending, records)
    if not pending:
        return 0
    with progress(_title(pending), _epochs(pending), "epochs") as shown:
        return train_runs(
            runs,
            records,
            place,
            shown.advance,
            workers,
            on_wait=print_waiting,
            features=features,
            engine=engine,
        )


@dataclass(frozen=True)
class Training:
    """How a command trains the runs that are missing, by options that several commands have."""

    runs: Path
    device: str
    workers: int | None
    features: str
    engine: "EngineChoice"
    allow_missing: bool
    allow_duplicates: bool
    retrain_damaged: bool
    log: str | None

    @classmethod
    def asked(cls, context: typer.Context) -> "Training":
        """As the options of the command say."""
        from pipeline.engines.choose import choose_engine

        given = context.params
        cluster = (given[name] for name in ("engine", "gpus", "engine_set", "device", "workers"))
        own = {name: given[name] for name in cls.__dataclass_fields__}
        return cls(**{**own, "engine": choose_engine(*cluster)})

    def __call__(
        self, wanted: "Sequence[Run]", store: "Store", also: "Sequence[Run]" = ()
    ) -> "tuple[Records, int, int]":
        """(records, all finished but damaged ones; how many these are; how many it trained).

        Before any is trained, it is checked that the store can train them, and ``also`` others.
        """
        check_log(self.log)
        allowed = self.allow_missing, self.allow_duplicates
        records = open_records([*wanted, *also], store, self.runs, self.device, *allowed)
        damaged = report_damaged(wanted, records, self.retrain_damaged)
        trained = train_pending(
            wanted, records, self.device, self.workers, self.features, self.engine
        )
        log_finished(self.log, wanted, records)
        return records, damaged, trained


def search_regressions(
    store: "Store", root: Path, folds: Sequence[str], retrain_damaged: bool
) -> "PredictedLabels":
    """The searched logistic regression of some folds; what is not kept below ``root`` is searched.

    Refuses a folder that cannot be written, and damaged files unless they are to be replaced,
    before the search.
    """
    from pipeline.evaluate.baselines import fits, together
    from pipeline.train.regressions import Regressions

    kept = Regressions(root, store)
    if (damaged := kept.damaged(folds)) and not retrain_damaged:
        raise DamagedError(
            f"{next(iter(damaged.values()))} is not as it was left; search again with "
            "--retrain-damaged"
        )
    if lacking := kept.lacking(folds):
        check_writable(root, "--runs")
        with progress("searching logistic regressions", fits(store, lacking), "fits") as shown:
            kept.search(lacking, shown.advance)
    return together([own for own in map(kept.find, folds) if own is not None])


def train_pending_live(runs: Sequence["Run"], data: "TrainingData", records: "Records") -> int:
    """Train the runs that have no record one after the other, in this process; returns how many."""
    from pipeline.train.grid import train_live

    pending = records.pending(runs)
    prepare_folder(runs, pending, records)
    with progress(f"{_title(pending)} without a cache", _epochs(pending), "epochs") as shown:
        return train_live(pending, data, records, shown.advance, print_waiting)


def prepare_folder(runs: Sequence["Run"], pending: Sequence["Run"], records: "Records") -> None:
    """Look at the folder of the records: can it be written, what did a kill leave, what differs?"""
    if pending:
        check_writable(records.root, "--runs")
    records.sweep()
    _print_others(runs, records)


def _title(runs: Sequence["Run"]) -> str:
    return f"training {count(len(runs), 'run')}"


def _epochs(runs: Sequence["Run"]) -> int:
    return sum(run.method.optimiser.epochs for run in runs)


def print_waiting(runs: int) -> None:
    """Say that other processes are training some of the runs."""
    print(
        f"waiting for {count(runs, 'run')} that another process is training; if it dies, training "
        "goes on here",
        file=sys.stderr,
    )


def report_damaged(runs: Sequence["Run"], records: "Records", retrain: bool) -> int:
    """Name the runs whose records are damaged, which stay as they are; returns how many.

    With ``retrain`` they are removed first, so that they are trained like any other.
    """
    found, damaged = records.settle_damaged(runs, retrain)
    for record in found:
        print(f"damaged: {show(record.damage)}", file=sys.stderr)
    if damaged:
        remedy = "remove them yourself" if retrain else "train again with --retrain-damaged"
        print(f"{count(len(damaged), 'damaged run')} left as found; {remedy}", file=sys.stderr)
    return len(damaged)


def check_log(logger: str | None) -> None:
    """Refuse, before any training, a folder to which the logger cannot write."""
    if logger is not None:
        check_writable(LOGS / logger, "--log")


def log_finished(logger: str | None, runs: Sequence["Run"], records: "Records") -> None:
    """Log the finished ones of ``runs``, if a logger was asked for, and say how to see them."""
    if logger is None:
        return
    from pipeline.report.logged import PROJECT, log_runs

    found = filter(None, map(records.find, records.distinct(runs)))
    logged = log_runs(logger, [record for record in found if not record.damage], LOGS)
    folder = LOGS / logger
    print(f"{count(logged, 'run')} logged in {folder}", file=sys.stderr)
    if logger == "tensorboard":
        next_step("tensorboard", "--logdir", folder)
    else:
        next_step("env", f"TRACKIO_DIR={folder}", "trackio", "show", "--project", PROJECT)


def as_asked(
    store: object, runs: Path, config: str, settings: Sequence[str], seeds: int
) -> list[object]:
    """The options with which another command counts the same runs."""
    options: list[object] = ["--store", store]
    if runs != DEFAULT_RUNS:
        options += ["--runs", runs]
    if config != DEFAULT_CONFIG:
        options += ["--config", config]
    for setting in settings:
        options += ["--set", setting]
    return [*options, "--seeds", seeds] if seeds > 1 else options


def refuse_to_pool(store: "Store") -> None:
    """Refuse a store whose folds cannot be pooled, because several test the same video."""
    if again := _tested_again(store):
        video, folds = again
        raise RefusedError(
            f"{store.path}: compare counts every video once, but video {video} is tested in "
            f"{len(folds)} folds, {folds[0]}, {folds[1]}{', …' if len(folds) > 2 else ''}; use "
            "tgdfer ablate, which compares runs fold by fold"
        )


def suggest_comparison(store: "Store", *options: object) -> None:
    """Name the next command, unless it would refuse the store."""
    if not _tested_again(store):
        next_step("tgdfer", "compare", *options)


def _tested_again(store: "Store") -> tuple[str, list[str]] | None:
    """A video that several folds test, and these folds."""
    folds: dict[int, list[str]] = {}
    for name, _, test in store.folds:
        for row in test.tolist():
            folds.setdefault(row, []).append(name)
    return next(((store.ids[row], own) for row, own in folds.items() if len(own) > 1), None)


def leave_if_damaged(damaged: int) -> None:
    """End the command with its exit code if damaged runs are missing from what it made."""
    if damaged:
        raise typer.Exit(DONE_WITHOUT_DAMAGED)


def _print_others(runs: Sequence["Run"], records: "Records") -> None:
    from pipeline.train.records import describe_others

    for line in describe_others(records.others(runs)):
        where = f"they stay in {records.root}; see tgdfer runs"
        print(show(f"not used: {line} ({where})"), file=sys.stderr)
