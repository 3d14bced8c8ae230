"""What a command trains -> a file beside the runs, through which another shell watches it.

The command holds a lock of the same name while it lives. A file whose lock nobody holds was left by
a command that was killed, and is removed by whoever sees it.
"""

import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from cache.errors import RefusedError
from cache.files import canonical_json, locked, make_directories, remove_file, write_files
from cache.identity import flatten
from cache.outside import read_text
from pipeline.config import Run, effective
from pipeline.train.record import FOLDERS, read_record
from pipeline.train.records import Records, make_locks

FOLDER = ".watched"
WATCHED_BYTES_MAX = 1 << 26
BASE = "base"  # settings that most runs share

Status = Literal["finished", "running", "waiting", "diverged", "damaged"]


class WatchedRun(BaseModel):
    """A run as the command that trains it has announced it."""

    folder: str = Field(pattern="^[0-9a-f]{16}$")
    settings: str  # in which it differs from most of the others
    fold: str
    seed: int
    epochs: int = Field(ge=0)
    epochs_before: int = Field(ge=0)  # done when the command began


class Watched(BaseModel):
    """What a command that is alive trains."""

    command: str
    began: float  # seconds since 1970
    runs: tuple[WatchedRun, ...] = Field(min_length=1)


class Look(BaseModel):
    """How far a run is."""

    run: WatchedRun
    status: Status
    epochs: int  # done and kept


@contextmanager
def watched(records: Records, runs: Sequence[Run]) -> Iterator[None]:
    """Within the context, other shells can watch how ``runs``, without duplicates, are trained."""
    name = secrets.token_hex(8)
    file, lock = records.root / FOLDER / f"{name}.json", make_locks(records.root) / name
    announced = Watched(
        command=" ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        began=time.time(),
        runs=tuple(
            WatchedRun(
                folder=records.folder(run).name,
                settings=settings,
                fold=run.fold,
                seed=run.seed,
                epochs=run.method.optimiser.epochs,
                epochs_before=records.epochs_done(run),
            )
            for run, settings in zip(runs, _settings(runs), strict=True)
        ),
    )
    make_directories(file.parent, records.root / ".tmp")
    with locked(lock, wait=False):
        write_files({file: canonical_json(announced.model_dump())}, records.root / ".tmp")
        try:
            yield
        finally:
            remove_file(file)
            remove_file(lock)


def read_watched(root: Path) -> list[Watched]:
    """What is trained below ``root`` now, the oldest command first."""
    found = []
    for file in (root / FOLDER).glob(f"{FOLDERS}.json"):
        with locked(make_locks(root) / file.stem, wait=False) as is_left:
            if is_left:
                remove_file(file)
                remove_file(root / ".locks" / file.stem)
                continue
        try:
            text = read_text(file, "what a command trains", WATCHED_BYTES_MAX)
            found.append(Watched.model_validate_json(text))
        except (RefusedError, ValidationError):  # it has just ended, or somebody wrote this
            continue
    return sorted(found, key=lambda one: one.began)


def look(root: Path, command: Watched) -> list[Look]:
    """How far each run of a command is."""
    return [_look(root, run) for run in command.runs]


def seconds_left(command: Watched, looks: Sequence[Look], now: float) -> float | None:
    """From the epochs that were done since the command began; None before the first."""
    done = sum(one.epochs - one.run.epochs_before for one in looks)
    left = sum(one.run.epochs - one.epochs for one in looks)
    return (now - command.began) * left / done if done > 0 else None


def _look(root: Path, run: WatchedRun) -> Look:
    from pipeline.train.state import epochs_done

    folder = root / run.folder
    record = read_record(folder) if os.path.lexists(folder / "result.json") else None
    if record and record.status != "unfinished":
        ended: Status = "finished" if record.status == "done" else record.status
        return Look(run=run, status=ended, epochs=run.epochs)
    with locked(make_locks(root) / run.folder, wait=False) as is_free:
        status: Status = "waiting" if is_free else "running"
    return Look(run=run, status=status, epochs=min(run.epochs, epochs_done(folder)))


def _settings(runs: Sequence[Run]) -> list[str]:
    """In what each run differs from what most runs share."""
    each = [flatten(effective(run.method).model_dump(mode="json")) for run in runs]
    usual = {
        name: Counter(str(own.get(name)) for own in each).most_common(1)[0][0] for name in each[0]
    }
    return [
        ", ".join(f"{n}={value}" for n, value in own.items() if str(value) != usual[n]) or BASE
        for own in each
    ]
