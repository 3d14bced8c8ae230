"""How long ``tgdfer data check`` takes on trees of the sizes of DFEW and FERV39k, and its memory.

Run as ``python -m benchmarks.check [--scale S]``; writes ``benchmarks/check.json``.

Frames are hard links to a few small files of different sizes, since no image is decoded. Each
command runs twice, and the second time counts, when names and sizes are cached. Its processor
seconds are those of user and system; its peak memory is that of the whole process.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generated import fill
from benchmarks.machine import machine, write
from pipeline.datasets.known import known_datasets

OUT = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[1]
POOL = 2048  # different files; a file system may allow only 65,000 links to each
FOUND = 3  # the exit code if something was found
# The kernel's own peak: that of getrusage includes the process which started the command.
COMMAND = """
import os
from pathlib import Path
from cli.main import run
try:
    run()
finally:
    os.write(2, Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0].encode())
"""
SCENES = 22
WORDS = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
FERV39K_FRAMES, DFEW_FRAMES = (8, 28, 48), (11, 77, 143)  # fewest, mean, more than most
DFEW_UNUSED = 16_372 - 11_697  # videos in no list


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the videos")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        sets = measure(Path(name), arguments.scale)
    write({"machine": before, "sets": sets}, arguments.out)


def measure(folder: Path, scale: float) -> dict[str, Any]:
    """Seconds, processor seconds and peak MiB of each command."""
    pool = make_pool(folder / "pool")
    report = {}
    for name, grow in (("dfew", grow_dfew), ("ferv39k", grow_ferv39k)):
        root, store = folder / name, folder / f"{name}.zarr"
        ids, frames = grow(root, pool, scale)
        fill(store, len(ids), 1, ids=ids, name=name)
        command = ("data", "check", "--dataset", name, "--root", str(root), "--json")
        report[name] = {
            "videos": len(ids),
            "frames": frames,
            "check": _warm(command),
            "check_with_store": _warm((*command, "--store", str(store))),
        }
    return report


def grow_ferv39k(root: Path, pool: Sequence[str], scale: float) -> tuple[list[str], int]:
    """The split over all scenes and its folders of faces; (ids, number of frames)."""
    parts = [round(count * scale) for count in known_datasets()["ferv39k"].folds["1"]]
    ids = [
        f"Scene{n % SCENES}/{WORDS[n // SCENES % len(WORDS)]}/{n:04d}" for n in range(sum(parts))
    ]
    for name, own in (("train", ids[: parts[0]]), ("test", ids[parts[0] :])):
        lines = "".join(f"{video_id} {video_id.split('/')[1]}\n" for video_id in own)
        _write(root / f"4_setups/All_scenes/{name}_All.csv", lines)
    return ids, _add_frames(root / "2_ClipsforFaceCrop", ids, pool, FERV39K_FRAMES)


def grow_dfew(root: Path, pool: Sequence[str], scale: float) -> tuple[list[str], int]:
    """Five folds with the published counts of classes, folders of faces, and all videos."""
    known = known_datasets()["dfew"]
    labels = [k for k, n in enumerate(known.counts.values(), 1) for _ in range(round(n * scale))]
    ids = [f"{n:05d}" for n in range(len(labels))]
    for fold in range(5):
        for name, is_test in (("train", False), ("test", True)):
            own = (n for n in range(len(ids)) if (n % 5 == fold) == is_test)
            rows = "".join(f"{n},{labels[n]}\n" for n in own)
            path = f"EmoLabel_DataSplit/{name}(single-labeled)/set_{fold + 1}.csv"
            _write(root / path, f"video_name,label\n{rows}")
    (root / "Clip/original").mkdir(parents=True)
    for n in range(len(ids) + round(DFEW_UNUSED * scale)):
        os.link(pool[n % POOL], root / f"Clip/original/{n:05d}.mp4")
    return ids, _add_frames(root / "Clip/clip_224x224", ids, pool, DFEW_FRAMES)


def _add_frames(
    root: Path, ids: Sequence[str], pool: Sequence[str], frames: tuple[int, int, int]
) -> int:
    rng = np.random.default_rng(0)
    total = 0
    for video_id in ids:
        folder = os.path.join(root, video_id)
        os.makedirs(folder)
        count = int(rng.triangular(*frames))
        for number, place in enumerate(rng.integers(POOL, size=count), 1):
            os.link(pool[place], f"{folder}/{number}.jpg")
        total += count
    return total


def make_pool(folder: Path) -> list[str]:
    """The files that all frames are links to; by size and first bytes, images."""
    folder.mkdir()
    paths = [folder / f"{size}.jpg" for size in range(POOL)]
    for size, path in enumerate(paths):
        path.write_bytes(b"\xff\xd8\xff" + bytes(size))
    return [str(path) for path in paths]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _warm(arguments: Sequence[str]) -> dict[str, float]:
    _run(arguments)
    return _run(arguments)


def _run(arguments: Sequence[str]) -> dict[str, float]:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, FOUND), done.stderr
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(wall, 2),
        "processor_seconds": round(processor, 2),
        "peak_mib": int(done.stderr.split()[-1]) // 1024,
    }


if __name__ == "__main__":
    main()
