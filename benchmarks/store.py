"""How fast a DFEW-size store is opened, loaded and verified, and what durability costs per block.

Run as ``python -m benchmarks.store [--videos N]``; writes ``benchmarks/store.json``.

Loading alternates with ``cat`` of the same files: in each round first with the files dropped from
the page cache, then with them in it.  The features are one block of random bits, repeated.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.generated import DFEW_VIDEOS, DFEW_VIEWS, fill
from benchmarks.machine import machine, seconds, write
from cache.check import verify
from cache.store import open_store

OUT = Path(__file__).with_suffix(".json")
ROUNDS, BLOCKS = 3, 24


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=DFEW_VIDEOS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        report = measure(Path(name), arguments.videos)
    write(report, arguments.out)


def measure(folder: Path, videos: int) -> dict[str, Any]:
    """Rates in GB (10^9 bytes) per second, medians of the rounds."""
    writing = seconds(lambda: fill(folder / "s", videos, DFEW_VIEWS))
    paths = sorted((folder / "s/features").iterdir())
    size = sum(path.stat().st_size for path in paths)
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for state in ("cold", "warm"):
            for name, work in (("cat", lambda: cat(paths)), ("load", lambda: load(folder / "s"))):
                if state == "cold":
                    drop(paths)
                taken.setdefault(f"{name} {state}", []).append(seconds(work))
    opened = [seconds(lambda: open_store(folder / "s")) for _ in range(ROUNDS)]
    deep = seconds(lambda: verify(folder / "s", deep=True))
    light = seconds(lambda: verify(folder / "s"))
    rates = {name: size / 1e9 / statistics.median(spent) for name, spent in taken.items()}
    return {
        "machine": machine(),
        "store": {"videos": videos, "views": DFEW_VIEWS, "bytes": size, "files": len(paths)},
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


def durability(folder: Path) -> dict[str, float]:
    """Milliseconds per block of one view, alternately with and without fsync; medians."""
    real, taken = os.fsync, {"fsync": [0.0] * 0, "no fsync": [0.0] * 0}
    for n in range(ROUNDS):
        for name, sync in (("fsync", real), ("no fsync", lambda handle: None)):
            path = folder / f"{name}{n}"
            fill(path, 64 * BLOCKS, 1, blocks=0)
            os.fsync = sync
            try:
                spent = seconds(partial(fill, path, 64 * BLOCKS, 1, blocks=BLOCKS))
            finally:
                os.fsync = real
            taken[name].append(1000 * spent / BLOCKS)
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


if __name__ == "__main__":
    main()
