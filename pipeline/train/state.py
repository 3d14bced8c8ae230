"""The state of an unfinished run <-> one file in its folder."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from torch import Tensor

from cache.errors import DamagedError
from cache.files import make_directories, remove_file, write_files
from cache.outside import open_outside
from pipeline.evaluate.predictions import Predictions
from pipeline.train.selection import Metrics, SelectedEpoch

STATE_FILE = "resume.safetensors"
BEGINS_AGAIN = "the epochs that it held are lost, and the run begins again"
HEADER_BYTES_MAX, STATE_BYTES_MAX = 1 << 26, 1 << 34
NOT_A_STATE = (SafetensorError, ValueError, TypeError, KeyError, OverflowError, RecursionError)


class StateError(DamagedError):
    """A saved state from which its run cannot resume; the run has to begin again."""


@dataclass(frozen=True)
class RunState:
    """One run of a stack between two epochs: everything its further training depends on."""

    generator: dict[str, Any]  # state of the random generator that draws the data order
    epochs: list[Metrics]  # those done
    best: int  # the epoch that would be reported, -1 for none
    parameters: dict[str, Tensor]
    moments: dict[str, Tensor]
    selected: SelectedEpoch | None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.epochs)

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Name, shape and type of every tensor."""
        return {name: (t.shape, t.dtype) for name, t in _to_tensors(self).items()}


def write_state(folder: Path, state: RunState, scratch: Path) -> None:
    """Save a run's state in its folder; a kill leaves either the old or the new one, complete."""
    from safetensors.torch import save

    make_directories(folder, scratch)
    tensors = {name: tensor.contiguous() for name, tensor in _to_tensors(state).items()}
    head = {"epochs": state.epochs, "best": state.best, "generator": state.generator}
    text = json.dumps(head)
    metadata = {"state": text, "sha256": _digest(text, tensors)}
    write_files({folder / STATE_FILE: save(tensors, metadata)}, scratch)


def read_state(folder: Path) -> RunState | None:
    """The state in a run's folder, None if there is none; raises StateError if it is damaged."""
    from safetensors.torch import load

    if not os.path.lexists(folder / STATE_FILE):
        return None
    try:
        with _open(folder) as file:
            data = file.read()
        text, digest = _read_header(io.BytesIO(data))
        tensors = load(data)
        if _digest(text, tensors) != digest:
            raise ValueError("another digest")
        return _to_state(_parse_head(text), tensors)
    except NOT_A_STATE as error:
        raise StateError(f"the state of {folder} is damaged: {BEGINS_AGAIN}") from error


def remove_state(folder: Path) -> None:
    """Remove the state of a finished run."""
    remove_file(folder / STATE_FILE)


def epochs_done(folder: Path) -> int:
    """How many epochs of a run are done; reads only the header of its state."""
    try:
        with _open(folder) as file:
            return len(_parse_head(_read_header(file)[0])["epochs"])
    except NOT_A_STATE:
        return 0


class _Head(BaseModel):
    generator: dict[str, Any]
    epochs: list[dict[str, float]] = Field(min_length=1)
    best: int = Field(ge=-1)


def _open(folder: Path) -> BinaryIO:
    path = folder / STATE_FILE
    return open_outside(path, "a run's state", STATE_BYTES_MAX, DamagedError, links=False)


def _read_header(file: BinaryIO) -> tuple[str, str]:
    """(state as JSON, digest) from the start of a safetensors file."""
    size = int.from_bytes(file.read(8), "little")
    if size > HEADER_BYTES_MAX:
        raise ValueError("a header too large for any state")
    metadata = json.loads(file.read(size))["__metadata__"]
    return str(metadata["state"]), str(metadata["sha256"])


def _parse_head(text: str) -> dict[str, Any]:
    _Head.model_validate_json(text, strict=True)
    head: dict[str, Any] = json.loads(text)  # as written: the model would make integers floats
    numbers = [epoch["epoch"] for epoch in head["epochs"]]
    if numbers != list(range(1, len(numbers) + 1)) or head["best"] >= len(numbers):
        raise ValueError("epochs that do not follow each other")
    np.random.default_rng(0).bit_generator.state = head["generator"]
    return head


def _to_state(head: dict[str, Any], tensors: dict[str, Tensor]) -> RunState:
    return RunState(
        generator=head["generator"],
        epochs=head["epochs"],
        best=head["best"],
        parameters=_under("parameter/", tensors),
        moments=_under("moment/", tensors),
        selected=_selected_epoch(tensors) if head["best"] >= 0 else None,
    )


def _to_tensors(state: RunState) -> dict[str, Tensor]:
    parts = {"parameter/": state.parameters, "moment/": state.moments}
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


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)} ".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
