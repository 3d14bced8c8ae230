"""The same training on a GPU and on the CPU; ``make test-gpu``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from material import random_store

from pipeline.train.config import Run, load_method
from pipeline.train.stack import load_training_data, train_stack


@pytest.mark.gpu
def test_a_stack_trains_on_the_gpu_as_on_the_cpu(gpu: torch.device, tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=35)
    method = load_method("paper", ["optimiser.epochs=2", "temporal.head_size=8"])
    runs = [Run(method=method, fold=fold, seed=0) for fold in ("1", "2")]
    on_gpu, on_cpu = (
        train_stack(load_training_data(store, device), runs)
        for device in (gpu, torch.device("cpu"))
    )
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.epochs[-1]["train_loss"] == pytest.approx(
            other.epochs[-1]["train_loss"], rel=1e-2
        )
        np.testing.assert_allclose(one.predicted.logits_NK, other.predicted.logits_NK, atol=0.5)
