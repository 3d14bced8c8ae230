"""Training commands killed at random moments and resumed: identical files, nothing left."""

import json
import os
from pathlib import Path

import pytest

from support.commands import ROOT, python

CYCLES = int(os.environ.get("TGDFER_TRAIN_KILL_CYCLES", "3"))  # 30 take five minutes on 2 cores


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "ablate"])
def test_killed_commands_leave_no_process_and_are_resumed_to_identical_files(
    tmp_path: Path, command: str
) -> None:
    done = python(ROOT / "tests/support/train_kills.py", tmp_path, command, CYCLES)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["cycles"] == CYCLES
