"""A training step by stage; stacked runs against single runs; kernels against their definitions.

Run as ``python -m benchmarks.stacks [--quick]``; writes ``benchmarks/stacks.json``, or
``benchmarks/stacks-gpu.json`` if there is a GPU. The floor of a step is the larger of two times:
its operations at the rate of a large matrix product, and its unavoidable memory traffic at the rate
of a copy. Both rates are measured in the same process.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generated import FOLDS, FRAMES, MINI, VIT_B_32, fill
from benchmarks.machine import arguments, best_device, by_turns, machine, peaks, write
from cache.store import open_store
from pipeline.config import Run, load_method
from pipeline.engines.local import KEEP_MEMORY
from pipeline.profile import profiled
from pipeline.train.features import CachedFeatures, TrainingData, load_training_data
from pipeline.train.stack import Stack
from pipeline.train.step import ReplayedStep

VIDEOS = 700  # as in the embedded set
ROUNDS = 5
# Runs in a stack; on a CPU, those at ViT-B/32's sizes are one process's share of a table.
SIZES = {"cpu": {"mini": (1, 5, 15, 60), "ViT-B/32": (1, 5)}}
SIZES["cuda"] = {"mini": (1, 5, 15, 60), "ViT-B/32": (1, 5, 15, 60)}
TEXTS = {"mini": MINI, "ViT-B/32": VIT_B_32}


def main() -> None:
    """Measure, print and write the report."""
    device = best_device()
    if not KEEP_MEMORY.items() <= os.environ.items():
        # As the grid starts its processes; the C library reads these only at start-up.
        command = [sys.executable, "-m", "benchmarks.stacks", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | KEEP_MEMORY)
    out = Path(__file__).with_name("stacks-gpu.json" if device == "cuda" else "stacks.json")
    options = arguments(__doc__, out, "--quick")
    if device == "cpu":
        torch.set_num_threads(1)  # like the grid's processes, one per core
    top = peaks(device)
    report: dict[str, Any] = {"machine": machine(device), "threads": torch.get_num_threads()}
    report |= {"peaks": top, "batch": load_method().optimiser.batch}
    with tempfile.TemporaryDirectory() as name:
        for encoder, text in TEXTS.items():
            path = Path(name) / f"{encoder.replace('/', '-')}.zarr"
            fill(path, 70 if options.quick else VIDEOS, 5, text["width"], text)
            data = load_training_data(open_store(path), torch.device(device))
            sizes = SIZES[device][encoder][: 2 if options.quick else None]
            report[encoder] = _measure(data, sizes, top, 1 if options.quick else ROUNDS)
            if device == "cuda":
                report[encoder]["kernels"] = _kernels(data)
    write(report, options.out)


def _measure(
    data: TrainingData, sizes: tuple[int, ...], top: dict[str, float], rounds: int
) -> dict[str, Any]:
    """Seconds of a step of R stacked runs, per run, and by stage."""
    steps = {f"{size} runs": stepper(data, size) for size in sizes}
    taken = by_turns(steps, rounds)
    shares = {name: taken[name] / size for name, size in zip(steps, sizes, strict=True)}
    one = stack_of(data, 1)
    gflop, gigabytes = _gflop(one), _gigabytes(one)
    floor = max(gflop / top["gflop_per_second"], gigabytes / top["gigabytes_per_second"])
    best = min(shares.values())
    return {
        "step_seconds": taken,
        "seconds_of_a_run_in_a_step": shares,
        "times_faster_than_one_by_one": shares["1 runs"] / best,
        "stages_seconds": _stages(data),
        "floor_of_a_run": {"gflop": gflop, "gigabytes": gigabytes, "seconds": floor},
        "fraction_of_floor": floor / best,
    }


def stack_of(data: TrainingData, count: int, *settings: str) -> Stack:
    """So many runs of the paper with some settings changed."""
    method = load_method("paper", settings)
    runs = [Run(method=method, fold=str(n % FOLDS + 1), seed=n // FOLDS) for n in range(count)]
    return Stack(data, runs)


def stepper(data: TrainingData, count: int, *settings: str) -> Callable[[], Tensor]:
    """One step of ``count`` stacked runs, as training does it."""
    stack = stack_of(data, count, *settings)
    step: Callable[..., Tensor] = stack.step
    if data.device.type == "cuda":
        step = partial(ReplayedStep(data.device), stack.step)
    batch = stack.steps()[0]
    for _ in range(4):  # past the capture of a graph
        step(batch)
    return partial(step, batch)


def _stages(data: TrainingData) -> dict[str, float]:
    """Seconds of each stage of a step of five runs."""
    stack = stack_of(data, FOLDS)
    batch = stack.steps()[0]
    stack.step(batch)
    with tempfile.TemporaryDirectory() as name, profiled(Path(name) / "trace.json") as found:
        for _ in range(ROUNDS):
            stack.step(batch)
    return {stage: spent / ROUNDS for stage, spent in found.stages.items()}


def _gflop(stack: Stack) -> float:
    """Operations of matrix products and attention in one step, forward and backward."""
    batch = stack.steps()[0]
    with FlopCounterMode(display=False) as counter:
        stack.step(batch)
    return counter.get_total_flops() / 1e9


def _gigabytes(stack: Stack) -> float:
    """The memory traffic a step needs: its features once, every learned parameter seven times.

    A parameter is read in the forward and backward pass and written once; its gradient is written
    and read, and so is its velocity.
    """
    assert isinstance(stack.data.features, CachedFeatures)
    learned = sum(p.numel() for p in stack.model.parameters() if p.requires_grad)
    batch = stack.runs[0].method.optimiser.batch
    return (2 * batch * FRAMES * stack.data.store.dim + 7 * 4 * learned) / 1e9


def _kernels(data: TrainingData) -> dict[str, dict[str, float]]:
    """Each GPU kernel, forward and backward, against its definition, eager and compiled."""
    from pipeline.kernels import gather, head, windows

    R, B, T, D, K, w = 15, 48, FRAMES, data.store.dim, 7, 4
    heads = max(1, D // 64)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=data.device, requires_grad=True)

    factors = windows.Factors(
        randn(R, B, T, 3 * D), randn(R, w, 3 * D), randn(R, B, T, w), randn(R, 3 * D)
    )
    instances, fine, labels = randn(R, B, T, D), randn(R, K, D), randn(R, B, K, D)
    tau_R = torch.full((R,), 0.01, device=data.device)
    assert isinstance(data.features, CachedFeatures)
    features = data.features.features_NVTD
    video_RB = torch.randint(0, len(features), (R, B), device=data.device)
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
        "windows": (windows.window_attention, (factors, 1, heads), factors),
        "visual prompt": (head.visual_prompt, (instances, fine, tau_R), (instances, fine)),
        "frame logits": (head.frame_logits, (instances, labels, tau_R), (instances, labels)),
        "gather": (gather.gather, (features, video_RB, video_RB * 0), ()),
    }
    report = {}
    for name, (call, inputs, wanted) in calls.items():
        compiled = torch.compile(partial(call, impl="definition"))
        ways = {
            "kernel": partial(_both, partial(call, *inputs, impl="triton"), wanted),
            "definition": partial(_both, partial(call, *inputs, impl="definition"), wanted),
            "torch.compile": partial(_both, partial(compiled, *inputs), wanted),
        }
        report[name] = by_turns(ways, 20)
    return report


def _both(forward: Callable[[], Any], wanted: Any) -> None:
    """Forward, and backward if any gradient is wanted."""
    out = forward()
    first = out[0] if isinstance(out, tuple) else out
    if wanted:
        torch.autograd.grad(first, tuple(wanted), torch.ones_like(first))


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    main()
