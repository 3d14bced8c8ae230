"""What it costs to open and to inspect a store of many videos, with its plan in one file or in two.

Run as ``python -m benchmarks.plans [--most N]``; writes ``benchmarks/plans.json``. The stores have
one view and one feature per frame, so that nothing but plan, manifest and file names counts. Each
measurement is a new process; those of the two forms alternate.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.generated import fill
from benchmarks.machine import machine, seconds, write
from cache.migrate import migrate

OUT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[1]
VIDEOS = (10_000, 100_000, 1_000_000)
ROUNDS = 3
CASES = [(work, form) for work in ("open", "inspect") for form in ("one", "two")]
# Processor seconds of all threads, and by how much the memory grew at most.
PROBE = """
import json, sys, time
from pathlib import Path
from cache.check import inspect
from cache.store import open_store

def kib(name):
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0])

work = {"open": open_store, "inspect": inspect}[sys.argv[1]]
before, began = kib("VmRSS:"), time.process_time()
work(sys.argv[2])
print(json.dumps({"seconds": time.process_time() - began, "mib": (kib("VmHWM:") - before) / 1024}))
"""


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=VIDEOS[-1], help="leave out larger stores")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    counts = [videos for videos in VIDEOS if videos <= arguments.most]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        report = measure(Path(name), counts)
    write(report, arguments.out)


def measure(folder: Path, counts: Sequence[int], rounds: int = ROUNDS) -> dict[str, Any]:
    """Costs by the number of videos."""
    before = machine()
    costs = {str(videos): _costs(folder / str(videos), videos, rounds) for videos in counts}
    return {"machine": before, "rounds": rounds, "videos": costs}


def _costs(folder: Path, videos: int, rounds: int) -> dict[str, Any]:
    """Medians of opening and inspecting both forms, and what a migration takes."""
    _fill_in_one(folder / "one", videos)
    shutil.copytree(folder / "one", folder / "two", copy_function=os.link)
    migration = seconds(lambda: migrate(folder / "two"))
    found = [[_probe(work, folder / form) for work, form in CASES] for _ in range(rounds)]
    medians = {
        f"{work}, {form}": {key: statistics.median(one[key] for one in own) for key in own[0]}
        for (work, form), own in zip(CASES, zip(*found, strict=True), strict=True)
    }
    return {**medians, "migration_seconds": migration}


def _fill_in_one(path: Path, videos: int) -> None:
    """A store with its plan in one file, written without waiting for the disk."""
    with patch("cache.writer.ARRAY_VIDEOS", videos + 1), patch("os.fsync"):
        fill(path, videos, 1, dim=1)


def _probe(work: str, path: Path) -> dict[str, float]:
    command = [sys.executable, "-c", PROBE, work, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
