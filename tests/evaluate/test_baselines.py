"""Methods without a temporal network, and the table that sets them beside TG-DFER."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cache.store import Store
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.baselines import (
    PredictedLabels,
    class_means,
    fits,
    logistic_regression,
    searched_logistic_regression,
    zero_shot,
)
from pipeline.model.text_tower import load_text_tower
from pipeline.report.comparison import best_of, comparison_table
from pipeline.train.halving import searched_hold_out
from support.markdown import cells_of, tight
from support.stores import CLASSES, random_store, text_config, text_weights, write_store


def store_of_spreads(tmp_path: Path) -> Store:
    """100 videos of two classes, which differ only in the spread of their frames."""
    generator = np.random.default_rng(0)
    labels = np.arange(100) % 2
    noise = generator.standard_normal((100, 1, 16, 8))
    noise -= noise.mean(2, keepdims=True)
    features = noise * np.where(labels, 3.0, 1.0)[:, None, None, None]
    return write_store(tmp_path / "s.zarr", features, labels, classes=CLASSES[:2])


def test_zero_shot_finds_the_text_that_the_frames_point_to(tmp_path: Path) -> None:
    tower = load_text_tower(text_weights(text_config(16)), text_config(16))
    for kind in ("class", "descriptors"):
        texts = tower.encode_texts(class_texts(CLASSES).of(kind)).numpy()
        labels = np.arange(21) % 7
        noise = np.random.default_rng(0).standard_normal((21, 1, 4, 16)) * 0.01
        features = 5 * texts[labels][:, None, None] + noise
        store = write_store(tmp_path / f"{kind}.zarr", features, labels)
        result = zero_shot(store, kind)
        assert (result.predicted == store.labels[result.rows]).all()
        assert sorted(result.rows) == list(range(21))


@pytest.mark.parametrize("pooling", ["mean", "mean+max+std"])
def test_logistic_regression_learns_and_tests_every_video_once(
    tmp_path: Path, pooling: Literal["mean", "mean+max+std"]
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=70, views=2, missing=(5,))
    result = logistic_regression(store, pooling)
    assert sorted(result.rows) == [row for row in range(70) if row != 5]
    assert (result.predicted == store.labels[result.rows]).mean() > 0.9


def test_only_differences_in_spread_are_seen_by_std_pooling_alone(tmp_path: Path) -> None:
    store = store_of_spreads(tmp_path)
    accuracy = {
        pooling: (result.predicted == store.labels[result.rows]).mean()
        for pooling in ("mean", "mean+max+std")
        for result in [logistic_regression(store, pooling)]
    }
    assert accuracy["mean+max+std"] > 0.95
    assert accuracy["mean"] < 0.75


TWO_SEEDS = [("1", seed) for seed in (0, 1) for _ in range(40)]


def test_comparison_counts_videos_and_seeds_and_resamples_people(tmp_path: Path) -> None:
    people = tuple(f"person {n % 10}" for n in range(40))
    store = random_store(tmp_path / "s.zarr", videos=40, subjects=people)
    rows = np.arange(40)
    right = PredictedLabels("right", np.tile(rows, 2), np.tile(store.labels, 2), TWO_SEEDS)
    wrong = PredictedLabels("wrong", rows, (store.labels + 1) % 7)
    text = tight(comparison_table(store, [right, wrong], {"data": "test"}))
    assert "| right | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 40 | 2 |" in text
    assert "| wrong | 0.0 [0.0, 0.0] | 0.0 [0.0, 0.0] | 40 | 1 |" in text
    assert "resamples of people" in text


def test_searched_regression_chooses_the_pooling_that_the_labels_need(tmp_path: Path) -> None:
    store = store_of_spreads(tmp_path)
    done: list[None] = []
    hold_out = searched_hold_out(store)
    result = searched_logistic_regression(store, hold_out, lambda: done.append(None))
    assert len(done) == fits(store) == 5 * 3 * 30
    assert "std" in result.note
    assert sorted(result.rows) == list(range(100))
    assert (result.predicted == store.labels[result.rows]).mean() > 0.95


def test_differences_to_a_baseline_are_paired_by_video(tmp_path: Path) -> None:
    people = tuple(f"person {n % 10}" for n in range(40))
    store = random_store(tmp_path / "s.zarr", videos=40, subjects=people)
    rows = np.arange(40)
    wrong = (store.labels + 1) % 7
    base = PredictedLabels("base", rows[::-1], np.where(rows < 20, store.labels, wrong)[::-1])
    better = PredictedLabels("better", np.tile(rows, 2), np.tile(store.labels, 2), TWO_SEEDS)
    part = PredictedLabels("part", rows[:9], store.labels[:9])
    fewer = PredictedLabels("fewer", rows[:30], store.labels[:30])
    assert best_of([base, better], store) is better
    text = comparison_table(store, [base, better, part], {}, {"best": base})
    cells = cells_of(text)
    assert cells["method"] == ["UAR", "WAR", "UAR − best", "WAR − best", "videos", "seeds"]
    assert cells["base"][2:4] == ["–", "–"]
    assert cells["better"][3].startswith("+50.0 [")
    assert cells["part"][3].startswith("+0.0 [")
    assert "- differences: paired by video, not corrected; best is base" in text
    without = cells_of(comparison_table(store, [better], {}, {"best": fewer}))
    assert without["better"][2:4] == ["–", "–"]


def test_class_means_are_those_of_the_directions_of_training_videos(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=70, views=3, missing=(5,))
    found = class_means(store)
    pooled_NVD = store.load_features().astype(np.float64).mean(2)
    expected = {}
    for _, train, test in store.folds:
        means = np.zeros((len(CLASSES), store.dim))
        for row in train:
            for view in (1, 2):
                if row != 5:
                    vector = pooled_NVD[row, view]
                    means[store.labels[row]] += vector / np.sqrt((vector**2).sum())
        for row in test:
            cosines = means @ pooled_NVD[row, 0] / np.sqrt((means**2).sum(1))
            expected[int(row)] = int(cosines.argmax())
    said = dict(zip(found.rows.tolist(), found.predicted.tolist(), strict=True))
    assert said == {row: k for row, k in expected.items() if row != 5}


def test_templates_with_the_name_alone_are_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=70)
    several = zero_shot(store, "templates").predicted
    monkeypatch.setattr("pipeline.evaluate.baselines.TEMPLATES", ("{}", "{}"))
    names = zero_shot(store, "class").predicted
    assert (zero_shot(store, "templates").predicted == names).all()
    assert (several != names).any()
