"""Outcome of a run -> its folder: settings, metrics, predictions, frame logits, checkpoint.

A folder's name is the digest of everything its numbers depend on. ``result.json`` is written last:
a folder without it is an unfinished run and does not count. Tables are made from these files alone.
"""

import io
import json
import os
import platform
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache.files import (
    canonical_json,
    csv_bytes,
    locked,
    make_directories,
    remove_file,
    sha256,
    sweep,
    write_files,
)
from cache.store import Store
from pipeline.config import Run
from pipeline.evaluate.influence import influence
from pipeline.train.code import code_files
from pipeline.train.record import (
    FILES,
    FOLDERS,
    Record,
    identity_of,
    name_of,
    read_record,
    read_records,
    scores,
)

if TYPE_CHECKING:
    from pipeline.train.selection import Outcome
    from pipeline.train.state import RunState

LIBRARIES = ("tgdfer", "torch", "open_clip_torch", "numpy", "zarr")


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
        return identity_of(run, self.store.digest, self.device, self.code)

    def folder(self, run: Run) -> Path:
        """Where the record of ``run`` is, or will be."""
        return self.root / name_of(self.identity(run))

    def find(self, run: Run) -> Record | None:
        """The record of ``run``, which may be damaged, or None if it is not finished."""
        record = read_record(self.folder(run), self.store)
        return None if record is None or record.status == "unfinished" else record

    def distinct(self, runs: Sequence[Run]) -> list[Run]:
        """The first of all runs that have the same record."""
        unique: dict[Path, Run] = {}
        for run in runs:
            unique.setdefault(self.folder(run), run)
        return list(unique.values())

    def pending(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that are neither finished nor damaged, without duplicates."""
        return [run for run in self.distinct(runs) if _is_pending(self.folder(run))]

    def damaged(self, runs: Sequence[Run], networks: bool = False) -> list[Record]:
        """The damaged records of ``runs``, without duplicates; ``networks`` are read if asked."""
        folders = dict.fromkeys(map(self.folder, runs))
        found = filter(None, (read_record(folder, self.store) for folder in folders))
        records = (record.with_network() if networks else record for record in found)
        return [record for record in records if record.damage]

    def settle_damaged(
        self, runs: Sequence[Run], retrain: bool
    ) -> tuple[list[Record], list[Record]]:
        """(damaged records of ``runs``, those of them that stay).

        With ``retrain`` they are removed, which makes their runs pending, as far as that is safe.
        """
        found = self.damaged(runs, networks=retrain)
        if retrain:
            for record in found:
                remove_record(record)
        return found, self.damaged(runs) if retrain and found else found

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
            for lock in (self.root / ".locks").glob(FOLDERS):
                with locked(lock, wait=False) as got:
                    if got:
                        lock.unlink(missing_ok=True)
            for folder in self.root.glob(FOLDERS):
                if os.path.lexists(folder / "resume.safetensors"):
                    record = read_record(folder)
                    if record is not None and record.status in ("done", "diverged"):
                        remove_file(folder / "resume.safetensors")

    def epochs_done(self, run: Run) -> int:
        """Number of epochs of an unfinished run that are done and saved; looks at no tensor."""
        from pipeline.train.state import epochs_done

        return epochs_done(self.folder(run))

    def epochs_kept(self, run: Run) -> int:
        """Number of epochs of an unfinished run from which it can resume; reads its whole state."""
        from pipeline.train.state import StateError

        try:
            state = self.read_state(run)
        except StateError:
            return 0
        return state.epoch if state is not None else 0

    def read_state(self, run: Run) -> "RunState | None":
        """The saved state of an unfinished run, if any; raises StateError if it is damaged."""
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
            mine = asked.get(_settings(identity)) if record.finished else None
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
            "data": self.store.title,
            "classes": list(self.store.classes),
            "texts": self.store.texts,  # of the data set's own; None: those of texts.toml
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


def remove_record(record: Record) -> str:
    """Remove a run's files; returns why it stays, or "" if it is gone.

    ``result.json`` goes first, so that whatever a kill leaves counts as unfinished. Nothing is
    removed from a folder that is a link, or that holds folders in the place of files.
    """
    folder = record.folder
    locks = make_locks(folder.parent)
    with locked(locks / folder.name, wait=False) as got:
        places = [place for place in (folder / "encoder", folder) if os.path.lexists(place)]
        if not got:
            return "it is in training"
        if any(place.is_symlink() for place in places):
            return "it is a link"
        found = [folder / name for name in FILES if os.path.lexists(folder / name)]
        if any(stat.S_ISDIR(path.lstat().st_mode) for path in found):
            return "it holds a folder in the place of a file"
        for path in found:
            remove_file(path)
        for place in places:
            with suppress(OSError):  # other files are in it
                place.rmdir()
        (locks / folder.name).unlink(missing_ok=True)
    return "it holds other files" if folder.exists() else ""


def make_locks(root: Path) -> Path:
    """The folder for the locks of runs in training, each named after its run's folder."""
    make_directories(root / ".locks")
    return root / ".locks"


def _is_pending(folder: Path) -> bool:
    if os.path.lexists(folder / "result.json"):
        return False
    record = read_record(folder)
    return record is None or not record.broken


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
        f"{outcome.run.method.selection.tested_on}_videos": len(outcome.split.test),
        "prompt_layout": outcome.layout,
    }
    if outcome.run.method.optimiser.target == "votes":
        result["voted_videos"] = int(store.voted[outcome.split.train].sum())
    if outcome.diverged:
        return result
    labels, predicted = store.labels[outcome.split.test], outcome.selected.predictions.labels_N
    return result | scores(labels, predicted, list(store.classes))


def _metrics(outcome: "Outcome") -> bytes:
    return csv_bytes(list(outcome.epochs[0]), [list(row.values()) for row in outcome.epochs])


def _predictions(outcome: "Outcome", store: Store) -> bytes:
    """One line per test video: its logits, and each frame's influence on the prediction."""
    predictions = outcome.selected.predictions
    predicted = predictions.labels_N
    scale = outcome.run.method.influence_scale
    influence_NT = scale * influence(predictions.frame_logits_NTK, predicted)
    header = ["id", "label", "predicted"]
    header += [f"logit_{name}" for name in store.classes]
    chosen = outcome.run.method.input.chosen(store.frames)
    header += [f"influence_{frame}" for frame in chosen]
    rows = [
        [
            store.ids[row],
            int(store.labels[row]),
            int(predicted[n]),
            *predictions.logits_NK[n].tolist(),
            *influence_NT[n].round(6).tolist(),
        ]
        for n, row in enumerate(outcome.split.test)
    ]
    return csv_bytes(header, rows)


def _npy(array: NDArray[np.float32]) -> bytes:
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
