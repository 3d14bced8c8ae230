"""How well the influence of frames finds those that show the label."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.evaluate.localisation import localisation_table, localise
from pipeline.train.features import load_training_data
from pipeline.train.record import Record
from pipeline.train.records import Records
from pipeline.train.stack import train_stack
from support.stores import CLASSES, random_store, write_store

CLASS_COUNT = 2


def trained(store: Store, root: Path) -> list[Record]:
    settings = ["optimiser.epochs=15", "optimiser.batch=10", "temporal.fine_depth=0"]
    method = load_method("paper", [*settings, "temporal.coarse_depth=0"])
    data = load_training_data(store, torch.device("cpu"))
    runs = [Run(method=method, fold=fold, seed=0) for fold in ("1", "2")]
    records = Records(root, store)
    for outcome in train_stack(data, runs):
        records.write(outcome, seconds=1.0)
    return [record for run in runs if (record := records.find(run)) is not None]


def test_influence_finds_the_frames_that_show_the_label(tmp_path: Path) -> None:
    """Half of each video's frames point to its class; without temporal layers they stay apart."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % CLASS_COUNT
    shows = generator.permuted(np.tile(np.arange(16) < 8, (40, 1)), axis=1)
    centres = 4 * generator.standard_normal((CLASS_COUNT, 16))
    features = generator.standard_normal((40, 16, 16)) + shows[..., None] * centres[labels][:, None]
    truth = np.where(shows, labels[:, None], -1)
    classes = CLASSES[:CLASS_COUNT]
    path = tmp_path / "s.zarr"
    store = write_store(path, features[:, None], labels, classes=classes, truth_NT=truth)
    found = localise(trained(store, tmp_path / "runs"), store)
    mean = {name: precision.mean() for name, (_, precision) in found.items()}
    assert mean["influence"] > mean["random"] + 0.15
    assert mean["uniform"] == pytest.approx(0.5)
    assert 0.45 < mean["random"] < 0.75
    table = localisation_table(found, classes)
    assert f"| influence | {mean['influence']:.3f} |" in table
    assert "| 16 |" in table


def test_without_truth_nothing_is_measured(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=10)
    assert localise([], store) == {}
