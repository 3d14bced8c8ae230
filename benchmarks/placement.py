"""Seconds and bytes of stacks, as measured and as counted; how evenly tables are shared out.

Run as ``python -m benchmarks.placement [--quick]``; writes ``benchmarks/placement.json``, or
``benchmarks/placement-gpu.json`` if there is a GPU, and the rates of this kind of device in
``pipeline/train/cost.json``, which the placement of stacks goes by. The shares are simulated: the
paper's Tables 3 to 6 at the sizes of DFEW and ViT-B/32, in five folds with three seeds.
"""

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.generated import CLASSES, FOLDS, FRAMES, MINI, VIT_B_32, fill
from benchmarks.machine import arguments, best_device, by_turns, machine, write
from benchmarks.stacks import stack_of, stepper
from cache.store import open_store
from pipeline.config import Run, load_method
from pipeline.datasets.texts import class_texts
from pipeline.engines.local import KEEP_MEMORY
from pipeline.evaluate.predictions import predict
from pipeline.report.ablation import runs_of_table
from pipeline.report.tables import find_tables
from pipeline.resources import STATUS
from pipeline.train.cost import (
    RATES,
    Rates,
    Sizes,
    bytes_of,
    read_rates,
    seconds_of,
    sizes_of,
    work_of,
)
from pipeline.train.features import load_training_data
from pipeline.train.grid import STACK_ON_CPU
from pipeline.train.placement import makespan, programs, stacks_of
from pipeline.train.residence import feature_bytes
from pipeline.train.stack import parameters_of

VIDEOS, ROUNDS = 350, 2
Kind = Literal["cpu", "cuda"]
KINDS: tuple[Kind, ...] = ("cpu", "cuda")
TEXTS = {"mini": MINI, "ViT-B/32": VIT_B_32}
TABLES, SEEDS, DEVICES = ("table3", "table4", "table5", "table6"), 3, (1, 2, 4, 8, 16)
DFEW = (9_358, 2_339)  # training and test videos of a fold


