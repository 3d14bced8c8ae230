"""Training commands killed at random moments and resumed: identical files, nothing left."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import ROOT, environment, script
from support.stores import random_store

CYCLES = int(os.environ.get("TGDFER_TRAIN_KILL_CYCLES", "3"))  # 30 take eight minutes


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "ablate"])
def test_killed_commands_leave_no_process_and_are_resumed_to_identical_files(
    tmp_path: Path, command: str
) -> None:
    done = script(ROOT / "tests/support/train_kills.py", tmp_path, command, CYCLES)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert report["cycles"] == CYCLES


@pytest.mark.slow
def test_two_commands_on_one_folder_share_its_runs_and_both_report_all(tmp_path: Path) -> None:
    random_store(tmp_path / "s.zarr", videos=14, folds=3)
    train = ["train", "--store", "s.zarr", "--set", "optimiser.epochs=30"]
    command = [sys.executable, "-m", "tgdfer", *train, "--device", "cpu", "--workers", "1"]
    out = subprocess.PIPE
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=out, stderr=out, text=True, env=environment()
        )
        for _ in range(2)
    ]
    outcomes = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    trained = [int(re.findall(r"(\d+) runs? trained", said)[0]) for said, _ in outcomes]
    assert sum(trained) == 3
    tables = [said.partition(" trained")[0].rpartition("\n")[0] for said, _ in outcomes]
    assert tables[0] == tables[1]
    assert tables[0].count("runs/") == 3
    assert any("that another process is training" in said for _, said in outcomes)
    assert list((tmp_path / "runs/.locks").iterdir()) == []
