"""The state of an unfinished run <-> one file in its folder."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.files import make_directories, remove_file, write_files
from pipeline.evaluate.predictions import Predictions
from pipeline.train.selection import Metrics, SelectedEpoch

STATE_FILE = "resume.safetensors"


@dataclass(frozen=True)
class RunState:
    """One run of a stack between two epochs: everything its further training depends on."""

    generator: dict[str, Any]  # state of the random generator that draws the data order
    epochs: list[Metrics]  # those done
    best: int  # the epoch that would be reported, -1 for none
    parameters: dict[str, Tensor]
    velocities: dict[str, Tensor]
    selected: SelectedEpoch | None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.epochs)


def write_state(folder: Path, state: RunState, scratch: Path) -> None:
    """Save a run's state in its folder; a kill leaves either the old or the new one, complete."""
    from safetensors.torch import save

    make_directories(folder, scratch)
    tensors = {name: tensor.contiguous() for name, tensor in _to_tensors(state).items()}
    head = {"epochs": state.epochs, "best": state.best, "generator": state.generator}
    metadata = {"state": json.dumps(head | {"sha256": _digest(tensors)})}
    write_files({folder / STATE_FILE: save(tensors, metadata)}, scratch)


def read_state(folder: Path) -> RunState | None:
    """The state in a run's folder; None if it is missing or damaged."""
    from safetensors.torch import load

    head = _head(folder)
    if head is None:
        return None
    tensors = load((folder / STATE_FILE).read_bytes())
    if _digest(tensors) != head["sha256"]:
        return None
    return RunState(
        generator=head["generator"],
        epochs=head["epochs"],
        best=head["best"],
        parameters=_under("parameter/", tensors),
        velocities=_under("velocity/", tensors),
        selected=_selected_epoch(tensors) if head["best"] >= 0 else None,
    )


def remove_state(folder: Path) -> None:
    """Remove the state of a finished run."""
    remove_file(folder / STATE_FILE)


def epochs_done(folder: Path) -> int:
    """How many epochs of a run are done; reads only the header of its state."""
    head = _head(folder)
    return len(head["epochs"]) if head else 0


def _head(folder: Path) -> dict[str, Any] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / STATE_FILE, "pt") as file:
            head: dict[str, Any] = json.loads(file.metadata()["state"])
            return head if {"epochs", "best", "generator", "sha256"} <= head.keys() else None
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _to_tensors(state: RunState) -> dict[str, Tensor]:
    parts = {"parameter/": state.parameters, "velocity/": state.velocities}
    if state.selected is not None:
        arrays = vars(state.selected.predictions).items()
        parts["predicted/"] = {name: torch.from_numpy(array) for name, array in arrays}
        parts["reported/"] = state.selected.parameters
    return {kind + name: t for kind, part in parts.items() for name, t in part.items()}


def _selected_epoch(tensors: dict[str, Tensor]) -> SelectedEpoch:
    arrays = {name: t.numpy() for name, t in _under("predicted/", tensors).items()}
    return SelectedEpoch(Predictions(**arrays), _under("reported/", tensors))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