@dataclass(frozen=True)
class Case:
    """A stack of some runs of one setting."""

    encoder: str
    runs: int
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The setting and its number of runs."""
        return f"{self.encoder}, {', '.join(self.settings) or 'the paper'}: {self.runs}"


NO_LAYERS = ("temporal.fine_depth=0", "temporal.coarse_depth=0")
DEEP = ("temporal.fine_depth=7", "temporal.coarse_depth=7")
PREPENDED, WIDE = ("label.visual_prompt=prepend",), ("temporal.window=8",)
DESCRIBED, SMALL = ("prompts.fine_text=descriptors",), ("optimiser.batch=12",)
CASES = [Case("mini", count, own) for own in ((), SMALL, DEEP) for count in (1, 5)]
CASES += [Case("mini", 5, own) for own in (NO_LAYERS, WIDE, DESCRIBED, PREPENDED)]
CASES += [Case("mini", 15)]
CASES += [Case("ViT-B/32", 1, own) for own in ((), SMALL, NO_LAYERS, DESCRIBED)]
LARGE = [Case("ViT-B/32", 5), *(Case("ViT-B/32", 1, own) for own in (DEEP, PREPENDED))]


def main() -> None:
    """Measure, print and write the report and the rates."""
    kind: Kind = "cuda" if best_device() == "cuda" else "cpu"
    if not KEEP_MEMORY.items() <= os.environ.items():  # as in benchmarks/stacks.py
        command = [sys.executable, "-m", "benchmarks.placement", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | KEEP_MEMORY)
    name = "placement-gpu.json" if kind == "cuda" else "placement.json"
    options = arguments(__doc__, Path(__file__).with_name(name), "--quick")
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(kind)}
    with tempfile.TemporaryDirectory() as folder:
        report |= measure(Path(folder), kind, quick=options.quick)
    if not options.quick:
        write_rates(kind, report)
    shares = {own: simulate(own, read_rates(own)) for own in KINDS}
    sources = {own: found["source"] for own, found in json.loads(RATES.read_text()).items()}
    report |= {"tables": TABLES, "seeds": SEEDS, "shares": shares, "sources": sources}
    write(report, options.out)


def measure(folder: Path, kind: Kind, quick: bool) -> dict[str, Any]:
    """Seconds of a step of each case and as fitted, and on a CPU the memory that it takes."""
    cases, large = (CASES[:4], CASES[:1]) if quick else ([*CASES, *LARGE], LARGE)
    steps, counts = {}, []
    for encoder, own in groupby(cases, key=lambda case: case.encoder):
        path = _store(folder, encoder)
        fill(path, VIDEOS, 2, TEXTS[encoder]["width"], TEXTS[encoder])
        data = load_training_data(open_store(path), torch.device(kind))
        for case in own:
            steps[case.name] = stepper(data, case.runs, *case.settings)
            counts.append(counts_of(case, sizes_of(data.store)))
    # Those of a core, so that other processes on it do not count.
    clock = time.process_time if kind == "cpu" else time.perf_counter
    taken = by_turns(steps, 1 if quick else ROUNDS, clock)
    seconds = np.array(list(taken.values()))
    rates, _ = nnls(np.array(counts) / seconds[:, None], np.ones(len(seconds)))
    fitted = np.array(counts) @ rates
    report: dict[str, Any] = {
        "steps": {
            case.name: {"seconds": float(spent), "fitted": float(fit)}
            for case, spent, fit in zip(cases, seconds, fitted, strict=True)
        },
        "seconds": dict(zip(asdict(Rates(0, 0, 0, 0)), map(float, rates), strict=True)),
    }
    if kind == "cpu":
        report["memory"] = {case.name: _memory(folder, case) for case in large}
    return report


def _store(folder: Path, encoder: str) -> Path:
    """Where the store of an encoder is."""
    return folder / f"{encoder.replace('/', '-')}.zarr"


def counts_of(case: Case, sizes: Sizes) -> list[float]:
    """How often a step of a case spends each of the rates."""
    work = work_of(load_method("paper", case.settings), sizes)
    return [1, work.layers, case.runs * work.gflop, case.runs * work.million]


def write_rates(kind: str, report: dict[str, Any]) -> None:
    """Write the rates of a kind of device beside those of the others."""
    rates = json.loads(RATES.read_text())
    about = report["machine"]
    source = f"python -m benchmarks placement ({about['device']}, torch {about['torch']})"
    rates[kind] = {"seconds": report["seconds"], "source": source}
    RATES.write_text(json.dumps(rates, indent=2) + "\n")


def _memory(folder: Path, case: Case) -> dict[str, int]:
    """Bytes that a stack takes in a process of its own, and as counted."""
    path = _store(folder, case.encoder)
    store, method = open_store(path), load_method("paper", case.settings)
    sizes, run = sizes_of(store), Run(method=method, fold="1", seed=0)
    counted = feature_bytes(store) + sizes.tower_bytes + case.runs * bytes_of([run], sizes)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {"bytes": pool.submit(_peak, path, case).result(), "counted": counted}


def _peak(path: Path, case: Case) -> int:
    """By how many bytes features, text tower and a stack in training make this process grow."""
    torch.set_num_threads(1)
    before = _kilobytes("VmRSS:")
    data = load_training_data(open_store(path), torch.device("cpu"))
    stack = stack_of(data, case.runs, *case.settings)
    for batch in stack.steps()[:2]:
        stack.step(batch)
    predict(stack.model, data.features, [own.split.test for own in stack.histories])
    kept = [parameters_of(stack.model, run) for run in range(case.runs)]  # of the reported epoch
    assert len(kept) == case.runs
    return (_kilobytes("VmHWM:") - before) << 10


def _kilobytes(name: str) -> int:
    return int(STATUS.read_text().partition(name)[2].split()[0])


def simulate(kind: Kind, rates: Rates) -> list[dict[str, Any]]:
    """Into how many stacks the tables are cut, and how much longer they take than need be."""
    base, size_max = load_method(), STACK_ON_CPU if kind == "cpu" else sys.maxsize
    sizes = Sizes(
        *(FRAMES, VIT_B_32["width"], class_texts(CLASSES)),
        *(VIT_B_32["width"], VIT_B_32["layers"]),
        folds={str(fold + 1): DFEW for fold in range(FOLDS)},
    )
    cost = partial(seconds_of, sizes=sizes, rates=rates)
    tables = find_tables(TABLES)
    folds, seeds = list(sizes.folds), range(SEEDS)
    runs = list(dict.fromkeys(r for t in tables for r in runs_of_table(t, base, folds, seeds)))
    # No cut goes below an even share of the fewest stacks, nor below the costliest run alone.
    total, longest = sum(map(cost, programs(runs))), max(cost([run]) for run in runs)
    shares = []
    for count in DEVICES:
        stacks = stacks_of(runs, size_max, count, cost)
        ratio = makespan(map(cost, stacks), count) / max(total / count, longest)
        shares.append({"devices": count, "runs": len(runs), "stacks": len(stacks), "ratio": ratio})
    return shares


if __name__ == "__main__":
    main()
