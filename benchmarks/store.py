"""How fast a DFEW-size store is opened, loaded and verified, and what durability costs a block.

Run as ``python -m benchmarks.store [--videos N]``; writes ``benchmarks/store.json``.

Loading is measured by turns with ``cat`` of the same files, each round first with the files dropped
from the page cache, then with them in it.  The features are random bits of one block, repeated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache.check import verify
from cache.identity import EncoderIdentity, Identity, Preprocessing
from cache.plan import Plan, Row, Unit, VideoFacts
from cache.store import StoreWriter, create_store, open_store

OUT = Path(__file__).with_suffix(".json")
VIDEOS, VIEWS, FRAMES, DIM = 11_697, 9, 16, 512
ROUNDS, BLOCKS = 3, 24


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=VIDEOS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        report = measure(Path(name), arguments.videos)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def measure(folder: Path, videos: int) -> dict[str, Any]:
    """Rates in GB (10^9 bytes) per second, medians of the rounds."""
    writing = _seconds(lambda: fill(folder / "s", videos, VIEWS))
    paths = sorted(p for p in (folder / "s").rglob("*") if p.is_file())
    size = sum(path.stat().st_size for path in paths)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for state in ("cold", "warm"):
            for name, work in (("cat", lambda: cat(paths)), ("load", lambda: load(folder / "s"))):
                if state == "cold":
                    drop(paths)
                taken.setdefault(f"{name} {state}", []).append(_seconds(work))
    opened = [_seconds(lambda: open_store(folder / "s")) for _ in range(ROUNDS)]
    deep = _seconds(lambda: verify(folder / "s", deep=True))
    light = _seconds(lambda: verify(folder / "s"))
    rates = {name: size / 1e9 / statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "store": {"videos": videos, "views": VIEWS, "bytes": size, "files": len(paths)},
        "gigabytes_per_second": {
            **rates,
            "write (fsynced)": size / 1e9 / writing,
            "verify --deep": size / 1e9 / deep,
        },
        "load_over_cat": {
            state: _ratio(taken[f"cat {state}"], taken[f"load {state}"])
            for state in ("cold", "warm")
        },
        "open_seconds": statistics.median(opened),
        "verify_light_seconds": light,
        "milliseconds_per_block_of_one_view": durability(folder),
    }


def fill(path: Path, videos: int, views: int, blocks: int | None = None) -> None:
    """A store of random features; only its first ``blocks`` blocks if that is given."""
    writer = create_store(
        path, plan_of(videos, views), {"text.safetensors": b"t", "text.json": b"{}"}
    )
    rng = np.random.default_rng(0)
    features = rng.standard_normal((64, views, FRAMES, DIM), np.float32).astype(np.float16)
    for unit in writer.todo()[:blocks]:
        with writer.claim(unit):
            commit(writer, unit, features[: unit.stop - unit.start])
    if blocks is None:
        writer.finalise()


def commit(writer: StoreWriter, unit: Unit, features: np.ndarray) -> None:
    index = np.zeros(features.shape[:3], np.int32)
    ids = writer.plan.videos.ids[unit.start : unit.stop]
    rows = [Row(id=name, status="ok", frames=60, sha256="0" * 64) for name in ids]
    writer.commit(unit, features, index, rows)


def plan_of(videos: int, views: int) -> Plan:
    """The plan of a generated store."""
    facts = VideoFacts(
        name="generated",
        ids=tuple(f"{n:05d}" for n in range(videos)),
        labels=tuple(n % 7 for n in range(videos)),
        classes=tuple("abcdefg"),
        subjects=(None,) * videos,
        folds=(),
        subsets={},
    )
    text = "e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8"  # of b"t"
    encoder = EncoderIdentity(
        name="generated", weights_sha256="", activation="", dim=DIM, text_sha256=text
    )
    pixels = Preprocessing(size_px=224, resize="", interpolation="", mean=(0, 0, 0), std=(1, 1, 1))
    names = ("evaluation_frames", "training_frames", "view_rule", "decoder", "precision", "device")
    identity = Identity(
        encoder=encoder,
        preprocessing=pixels,
        frames=FRAMES,
        seed=0,
        batch_frames=FRAMES,
        videos=facts.digest,
        **dict.fromkeys(names, "generated"),
    )
    return Plan(identity=identity, videos=facts, views=views, frames=FRAMES, dim=DIM)


def durability(folder: Path) -> dict[str, float]:
    """A block of one view with fsync and without, by turns; medians over the rounds."""
    real, taken = os.fsync, {"fsync": [0.0] * 0, "no fsync": [0.0] * 0}
    for n in range(ROUNDS):
        for name, sync in (("fsync", real), ("no fsync", lambda handle: None)):
            path = folder / f"{name}{n}"
            create_store(
                path, plan_of(64 * BLOCKS, 1), {"text.safetensors": b"t", "text.json": b"{}"}
            )
            os.fsync = sync
            try:
                seconds = _seconds(lambda path=path: fill(path, 64 * BLOCKS, 1, BLOCKS))
            finally:
                os.fsync = real
            taken[name].append(1000 * seconds / BLOCKS)
    return {name: statistics.median(values) for name, values in taken.items()}


def cat(paths: list[Path]) -> None:
    subprocess.run(["cat", *paths], stdout=subprocess.DEVNULL, check=True)


def load(path: Path) -> None:
    open_store(path).load_features()


def drop(paths: list[Path]) -> None:
    """Drop the files from the page cache; they were fsynced, so all of it can go."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
