"""The store after a power cut, which takes everything that was not synced."""

import json
import os
from pathlib import Path

import pytest

from support.commands import ROOT, python

# TGDFER_FAULT_STEP=1 tries every call of every scene with every kind of cut, in a minute.
STEP = int(os.environ.get("TGDFER_FAULT_STEP", "18"))


def test_after_a_power_cut_no_returned_commit_is_lost_and_one_restart_gives_the_same_store(
    tmp_path: Path,
) -> None:
    done = python(ROOT / "tests/support/powercut.py", tmp_path, STEP)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert len(report["tried"]) == 28  # four scenes, with five kinds of cuts and two after a kill


@pytest.mark.parametrize("ignored", ["files", "folders"])
def test_power_cuts_lose_returned_commits_if_fsync_does_nothing(
    tmp_path: Path, ignored: str
) -> None:
    """Otherwise the test above would be blind."""
    done = python(ROOT / "tests/support/powercut.py", tmp_path, 4 * STEP, ignored)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for scene in ("extract", "add a view"):
        lost = [w for w in report["wrong"] if w.startswith(f"{scene}, only") and "lost" in w]
        assert lost, report["wrong"]
