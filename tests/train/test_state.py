"""The state of an unfinished run on disk: whole, or not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipeline.train.state import (
    RunState,
    StateError,
    _digest,
    epochs_done,
    read_state,
    write_state,
)

GENERATOR = dict(np.random.default_rng(3).bit_generator.state)
STATE = RunState(
    GENERATOR, [{"epoch": n + 1} for n in range(7)], -1, {"a": torch.arange(3.0)}, {}, None
)


def test_state_is_read_back(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, STATE, tmp_path / ".tmp")
    again = read_state(tmp_path)
    assert again is not None
    assert (again.epoch, again.generator, epochs_done(tmp_path)) == (7, GENERATOR, 7)
    assert torch.equal(again.parameters["a"], torch.arange(3.0))


def test_torn_or_changed_state_is_not_resumed(tmp_path: Path) -> None:
    write_state(tmp_path, STATE, tmp_path / ".tmp")
    file = tmp_path / "resume.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StateError, match=r"is damaged: the epochs that it held are lost"):
        read_state(tmp_path)
    for damaged in (whole[:-5], whole[:20], b"", whole.replace(b"generator", b"other")):
        file.write_bytes(damaged)
        assert epochs_done(tmp_path) in (0, 7)
        with pytest.raises(StateError):
            read_state(tmp_path)


HEADS: dict[str, Any] = {
    "epochs no list": {"epochs": 7},
    "epochs no numbers": {"epochs": ["a", "b"]},
    "epochs of text": {"epochs": [{"epoch": "1"}]},
    "epochs that skip one": {"epochs": [{"epoch": 1}, {"epoch": 3}]},
    "best beyond the last": {"best": 7},
    "best below none": {"best": -2},
    "best of which nothing is kept": {"best": 3},
    "generator no state": {"generator": {"bit_generator": "MT19937", "state": 7}},
    "generator of a huge number": {"generator": GENERATOR | {"uinteger": 10**40}},
}


@pytest.mark.parametrize("name", HEADS)
def test_state_of_a_wrong_shape_is_not_resumed(tmp_path: Path, name: str) -> None:
    head = {"epochs": STATE.epochs, "best": -1, "generator": GENERATOR} | HEADS[name]
    text = json.dumps(head)
    tensors = {"parameter/a": torch.arange(3.0)}
    metadata = {"state": text, "sha256": _digest(text, tensors)}
    (tmp_path / "resume.safetensors").write_bytes(save(tensors, metadata))
    with pytest.raises(StateError):
        read_state(tmp_path)


@pytest.mark.parametrize("head", [b"[" * 100_000, b'{"__metadata__": 1}', b"\xff", b"NaN"])
def test_state_whose_header_is_something_else_is_not_resumed(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "resume.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    assert epochs_done(tmp_path) == 0
    with pytest.raises(StateError):
        read_state(tmp_path)
