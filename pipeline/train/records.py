"""Outcome of a run <-> its folder: settings, metrics, predictions, frame logits, checkpoint.

A folder's name is the digest of everything its numbers depend on. ``result.json`` is written last:
a folder without it is an unfinished run and does not count. Tables are made from these files alone.
"""

import csv
import io
import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache.files import (
    canonical_json,
    locked,
    make_directories,
    remove_file,
    sha256,
    sweep,
    write_files,
)
from cache.identity import flatten
from cache.store import LIVE, Store
from pipeline.config import Run
from pipeline.evaluate.influence import influence
from pipeline.evaluate.metrics import confusion, recalls, uar, war
from pipeline.train.code import code_files

if TYPE_CHECKING:
    from pipeline.train.selection import Outcome
    from pipeline.train.state import RunState

LIBRARIES = ("tgdfer", "torch", "open_clip_torch", "numpy", "zarr")
# Every file that a run may leave, in the order of removal.
FILES = (
    "result.json",
    "resume.safetensors",
    "checkpoint.safetensors",
    "encoder/open_clip_model.safetensors",
    "encoder/open_clip_config.json",
    "attention.npy",
    "frame_logits.npy",
    "predictions.csv",
    "metrics.csv",
    "run.json",
)
DIGITS = 16  # of a folder's name


