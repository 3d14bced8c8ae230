"""What it costs to read features from the store in every step, and a store larger than the memory.

Run as ``python -m benchmarks.residence``; writes ``benchmarks/residence.json``. A run trains at the
sizes of ViT-B/32, on one core, with features in memory, and read from files that are in the page
cache or were dropped from it. Then a store of 12 GiB (``--quick``: a small one) is
trained from in a process that may allocate 4 GiB. Needs 20 GB of disk.
"""

import resource
import tempfile
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.generated import VIT_B_32, fill
from benchmarks.machine import arguments, by_turns, machine, seconds, write
from benchmarks.store import drop
from cache.store import Store, open_store
from pipeline.config import Run, load_method
from pipeline.resources import STATUS
from pipeline.train.features import load_training_data
from pipeline.train.residence import GIB, Residence, choose_residence, feature_bytes
from pipeline.train.stack import Stack

OUT = Path(__file__).with_suffix(".json")
VIDEOS, VIEWS, ROUNDS = 11_697, 5, 5  # DFEW's
LARGE_GIB, LIMIT_GIB, LARGE_ROUNDS = 12, 4, 5
STEPS = 2  # in each measurement


def main() -> None:
    """Measure, print and write the report."""
    options = arguments(__doc__, OUT, "--quick")
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        videos = 200 if options.quick else VIDEOS
        report["step"] = _measure_steps(
            Path(name) / "s.zarr", videos, 2 if options.quick else ROUNDS
        )
    with tempfile.TemporaryDirectory() as name:
        bytes_ = (1 if options.quick else LARGE_GIB << 10) << 20
        report["larger_than_memory"] = _measure_large(Path(name) / "large.zarr", bytes_)
    write(report, options.out)


def _measure_steps(path: Path, videos: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step of 48 videos."""
    fill(path, videos, VIEWS, text=VIT_B_32)
    store = open_store(path)
    resident, warm, cold = (_steps(store, where) for where in ("resident", "stream", "stream"))

    def dropped() -> None:
        _drop_cache(path)
        cold()

    taken = by_turns(
        {"resident": resident, "stream": warm, "stream, cache dropped": dropped}, rounds
    )
    taken["stream, cache dropped"] -= seconds(lambda: _drop_cache(path))
    return {
        "videos": videos,
        "seconds": {name: spent / STEPS for name, spent in taken.items()},
        "ratios": {name: spent / taken["resident"] for name, spent in taken.items()},
    }


def _steps(store: Store, residence: Residence) -> Callable[[], None]:
    """What makes some steps in the data order of training, as often as it is called."""
    run = Run(method=load_method(), fold="1", seed=0)
    stack = Stack(load_training_data(store, torch.device("cpu"), residence), [run])
    batches = stack.steps()
    turn = count()

    def step() -> None:
        for _ in range(STEPS):
            at = next(turn)
            stack.step(batches[at % len(batches)], batches[(at + 1) % len(batches)])

    return step


def _measure_large(path: Path, size: int) -> dict[str, Any]:
    """Steps from a store of so many bytes, in a process that may allocate LIMIT_GIB."""
    fill(path, size // (2 * VIEWS * 16 * 512), VIEWS, text=VIT_B_32)
    store = open_store(path)
    _drop_cache(path)
    worker = get_context("spawn").Process(target=_train_under_limit, args=(path,))
    worker.start()
    worker.join()
    if worker.exitcode:
        raise SystemExit(f"training under the limit ended with exit code {worker.exitcode}")
    done = [float(line) for line in path.with_name("done").read_text().split()]
    return {
        "features_gib": feature_bytes(store) / GIB,
        "limit_gib": LIMIT_GIB,
        "allocated_mib": done[0],
        "seconds_of_steps": done[1:],
    }


def _train_under_limit(path: Path) -> None:
    """Write the peak of allocated memory in MiB, and the seconds of each step."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GIB << 30, LIMIT_GIB << 30))
    torch.set_num_threads(1)
    store = open_store(path)
    step = _steps(store, choose_residence("auto", store, "cpu", 1))
    taken = [seconds(step) / STEPS for _ in range(LARGE_ROUNDS)]
    data = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData:"))
    lines = [int(data.split()[1]) / 1024, *taken]
    path.with_name("done").write_text("\n".join(map(str, lines)))


def _drop_cache(path: Path) -> None:
    drop(list((path / "features").iterdir()))


if __name__ == "__main__":
    main()
