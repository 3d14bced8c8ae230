"""Finished runs -> what TensorBoard or trackio show.

Records stay the truth; this is a copy of what they say, for whoever looks at runs that way. It is
made from records alone, so wherever the runs were trained, and of each of them once::

    logs/tensorboard/NAME/events.out.tfevents.*
    logs/trackio/tgdfer.db
    logs/.tmp/                                  what is being written, or was when it was killed

NAME ends in digests of the run's identity and of its result.
"""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cache.files import (
    canonical_json,
    locked,
    make_directories,
    sha256,
    storage_errors,
    sync_directory,
)
from cache.identity import flatten
from pipeline.config import PRESETS, MethodConfig, effective, load_method
from pipeline.report.runs import row_of
from pipeline.train.record import Record

PROJECT = "tgdfer"  # of trackio
NAME_CHARS_MAX = 120  # before the digests
KEY_CHARS = 16  # of both digests


@dataclass(frozen=True)
class LoggedRun:
    """A finished run as loggers take it."""

    name: str
    settings: dict[str, bool | int | float | str]
    epochs: list[dict[str, float]]  # values by the columns of metrics.csv
    reported: dict[str, float]  # UAR and WAR in [0, 1]; nothing if the run diverged


def log_runs(logger: str, records: Iterable[Record], root: Path) -> int:
    """Log, below ``root / logger``, the finished runs that are not there; returns how many.

    ``logger`` is ``tensorboard`` or ``trackio``, whose package must be installed. Several processes
    may log at once. Raises StorageError if the disk is full or read-only.
    """
    runs = [_logged(record) for record in records]
    folder = root / logger
    make_directories(folder)
    with locked(root / ".lock", wait=True), storage_errors(folder):
        return _WRITERS[logger](runs, folder)


def name_of_run(record: Record) -> str:
    """A name to read, also as that of a folder; no other run, and no other result, has it.

    For example ``paper,temporal.window=8-fold1-seed0-0123456789abcdef``: the preset that is
    nearest, and the settings in which the run differs from it.
    """
    run = record.run
    assert record.result is not None
    text = f"{_describe(run.method)}-fold{run.fold}-seed{run.seed}"
    if len(text) > NAME_CHARS_MAX:
        text = f"{text[: NAME_CHARS_MAX // 2]}..{text[-NAME_CHARS_MAX // 2 :]}"
    key = record.folder.name[: KEY_CHARS // 2]
    key += sha256(canonical_json(record.result["sha256"]))[: KEY_CHARS // 2]
    return re.sub(r"[^\w.,=+-]", "_", f"{text}-{key}", flags=re.ASCII)


def _logged(record: Record) -> LoggedRun:
    assert record.result is not None
    row = row_of(record) | {"code": record.identity["code"][:8]}
    columns = record.epochs()
    return LoggedRun(
        name_of_run(record),
        {name: _plain(row[name]) for name in row if name not in ("damage", "uar", "war")},
        [
            dict(zip(columns, map(float, own), strict=True))
            for own in zip(*columns.values(), strict=True)
        ],
        {f"reported_{score}": record.result[score] for score in ("uar", "war") if record.ok},
    )


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _describe(method: MethodConfig) -> str:
    own = _settings(method)
    changes = {
        preset: [f"{name}={value}" for name, value in own.items() if usual.get(name) != value]
        for preset, usual in _preset_settings().items()
    }
    nearest = min(changes, key=lambda preset: len(changes[preset]))
    return ",".join([nearest, *changes[nearest]])


@cache
def _preset_settings() -> dict[str, dict[str, Any]]:
    return {preset: _settings(load_method(preset)) for preset in PRESETS}


def _settings(method: MethodConfig) -> dict[str, Any]:
    return flatten(effective(method).model_dump(mode="json"))


def _missing(runs: Sequence[LoggedRun], names: Iterable[str]) -> list[LoggedRun]:
    """The runs that have none of these names, by the digests in them."""
    known = {name[-KEY_CHARS:] for name in names}
    return [run for run in runs if run.name[-KEY_CHARS:] not in known]


def _log_events(runs: Sequence[LoggedRun], folder: Path) -> int:
    """Each run as a folder with an event file, which is made elsewhere and renamed."""
    new, scratch = _missing(runs, os.listdir(folder)), folder.parent / ".tmp"
    for run in new:
        if scratch.exists():
            shutil.rmtree(scratch)
        _write_events(run, scratch)
        scratch.rename(folder / run.name)
    sync_directory(folder)
    return len(new)


def _write_events(run: LoggedRun, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:
        for scores in run.epochs:
            for column in scores.keys() - {"epoch"}:
                writer.add_scalar(column, scores[column], int(scores["epoch"]))
        writer.add_hparams(run.settings, run.reported, run_name=".")
    for file in folder.iterdir():
        with file.open("rb") as written:
            os.fsync(written)


def _log_trackio(runs: Sequence[LoggedRun], folder: Path) -> int:
    # A process of its own, because trackio looks where to write, and whether to send it somewhere,
    # at variables of the environment when it is imported.
    process = ProcessPoolExecutor(1, get_context("spawn"), _stay_local, (str(folder.absolute()),))
    with process:
        return process.submit(_write_trackio, runs).result()


def _stay_local(folder: str) -> None:
    for name in [name for name in os.environ if name.startswith("TRACKIO_")]:
        del os.environ[name]
    os.environ |= {"TRACKIO_DIR": folder, "HF_HUB_OFFLINE": "1"}


def _write_trackio(runs: Sequence[LoggedRun]) -> int:
    from trackio.sqlite_storage import SQLiteStorage

    new = _missing(runs, SQLiteStorage.get_runs(PROJECT))
    for run in new:
        rows = [*run.epochs[:-1], run.epochs[-1] | run.reported]
        steps = [int(row["epoch"]) for row in rows]
        # One transaction, as of trackio's own imports; a Run of it would hide that writing failed.
        SQLiteStorage.bulk_log(PROJECT, run.name, rows, steps, config=run.settings)
    return len(new)


_WRITERS = {"tensorboard": _log_events, "trackio": _log_trackio}
