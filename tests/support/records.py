"""Records of runs that were never trained: what they predicted is given."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from cache.files import sha256_file
from pipeline.config import Run
from pipeline.evaluate.predictions import Predictions
from pipeline.train.records import Records
from pipeline.train.selection import Outcome, SelectedEpoch
from pipeline.train.split import Split, scored_rows


def write_record(
    records: Records,
    run: Run,
    predicted: np.ndarray,
    diverged: bool = False,
    frame_logits_NTK: np.ndarray | None = None,
    attention_NTK: np.ndarray | None = None,
    logits_NK: np.ndarray | None = None,
) -> Path:
    """The record of a run that predicts these classes for the test videos of its fold.

    ``logits_NK`` are given if they are not 1 for that class and 0 for all others.
    """
    store = records.store
    test, classes = scored_rows(store, run.fold, run.method.selection, run.seed), len(store.classes)
    given_NK = np.eye(classes)[predicted] if logits_NK is None else logits_NK
    said_NK = given_NK.astype(np.float32)
    if diverged:
        said_NK *= np.nan
    frames_NTK = np.repeat(said_NK[:, None], store.frames, axis=1)
    if frame_logits_NTK is not None:
        frames_NTK = frame_logits_NTK.astype(np.float32)
    attention = np.full_like(frames_NTK, np.nan) if attention_NTK is None else attention_NTK
    said = Predictions(said_NK, frames_NTK, attention.astype(np.float32))
    selected = SelectedEpoch(said, {"weight": torch.zeros(3)})
    scores = {f"{run.method.selection.tested_on}_{metric}": 0.5 for metric in ("uar", "war")}
    epochs = [{"epoch": 1, "train_loss": 0.5, **scores}]
    outcome = Outcome(run, Split(test, test[:0], test), epochs, 1, selected, "packed")
    return records.write(outcome, seconds=1.0)


def forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a record, and its sha256 in result.json as well."""
    (folder / name).write_bytes(data)
    edit_json(folder / "result.json", sha256={name: sha256_file(folder / name)})


def edit_json(path: Path, **changes: object) -> None:
    """Change some values of a JSON file; dictionaries are merged."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def to_link(path: Path) -> None:
    """Move a file or folder elsewhere, and leave a link to it."""
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
