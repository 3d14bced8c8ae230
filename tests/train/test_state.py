"""The state of an unfinished run on disk: whole, or not there."""

from pathlib import Path

import torch

from pipeline.train.state import RunState, epochs_done, read_state, write_state

STATE = RunState(
    {"seed": 3}, [{"epoch": n + 1} for n in range(7)], -1, {"a": torch.arange(3.0)}, {}, None
)


def test_state_is_read_back(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, STATE, tmp_path / ".tmp")
    again = read_state(tmp_path)
    assert again is not None
    assert (again.epoch, again.generator, epochs_done(tmp_path)) == (7, {"seed": 3}, 7)
    assert torch.equal(again.parameters["a"], torch.arange(3.0))


def test_torn_or_changed_state_is_not_resumed(tmp_path: Path) -> None:
    write_state(tmp_path, STATE, tmp_path / ".tmp")
    file = tmp_path / "resume.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read_state(tmp_path) is None
    for damaged in (whole[:-5], whole[:20], b"", whole.replace(b"generator", b"other")):
        file.write_bytes(damaged)
        assert read_state(tmp_path) is None
        assert epochs_done(tmp_path) == 0
