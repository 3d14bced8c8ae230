"""Searched regressions are searched once, kept by fold, and never taken from a damaged file."""

import json
from pathlib import Path

import numpy as np
import pytest

from cache.files import canonical_json, sha256
from cache.store import Store
from pipeline.evaluate.baselines import FITS, HOLD_OUTS, searched_logistic_regression, together
from pipeline.train.halving import searched_hold_out
from pipeline.train.regressions import FOLDER, Regressions
from support.stores import CLASSES, write_store


def store_of(path: Path, seed: int = 0) -> Store:
    """60 videos of two classes in two folds, one feature telling most of them apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    features = generator.standard_normal((60, 1, 4, 6))
    features[..., 0] += labels[:, None, None]
    folds = {"1": (range(30, 60), range(30)), "2": (range(30), range(30, 60))}
    return write_store(path, features, labels, classes=CLASSES[:2], folds=folds)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return store_of(tmp_path_factory.mktemp("store") / "s.zarr")


@pytest.fixture(scope="module")
def searched(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Regressions:
    own = Regressions(tmp_path_factory.mktemp("runs") / "runs", store)
    assert own.lacking(["1", "2"]) == ["1", "2"]
    own.search(["1", "2"])
    return own


def test_what_is_kept_is_what_the_search_says(store: Store, searched: Regressions) -> None:
    assert searched.lacking(["1", "2"]) == []
    expected = searched_logistic_regression(store, searched_hold_out(store))
    kept = together([own for own in map(searched.find, ["1", "2"]) if own is not None])
    np.testing.assert_array_equal(kept.rows, expected.rows)
    np.testing.assert_array_equal(kept.predicted, expected.predicted)
    assert (kept.name, kept.note) == (expected.name, expected.note)


def test_a_search_that_is_stopped_keeps_the_folds_that_it_finished(
    store: Store, tmp_path: Path
) -> None:
    own = Regressions(tmp_path / "runs", store)
    done: list[None] = []

    def stop_in_the_second_fold() -> None:
        done.append(None)
        if len(done) > len(FITS) * HOLD_OUTS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.search(["1", "2"], stop_in_the_second_fold)
    assert own.lacking(["1", "2"]) == ["2"]


def test_another_store_has_regressions_of_its_own(searched: Regressions, tmp_path: Path) -> None:
    other = Regressions(searched.root, store_of(tmp_path / "other.zarr", seed=1))
    assert other.lacking(["1"]) == ["1"]


@pytest.mark.parametrize(("old", "new"), [("[", "[7,"), ('"sha256"', '"sha1"'), ("{", "")])
def test_what_is_not_as_it_was_left_counts_as_not_searched_and_is_named(
    searched: Regressions, tmp_path: Path, old: str, new: str
) -> None:
    (tmp_path / FOLDER).mkdir()
    for path in (searched.root / FOLDER).iterdir():
        (tmp_path / FOLDER / path.name).write_text(path.read_text().replace(old, new, 1))
    own = Regressions(tmp_path, searched.store)
    assert own.find("1") is None
    assert own.lacking(["1", "2"]) == ["1", "2"]
    assert sorted(own.damaged(["1", "2"]).values()) == sorted((tmp_path / FOLDER).iterdir())
    assert searched.damaged(["1", "2"]) == {}


def test_a_file_that_somebody_wrote_with_too_few_predictions_counts_as_damaged(
    searched: Regressions, tmp_path: Path
) -> None:
    (tmp_path / FOLDER).mkdir()
    for path in (searched.root / FOLDER).iterdir():
        content = json.loads(path.read_text())
        del content["sha256"], content["predicted"][0]
        digest = sha256(canonical_json(content))
        (tmp_path / FOLDER / path.name).write_bytes(canonical_json(content | {"sha256": digest}))
    own = Regressions(tmp_path, searched.store)
    assert sorted(own.damaged(["1", "2"])) == ["1", "2"]
