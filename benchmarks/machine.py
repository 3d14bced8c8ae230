"""The machine that figures were measured on, its peak rates, and alternating measurements."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[], float]


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine and its libraries; ``load_before`` tells how busy it was before."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def best_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Time of one call, including what it left running on a GPU."""
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def by_turns(
    ways: Mapping[str, Callable[[], object]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each way; calls alternate, and the first of each is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            spent = seconds(way, clock)
            if turn:
                taken[name].append(spent)
    return {name: statistics.median(values) for name, values in taken.items()}


def peaks(device: str) -> dict[str, float]:
    """What one process reaches here in float32 (on a GPU bfloat16) products, and in copying."""
    kind, n = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    a = torch.randn(n, n, device=device, dtype=kind)
    b = torch.randn(1 << (28 if device == "cuda" else 25), device=device)
    ways = {"product": lambda: a @ a, "copy": lambda: b.clone()}
    best = {name: min(seconds(way) for _ in range(6)) for name, way in ways.items()}
    return {
        "gflop_per_second": 2 * n**3 / best["product"] / 1e9,
        "gigabytes_per_second": 2 * b.nbytes / best["copy"] / 1e9,
    }


def arguments(description: str, out: Path, *flags: str) -> argparse.Namespace:
    """``--out`` and the given switches."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=out)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    return parser.parse_args()


def write(report: dict[str, Any], out: Path) -> None:
    """Print the report and write it as JSON."""
    text = json.dumps(report, indent=2) + "\n"
    out.write_text(text)
    print(text, end="")
