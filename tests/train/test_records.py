"""What a run leaves on disk, and what counts as finished."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.files import sha256_file
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.train.records import read_result, write_outcome
from pipeline.train.stack import Outcome, load_training_data, train_stack
from support.stores import random_store

Trained = tuple[Store, Outcome]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    store = random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=21)
    method = load_method("paper", ["optimiser.epochs=2"])
    data = load_training_data(store, torch.device("cpu"))
    return store, train_stack(data, [Run(method=method, fold="3", seed=1)])[0]


def test_record_holds_configuration_metrics_predictions_checkpoint_and_origin(
    trained: Trained, tmp_path: Path
) -> None:
    store, outcome = trained
    folder = write_outcome(tmp_path, outcome, store, seconds=1.5)
    about = json.loads((folder / "run.json").read_text())
    assert Run.model_validate(about["run"]) == outcome.run
    assert about["store"]["digest"] == store.digest
    assert about["store"]["identity"]["encoder"]["name"] == "random"
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    metrics = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    predictions = list(csv.DictReader((folder / "predictions.csv").open()))
    test = next(test for name, _, test in store.folds if name == "3")
    assert [row["id"] for row in predictions] == [store.ids[row] for row in test]
    checkpoint = load_file(folder / "checkpoint.safetensors")
    assert all(torch.equal(checkpoint[name], value) for name, value in outcome.state.items())
    result = json.loads((folder / "result.json").read_text())
    digest = sha256_file(folder / "checkpoint.safetensors")
    assert result["sha256"]["checkpoint.safetensors"] == digest
    assert result["test_videos"] == len(test)
    assert result["war"] == float(metrics[-1]["test_war"])


def test_result_is_read_back_with_its_predictions(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    assert read_result(tmp_path, outcome.run, store) is None
    write_outcome(tmp_path, outcome, store, seconds=1.5)
    result = read_result(tmp_path, outcome.run, store)
    assert result is not None
    assert result.ok
    _, labels, predicted = result.predictions()
    assert labels.tolist() == store.labels[outcome.test_rows].tolist()
    assert predicted.tolist() == outcome.predicted.logits_NK.argmax(1).tolist()
    frames = result.frame_logits()
    assert frames.shape == (len(labels), store.frames, len(store.classes))
    with (result.folder / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))
    cosines = [float(first[f"influence_{frame}"]) for frame in range(store.frames)]
    np.testing.assert_allclose(np.array(cosines) / 0.01, frames[0, :, predicted[0]], atol=1e-3)
    np.testing.assert_allclose(result.attention().sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(frames.mean(1), outcome.predicted.logits_NK, atol=1e-4)


def test_folder_without_result_is_an_unfinished_run(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    folder = write_outcome(tmp_path, outcome, store, seconds=1.5)
    (folder / "result.json").unlink()
    assert read_result(tmp_path, outcome.run, store) is None


def test_diverged_run_is_recorded_as_such(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    predicted = replace(outcome.predicted, logits_NK=outcome.predicted.logits_NK * float("nan"))
    broken = replace(outcome, predicted=predicted)
    write_outcome(tmp_path, broken, store, seconds=1.5)
    result = read_result(tmp_path, outcome.run, store)
    assert result is not None
    assert not result.ok
    assert result.summary["status"] == "diverged"
