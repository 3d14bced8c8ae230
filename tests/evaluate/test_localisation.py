"""How well the influence of frames finds those that show the label."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.evaluate.localisation import localisation_table, localise, precision_recall
from pipeline.evaluate.predictions import EVALUATION_VIDEOS, Predictions
from pipeline.train.features import load_training_data
from pipeline.train.record import Record
from pipeline.train.records import Records
from pipeline.train.stack import train_stack
from pipeline.train.trained import TrainedRun, load_run
from support.markdown import cells_of
from support.records import write_record
from support.stores import CLASSES, random_store, write_store

CLASS_COUNT = 2


def trained(store: Store, root: Path, *more: str) -> list[Record]:
    settings = ["optimiser.epochs=15", "optimiser.batch=10", "temporal.fine_depth=0", *more]
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
    mean = {name: own.precision.mean() for name, own in found.items()}
    assert mean["logit"] > mean["random"] + 0.15
    assert mean["uniform"] == pytest.approx(0.5)
    assert 0.45 < mean["random"] < 0.75
    table = cells_of(localisation_table(found, classes))
    assert table["logit"][0].startswith(f"{mean['logit']:.3f} [")
    assert table["margin"][0].startswith(f"{mean['margin']:.3f} [")
    assert table["margin"][-1] == "16"


def test_precision_and_recall_of_the_highest_ranked_frames_are_means_over_videos(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(0)
    labels, frames = np.arange(22) % CLASS_COUNT, 6
    truth = np.where(generator.random((22, frames)) < 0.4, labels[:, None], -1)
    truth[:3] = labels[:3, None]  # all frames show it, so that they say nothing
    features, folds = np.ones((22, 1, frames, 8)), {"1": (range(20, 22), range(20))}
    store = write_store(tmp_path / "s.zarr", features, labels, truth_NT=truth, folds=folds)
    run = Run(method=load_method(), fold="1", seed=0)
    said = generator.standard_normal((20, frames, len(CLASSES)))
    predicted = generator.integers(0, CLASS_COUNT, 20)
    records = Records(tmp_path / "runs", store)
    write_record(records, run, predicted, frame_logits_NTK=said)
    record = records.find(run)
    assert record is not None
    found = precision_recall([record], store, "logit")
    assert found is not None
    precisions, recalls = [], []
    for n in range(20):
        shows = [bool(truth[n, t] == labels[n]) for t in range(frames)]
        if 0 < sum(shows) < frames:
            ranked = sorted(range(frames), key=lambda t: -said[n, t, predicted[n]])
            hits = [sum(shows[t] for t in ranked[:count]) for count in range(1, frames + 1)]
            precisions.append([hit / count for count, hit in enumerate(hits, 1)])
            recalls.append([hit / sum(shows) for hit in hits])
    np.testing.assert_allclose(found[0], np.mean(precisions, 0))
    np.testing.assert_allclose(found[1], np.mean(recalls, 0))
    assert len(precisions) < 18
    assert precision_recall([record], store, "attention") is None  # it has none
    without = write_store(tmp_path / "without.zarr", features, labels, folds=folds)
    assert precision_recall([record], without, "logit") is None


def test_rankings_use_the_frames_that_the_network_uses(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(40) % CLASS_COUNT
    shows = np.tile(np.arange(16) % 4 == 2, (40, 1))  # frame 2 of every segment of 4: its middle
    truth = np.where(shows, labels[:, None], -1)
    features = generator.standard_normal((40, 1, 16, 16))
    classes = CLASSES[:CLASS_COUNT]
    store = write_store(tmp_path / "s.zarr", features, labels, classes=classes, truth_NT=truth)
    every = trained(store, tmp_path / "runs", "input.frames=4")
    assert every[0].frame_logits().shape == (8, 4, CLASS_COUNT)
    found = localise(every, store)
    # All four chosen frames show the label, so no ranking can be right or wrong.
    assert np.isnan(found["logit"].precision).all()


def test_leaving_a_frame_out_costs_what_the_network_says_without_it(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=40, frames=6)
    (first, _) = trained(store, tmp_path / "runs")
    network = load_run(first.folder, store)
    ids, _, predicted = first.predictions()
    features = store.load_features([0])[[store.ids.index(i) for i in ids], 0].astype(np.float32)
    found = network.leave_one_out(features, predicted)
    assert found.shape == (8, 6)
    for n, frame in ((0, 0), (3, 5)):
        without = features[n : n + 1].copy()
        without[0, frame] = np.delete(features[n], frame, axis=0).mean(0)
        logits = network.predict(np.concatenate([features[n : n + 1], without])).logits_NK
        with np.errstate(over="ignore"):
            p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        expected = np.log(p[0, predicted[n]]) - np.log(p[1, predicted[n]])
        assert found[n, frame] == pytest.approx(expected, abs=1e-4)
    more = localise([first], store, lambda run: {"leave_one_out": found})
    assert more == {}  # the store has no truth


def test_videos_are_left_without_a_frame_a_bounded_number_at_a_time(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=40, frames=6)
    (first, _) = trained(store, tmp_path / "runs", "input.frames=2")
    network = load_run(first.folder, store)
    features, predicted = store.load_features([0])[:, 0], np.arange(40) % len(CLASSES)
    expected = network.leave_one_out(features, predicted)
    given: list[int] = []

    class Watched(TrainedRun):
        def predict(self, features_NTD: np.ndarray) -> Predictions:
            given.append(len(features_NTD))
            return super().predict(features_NTD)

    many = np.arange(EVALUATION_VIDEOS + 50) % 40
    found = Watched(**vars(network)).leave_one_out(features[many], predicted[many])
    np.testing.assert_allclose(found, expected[many], atol=1e-4)
    assert given == [EVALUATION_VIDEOS] * 3 + [50] * 3  # whole, and without each of two frames


def test_the_only_frame_is_not_left_out(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=40, frames=6)
    (first, _) = trained(store, tmp_path / "runs", "input.frames=1")
    with pytest.raises(RefusedError, match=r"nothing is left of a video.* use 2 frames or more"):
        load_run(first.folder, store).leave_one_out(
            store.load_features([0])[:, 0], np.zeros(40, np.int64)
        )


def test_without_truth_nothing_is_measured(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=10)
    assert localise([], store) == {}
