"""Outcome of a run <-> its folder: settings, metrics, predictions, frame logits, checkpoint.

``result.json`` is written last: a folder without it is an unfinished run and counts for nothing.
Tables are made from these files alone.
"""

import csv
import hashlib
import io
import json
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.files import make_directories, sha256, write_files
from cache.store import Store
from pipeline.config import Run
from pipeline.evaluate.influence import influence
from pipeline.evaluate.metrics import confusion, recalls, uar, war

if TYPE_CHECKING:
    from pipeline.train.stack import Outcome

LIBRARIES = ("tgdfer", "torch", "open_clip_torch", "numpy", "zarr")


@dataclass(frozen=True)
class Result:
    """A finished run, as tables read it."""

    run: Run
    folder: Path
    summary: dict[str, Any]  # content of result.json

    @property
    def ok(self) -> bool:
        """Whether the run ended with numbers."""
        return bool(self.summary["status"] == "done")

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


def run_folder(root: Path, run: Run, store: Store) -> Path:
    """Where a run's record stands: its name is the digest of all that its result depends on."""
    return root / run.digest(store.digest, version("tgdfer"))


def read_result(root: Path, run: Run, store: Store) -> Result | None:
    """The record of ``run``, or None while it is not finished."""
    folder = run_folder(root, run, store)
    try:
        summary = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    return Result(run, folder, summary)


def write_outcome(root: Path, outcome: "Outcome", store: Store, seconds: float) -> Path:
    """Keep everything about a finished run; returns its folder."""
    from safetensors.torch import save

    folder = run_folder(root, outcome.run, store)
    scratch = root / ".tmp"
    make_directories(folder, scratch)
    checkpoint = save(outcome.state)
    contents = {
        "run.json": _json(_provenance(outcome.run, store)),
        "metrics.csv": _metrics(outcome),
        "predictions.csv": _predictions(outcome, store),
        "frame_logits.npy": _npy(outcome.predicted.frame_logits_NTK),
        "attention.npy": _npy(outcome.predicted.attention_NTK),
        "checkpoint.safetensors": checkpoint,
    }
    if outcome.encoder_files:
        make_directories(folder / "encoder")
        contents |= {f"encoder/{name}": data for name, data in outcome.encoder_files.items()}
    write_files({folder / name: data for name, data in contents.items()}, scratch)
    result = _summary(outcome, store) | {
        "seconds": round(seconds, 2),
        "sha256": {name: sha256(data) for name, data in contents.items()},
    }
    write_files({folder / "result.json": _json(result)}, scratch)
    return folder


def _provenance(run: Run, store: Store) -> dict[str, Any]:
    import torch

    return {
        "run": run.model_dump(mode="json"),
        "store": {"digest": store.digest, "identity": store.identity.model_dump(mode="json")},
        "missing_videos": len(store.missing),
        "versions": {name: version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "source_sha256": source_digest(),
    }


@cache
def source_digest() -> str:
    """sha256 over the source of the method and its training, so that a record names its code."""
    pipeline = Path(__file__).parents[1]
    digest = hashlib.sha256()
    rooms = [pipeline / name for name in ("kernels", "model", "train")]
    for path in sorted(path for room in rooms for path in room.rglob("*")):
        if path.suffix in (".py", ".toml"):
            digest.update(path.relative_to(pipeline).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _summary(outcome: "Outcome", store: Store) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "status": "diverged" if outcome.diverged else "done",
        "selection": outcome.run.method.selection.rule,
        "epoch": outcome.epoch,
        "train_videos": len(outcome.train_rows),
        "test_videos": len(outcome.test_rows),
    }
    if outcome.diverged:
        return summary
    labels, predicted = store.labels[outcome.test_rows], outcome.predicted.logits_NK.argmax(1)
    counts = confusion(labels, predicted, len(store.classes))
    by_class = zip(store.classes, recalls(counts).tolist(), strict=True)
    return summary | {
        "uar": float(uar(counts)),
        "war": float(war(counts)),
        "recalls": {name: None if np.isnan(recall) else recall for name, recall in by_class},
    }


def _metrics(outcome: "Outcome") -> bytes:
    return _csv(list(outcome.epochs[0]), [list(row.values()) for row in outcome.epochs])


def _predictions(outcome: "Outcome", store: Store) -> bytes:
    """One line a test video: its logits, and the influence of each frame on what was predicted."""
    logits_NK = outcome.predicted.logits_NK
    predicted = logits_NK.argmax(1)
    temperature = outcome.run.method.label.temperature
    cosines_NT = temperature * influence(outcome.predicted.frame_logits_NTK, predicted)
    header = ["id", "label", "predicted"]
    header += [f"logit_{name}" for name in store.classes]
    header += [f"influence_{frame}" for frame in range(store.frames)]
    rows = [
        [
            store.ids[row],
            int(store.labels[row]),
            int(predicted[n]),
            *logits_NK[n].tolist(),
            *cosines_NT[n].round(6).tolist(),
        ]
        for n, row in enumerate(outcome.test_rows)
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
