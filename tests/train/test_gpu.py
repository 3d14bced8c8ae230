"""The same training on a GPU and on the CPU; ``make test-gpu``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import RefusedError
from pipeline.config import Run, load_method
from pipeline.train.features import load_training_data
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from pipeline.train.stack import train_stack
from support.stores import random_store

# Seven steps an epoch: the first run as they are, the others are replayed as a CUDA graph.
SETTINGS = ["optimiser.epochs=2", "optimiser.batch=4", "temporal.head_size=8"]


def runs(*settings: str) -> list[Run]:
    method = load_method("paper", [*SETTINGS, *settings])
    return [Run(method=method, fold=fold, seed=seed) for fold in "12" for seed in range(2)]


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 1e-1)])
def test_a_stack_trains_on_the_gpu_as_on_the_cpu(
    gpu: torch.device, tmp_path: Path, precision: str, tolerance: float
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=35)
    on_gpu = train_stack(load_training_data(store, gpu), runs(f"optimiser.precision={precision}"))
    on_cpu = train_stack(load_training_data(store, torch.device("cpu")), runs())
    for one, other in zip(on_gpu, on_cpu, strict=True):
        for ours, theirs in zip(one.epochs, other.epochs, strict=True):
            assert ours["train_loss"] == pytest.approx(
                theirs["train_loss"], rel=tolerance, abs=tolerance
            )
        logits = one.selected.predictions.logits_NK, other.selected.predictions.logits_NK
        np.testing.assert_allclose(*logits, atol=50 * tolerance)


@pytest.mark.gpu
def test_a_stack_on_the_gpu_equals_its_runs_trained_alone(
    gpu: torch.device, tmp_path: Path
) -> None:
    data = load_training_data(random_store(tmp_path / "s.zarr", videos=35), gpu)
    for outcome in train_stack(data, runs("optimiser.precision=fp32")):
        (alone,) = train_stack(data, [outcome.run])
        assert outcome.epochs[-1]["train_loss"] == pytest.approx(
            alone.epochs[-1]["train_loss"], rel=1e-2
        )
        np.testing.assert_allclose(
            outcome.selected.predictions.logits_NK, alone.selected.predictions.logits_NK, atol=0.5
        )


@pytest.mark.gpu
def test_a_stack_trains_on_another_gpu_than_the_current_one(
    gpu: torch.device, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    store = random_store(tmp_path / "s.zarr", videos=35)
    one, other = (
        train_stack(load_training_data(store, torch.device(gpu.type, index)), runs())
        for index in (0, 1)
    )
    for ours, theirs in zip(one, other, strict=True):
        assert ours.epochs[-1]["train_loss"] == pytest.approx(
            theirs.epochs[-1]["train_loss"], rel=1e-2
        )


@pytest.mark.gpu
def test_all_runs_of_a_stack_that_does_not_fit_are_trained_in_smaller_ones(
    gpu: torch.device, tmp_path: Path
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=35)
    wanted = runs("optimiser.precision=fp32")
    whole, halved = (Records(tmp_path / name, store, "cuda") for name in ("whole", "halved"))
    torch.cuda.reset_peak_memory_stats(gpu)
    train_runs(wanted, whole, "cuda")
    peak = torch.cuda.max_memory_reserved(gpu)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        0.8 * peak / torch.cuda.get_device_properties(gpu).total_memory, gpu
    )
    try:
        train_runs(wanted, halved, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    for run in wanted:
        assert whole.find(run) is not None
        assert halved.find(run) is not None


@pytest.mark.gpu
def test_features_that_do_not_fit_are_refused_with_their_size(
    gpu: torch.device, tmp_path: Path
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=35)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0, gpu)
    try:
        with pytest.raises(RefusedError, match=r"the features of .* take .* GiB, cuda has"):
            train_runs(runs(), Records(tmp_path / "runs", store, "cuda"), "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
