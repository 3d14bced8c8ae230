"""Training commands killed at random moments and resumed: identical files, nothing left."""

import json
import os
import re
from pathlib import Path

import pytest

from support.commands import ROOT, script
from support.forked import forker
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
    command = [*train, "--device", "cpu", "--workers", "1"]
    both = [forker().start(command, tmp_path, workers="fork") for _ in range(2)]
    outcomes = [started.wait(240) for started in both]
    assert [ended.code for ended in outcomes] == [0, 0], outcomes
    trained = [int(re.findall(r"(\d+) runs? trained", ended.stdout)[0]) for ended in outcomes]
    assert sum(trained) == 3
    tables = [ended.stdout.partition(" trained")[0].rpartition("\n")[0] for ended in outcomes]
    assert tables[0] == tables[1]
    assert tables[0].count("runs/") == 3
    assert any("that another process is training" in ended.stderr for ended in outcomes)
    assert list((tmp_path / "runs/.locks").iterdir()) == []
