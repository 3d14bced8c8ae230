"""Four workers on one store, killed at random moments, with locks and without; the command."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.demo.faces import FacesSpec, write_faces
from support.commands import ROOT, environment, script, tgdfer
from support.tiny import store_bytes
from support.train_kills import GONE_SECONDS, processes_of

CYCLES = int(os.environ.get("TGDFER_KILL_CYCLES", "6"))  # 100 take two minutes on 2 cores
COMMAND_CYCLES = int(os.environ.get("TGDFER_COMMAND_KILL_CYCLES", "1"))


@pytest.mark.parametrize("locks", ["on", "off"])
def test_killed_workers_leave_no_bad_block_and_the_same_store(tmp_path: Path, locks: str) -> None:
    """Without locks, as on some file systems, work is done twice but never wrongly."""
    cycles = CYCLES if locks == "on" else max(1, CYCLES // 3)
    done = script(ROOT / "tests/support/kills.py", tmp_path, cycles, locks)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == [], done.stderr
    # Workers were killed while at work, not only before or after.
    assert report["endings"].get("-9", 0) > 0
    assert sum(n for code, n in report["endings"].items() if code != "0") > cycles


EXTRACT = "extract --dataset dfew --root DFEW --encoder mini --limit 8 --views 1 --isolate"


def decoders_below(folder: Path) -> set[int]:
    """The processes that decode a video of ``folder``; each leads a session."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            isolated = b"pipeline.video.isolated\0" in (place / "cmdline").read_bytes()
            if isolated and Path(os.readlink(place / "cwd")) == folder:
                found.add(int(place.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.slow
def test_killed_command_leaves_no_decoder_and_is_resumed_to_the_same_store(tmp_path: Path) -> None:
    write_faces(tmp_path / "DFEW", FacesSpec(videos=14), workers=1)
    store, rng, out = tmp_path / "data/dfew-mini-first8.zarr", random.Random(0), subprocess.DEVNULL
    command = [sys.executable, "-m", "tgdfer", *EXTRACT.split(), "--device", "cpu"]

    def start() -> "subprocess.Popen[bytes]":
        options = {"cwd": tmp_path, "env": environment(), "stdout": out, "stderr": out}
        return subprocess.Popen(command, start_new_session=True, **options)  # type: ignore[call-overload]

    def finish() -> None:
        assert tgdfer(*EXTRACT.split(), "--device", "cpu", cwd=tmp_path).returncode == 0

    finish()
    whole = store_bytes(store)
    for _ in range(COMMAND_CYCLES):
        shutil.rmtree(tmp_path / "data")
        killed = start()
        while not decoders_below(tmp_path) and killed.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        rng.choice((os.kill, os.killpg))(killed.pid, rng.choice((signal.SIGKILL, signal.SIGTERM)))
        killed.wait()
        deadline = time.monotonic() + GONE_SECONDS
        while decoders_below(tmp_path) | set(processes_of(killed.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        finish()
        assert store_bytes(store) == whole
        assert list((store / ".tmp").iterdir()) == []
        assert list((store / "locks").glob("decoding.*")) == []
