"""A run in the middle of its training <-> one file in its folder, until it is finished."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.files import make_directories, write_files
from pipeline.train.records import source_digest

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.train.stack import RunState

NAME = "resume.safetensors"


def write_state(folder: Path, state: "RunState", scratch: Path) -> None:
    """Keep a run's state in its folder; a kill leaves the former or the new one, whole."""
    from safetensors.torch import save

    make_directories(folder, scratch)
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    about = {"epoch": state.epoch, "facts": state.facts, "sha256": _digest(tensors)}
    metadata = {"state": json.dumps(about | {"source_sha256": source_digest()})}
    write_files({folder / NAME: save(tensors, metadata)}, scratch)


def read_state(folder: Path) -> "RunState | None":
    """The state in a run's folder; None where there is none, or not one that is whole."""
    from safetensors.torch import load

    from pipeline.train.stack import RunState

    about = _about(folder)
    if about is None:
        return None
    tensors = load((folder / NAME).read_bytes())
    if _digest(tensors) != about["sha256"]:
        return None
    return RunState(about["epoch"], tensors, about["facts"])


def begun_epochs(folder: Path) -> int:
    """How many epochs of a run are done, from the head of its state alone."""
    about = _about(folder)
    return about["epoch"] if about else 0


def _about(folder: Path) -> dict[str, Any] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / NAME, "pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["state"])
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    # Another code would go on otherwise than this state's began.
    return about if about["source_sha256"] == source_digest() else None


def _digest(tensors: "Mapping[str, Tensor]") -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
