"""Four workers on one store, killed at random moments, with locks and without."""

import json
import os
from pathlib import Path

import pytest

from support.commands import ROOT, python

CYCLES = int(os.environ.get("TGDFER_KILL_CYCLES", "8"))  # 100 take four minutes on 2 cores


@pytest.mark.parametrize("locks", ["on", "off"])
def test_killed_workers_leave_no_bad_block_and_the_same_store(tmp_path: Path, locks: str) -> None:
    """Without locks, as on some file systems, work is done twice but never wrongly."""
    cycles = CYCLES if locks == "on" else max(1, CYCLES // 2)
    done = python(ROOT / "tests/support/kills.py", tmp_path, cycles, locks)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == [], done.stderr
    # Workers were killed while at work, not only before or after.
    assert report["endings"].get("-9", 0) > 0
    assert sum(n for code, n in report["endings"].items() if code != "0") > cycles