@dataclass(frozen=True)
class Record:
    """What a run left in its folder, finished or not."""

    folder: Path
    metadata: dict[str, Any]  # content of run.json
    result: dict[str, Any] | None  # content of result.json; None while unfinished

    @property
    def ok(self) -> bool:
        """Whether the run finished and did not diverge."""
        return self.result is not None and self.result["status"] == "done"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the numbers depend on, with dotted names."""
        return flatten(self.metadata.get("identity", {}))

    @property
    def run(self) -> Run:
        """The configuration, fold and seed."""
        return Run.model_validate(self.metadata["run"])

    def changed_code(self) -> list[str]:
        """The files of the code that computed it which are not as they are now."""
        now = code_files(live=str(self.identity.get("store", "")).startswith(LIVE))
        then = self.metadata.get("code", {})
        return sorted(f for f in now.keys() | then.keys() if now.get(f) != then.get(f))

    def predictions(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """(ids, labels, predicted classes) of the test videos."""
        with (self.folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        labels = np.array([int(row["label"]) for row in rows])
        predicted = np.array([int(row["predicted"]) for row in rows])
        return [row["id"] for row in rows], labels, predicted

    def frame_logits(self) -> NDArray[np.float32]:
        """cos(x_t, label_k) / tau of the test videos, [N, T, K], in the order of predictions."""
        return self._load("frame_logits.npy")

    def attention(self) -> NDArray[np.float32]:
        """Frame weights of the visual prompts, [N, T, K]; NaN where the method has none."""
        return self._load("attention.npy")

    def _load(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = np.load(self.folder / name, allow_pickle=False)
        return array


@dataclass(frozen=True)
class Records:
    """The folder that holds one folder per run, for one store, device and version of the code."""

    root: Path
    store: Store
    device: Literal["cpu", "cuda"] = "cpu"
    code_files: dict[str, str] = field(default_factory=code_files)

    @property
    def code(self) -> str:
        """Digest of the code that computes the runs."""
        return sha256(canonical_json(self.code_files))

    def identity(self, run: Run) -> dict[str, Any]:
        """Everything the numbers of ``run`` depend on."""
        optimiser = run.method.optimiser
        # The store's digest says more than what was required of it.
        settings = run.method.model_dump(
            mode="json", exclude={"store": True, "optimiser": {"milestones", "precision"}}
        )
        settings["optimiser"]["decays"] = list(optimiser.decays())
        return {
            "method": settings,
            "precision": optimiser.resolved_precision(self.device),
            "fold": run.fold,
            "seed": run.seed,
            "store": self.store.digest,
            "device": self.device,
            "code": self.code,
        }

    def folder(self, run: Run) -> Path:
        """Where the record of ``run`` is, or will be."""
        return self.root / sha256(canonical_json(self.identity(run)))[:DIGITS]

    def find(self, run: Run) -> Record | None:
        """The record of ``run``, or None if it is not finished."""
        record = read_record(self.folder(run))
        return record if record is not None and record.result is not None else None

    def pending(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that are not finished, without duplicates."""
        unique: dict[Path, Run] = {}
        for run in runs:
            unique.setdefault(self.folder(run), run)
        return [run for folder, run in unique.items() if not isfile(folder / "result.json")]

    @contextmanager
    def claim(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Claim, within the context, the runs that are neither finished nor claimed elsewhere."""
        locks_folder = make_locks(self.root)
        files = {run: locks_folder / self.folder(run).name for run in runs}
        with ExitStack() as locks:
            got = [run for run in runs if locks.enter_context(locked(files[run], wait=False))]
            yield self.pending(got)
            for run in set(got).difference(self.pending(got)):
                files[run].unlink(missing_ok=True)  # nobody claims a finished run

    def is_free(self, run: Run) -> bool:
        """Whether no other process is training ``run``; where locks do not work, always."""
        with locked(make_locks(self.root) / self.folder(run).name, wait=False) as got:
            return got

    def sweep(self) -> None:
        """Remove what killed processes left; does nothing where that is not allowed.

        That is: scratch files, locks that nobody holds, and the states of finished runs. Another
        process that is writing puts up with it.
        """
        with suppress(OSError):
            if (self.root / ".tmp").is_dir():
                sweep(self.root / ".tmp")
            for lock in (self.root / ".locks").glob("*"):
                with locked(lock, wait=False) as got:
                    if got:
                        lock.unlink(missing_ok=True)
            for state in self.root.glob(f"{'?' * DIGITS}/resume.safetensors"):
                if (state.parent / "result.json").is_file():
                    remove_file(state)

    def epochs_done(self, run: Run) -> int:
        """Number of epochs of an unfinished run that are done and saved."""
        from pipeline.train.state import epochs_done

        return epochs_done(self.folder(run))

    def read_state(self, run: Run) -> "RunState | None":
        """The saved state of an unfinished run, if any."""
        from pipeline.train.state import read_state

        return read_state(self.folder(run))

    def write_state(self, run: Run, state: "RunState") -> None:
        """Save the state of an unfinished run."""
        from pipeline.train.state import write_state

        folder, scratch = self.folder(run), self.root / ".tmp"
        write_state(folder, state, scratch)
        if not (folder / "run.json").is_file():
            write_files({folder / "run.json": _json(self._metadata(run))}, scratch)

    def others(self, runs: Sequence[Run]) -> list[tuple[Record, list[str]]]:
        """Finished records with the same settings, fold and seed that do not count, and why."""
        asked = {_settings(identity): identity for identity in map(self.identity, runs)}
        own = {self.folder(run) for run in runs}
        found = []
        for record in read_records(self.root):
            identity = record.metadata.get("identity", {})
            mine = asked.get(_settings(identity)) if record.result else None
            if mine is not None and record.folder not in own:
                found.append((record, _differences(record, mine)))
        return found

    def write(self, outcome: "Outcome", seconds: float) -> Path:
        """Write the record of a finished run; returns its folder."""
        from safetensors.torch import save

        from pipeline.train.state import remove_state

        folder, scratch = self.folder(outcome.run), self.root / ".tmp"
        predictions = outcome.selected.predictions
        make_directories(folder, scratch)
        contents = {
            "run.json": _json(self._metadata(outcome.run)),
            "metrics.csv": _metrics(outcome),
            "predictions.csv": _predictions(outcome, self.store),
            "frame_logits.npy": _npy(predictions.frame_logits_NTK),
            "attention.npy": _npy(predictions.attention_NTK),
            "checkpoint.safetensors": save(outcome.selected.parameters),
        }
        if outcome.selected.encoder_files:
            make_directories(folder / "encoder")
            files = outcome.selected.encoder_files
            contents |= {f"encoder/{name}": data for name, data in files.items()}
        write_files({folder / name: data for name, data in contents.items()}, scratch)
        result = _result(outcome, self.store) | {
            "seconds": round(seconds, 2),
            "sha256": {name: sha256(data) for name, data in contents.items()},
        }
        write_files({folder / "result.json": _json(result)}, scratch)
        remove_state(folder)
        return folder

    def _metadata(self, run: Run) -> dict[str, Any]:
        import torch

        versions = {name: version(name) for name in LIBRARIES}
        return {
            "run": run.model_dump(mode="json"),
            "identity": self.identity(run),
            "store": self.store.identity.model_dump(mode="json"),
            "data": self.store.name,
            "classes": list(self.store.classes),
            "missing_videos": len(self.store.missing),
            "versions": versions | {"python": platform.python_version()},
            "threads": torch.get_num_threads(),
            "code": self.code_files,
        }


def describe_others(others: Sequence[tuple[Record, list[str]]]) -> list[str]:
    """How many finished records with the same settings do not count, and what differs."""
    counts = Counter(", ".join(reasons) for _, reasons in others)
    return [
        f"{count} finished run{'s' * (count > 1)} with the same settings, other {what}"
        for what, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder; None if there is no readable ``run.json``."""
    try:
        metadata = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except FileNotFoundError:
        result = None
    return Record(folder, metadata, result)


def read_records(root: Path) -> Iterator[Record]:
    """Every record below ``root``, for any store, device and code."""
    for folder in sorted(root.glob("?" * DIGITS)):
        record = read_record(folder)
        if record is not None:
            yield record


def remove_record(record: Record) -> bool:
    """Remove a run's files; False if it is in training, or if other files remain.

    ``result.json`` goes first, so that whatever a kill leaves counts as unfinished.
    """
    folder = record.folder
    locks = make_locks(folder.parent)
    with locked(locks / folder.name, wait=False) as got:
        places = [place for place in (folder / "encoder", folder) if place.is_dir()]
        if not got or any(place.is_symlink() for place in places):
            return False
        for name in FILES:
            if (folder / name).exists():
                remove_file(folder / name)
        for place in places:
            with suppress(OSError):  # other files are in it
                place.rmdir()
        (locks / folder.name).unlink(missing_ok=True)
    return not folder.exists()


def make_locks(root: Path) -> Path:
    """The folder for the locks of runs in training, each named after its run's folder."""
    make_directories(root / ".locks")
    return root / ".locks"


def _settings(identity: dict[str, Any]) -> bytes:
    """What was asked for, as opposed to the data, code and device that computed it."""
    return canonical_json({name: identity.get(name) for name in ("method", "fold", "seed")})


def _differences(record: Record, mine: dict[str, Any]) -> list[str]:
    """How a record with the same settings differs: "store", "code (FILES)", …"""
    theirs = record.metadata["identity"]
    reasons = [name for name in ("store", "device", "precision") if theirs[name] != mine[name]]
    changed = record.changed_code()
    return [*reasons, f"code ({', '.join(changed)})"] if changed else reasons


def _result(outcome: "Outcome", store: Store) -> dict[str, Any]:
    result: dict[str, Any] = {
        "status": "diverged" if outcome.diverged else "done",
        "selection": outcome.run.method.selection.rule,
        "epoch": outcome.epoch,
        "train_videos": len(outcome.split.train),
        "test_videos": len(outcome.split.test),
    }
    if outcome.diverged:
        return result
    labels, predicted = store.labels[outcome.split.test], outcome.selected.predictions.labels_N
    counts = confusion(labels, predicted, len(store.classes))
    by_class = zip(store.classes, recalls(counts).tolist(), strict=True)
    return result | {
        "uar": float(uar(counts)),
        "war": float(war(counts)),
        "recalls": {name: None if np.isnan(recall) else recall for name, recall in by_class},
    }


def _metrics(outcome: "Outcome") -> bytes:
    return _csv(list(outcome.epochs[0]), [list(row.values()) for row in outcome.epochs])


def _predictions(outcome: "Outcome", store: Store) -> bytes:
    """One line per test video: its logits, and each frame's influence on the prediction."""
    predictions = outcome.selected.predictions
    predicted = predictions.labels_N
    temperature = outcome.run.method.label.temperature
    cosines_NT = temperature * influence(predictions.frame_logits_NTK, predicted)
    header = ["id", "label", "predicted"]
    header += [f"logit_{name}" for name in store.classes]
    header += [f"influence_{frame}" for frame in range(store.frames)]
    rows = [
        [
            store.ids[row],
            int(store.labels[row]),
            int(predicted[n]),
            *predictions.logits_NK[n].tolist(),
            *cosines_NT[n].round(6).tolist(),
        ]
        for n, row in enumerate(outcome.split.test)
    ]
    return _csv(header, rows)


def _npy(array: NDArray[np.float32]) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _csv(header: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
