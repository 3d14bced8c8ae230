"""Learning rates that are chosen on held-out videos: the best of each fold, no test video seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.train.rates import FACTORS, best_factors, trials, tried_factors, with_rates
from pipeline.train.records import Records
from pipeline.train.split import scored_rows
from support.records import write_record
from support.stores import random_store

METHOD = load_method("paper")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return random_store(tmp_path / "s.zarr", videos=60)


def write(records: Records, runs: Sequence[Run], right: Sequence[float]) -> None:
    """A record of each run, which predicts this share of its videos right; below 0 it diverged."""
    for run, share in zip(runs, right, strict=True):
        labels = records.store.labels[
            scored_rows(records.store, run.fold, run.method.selection, run.seed)
        ]
        kept = np.arange(len(labels)) < share * len(labels)
        write_record(records, run, np.where(kept, labels, (labels + 1) % 7), diverged=share < 0)


def test_the_best_of_each_fold_is_used_and_the_smallest_of_equal_ones(
    store: Store, tmp_path: Path
) -> None:
    records = Records(tmp_path / "runs", store)
    write(records, trials(METHOD, "1"), (0.1, 0.2, 0.5, 0.9, -1))
    write(records, trials(METHOD, "2"), (0.6, 0.6, 0.1, 0.1, 0.1))
    assert best_factors([METHOD], ["1", "2"], [0, 1], records) == {
        (METHOD, "1"): FACTORS[3],
        (METHOD, "2"): FACTORS[0],
    }


def test_a_rate_with_which_a_seed_diverges_gives_way_to_the_next_best(
    store: Store, tmp_path: Path
) -> None:
    records = Records(tmp_path / "runs", store)
    write(records, trials(METHOD, "1"), (0.1, 0.2, 0.5, 0.9, -1))

    def diverge(factor: float, seed: int) -> None:
        write(records, [Run(method=with_rates(METHOD, factor), fold="1", seed=seed)], [-1])

    def best(*seeds: int) -> float:
        return best_factors([METHOD], ["1"], seeds, records)[METHOD, "1"]

    diverge(FACTORS[3], 1)
    assert (best(0), best(0, 1)) == (FACTORS[3], FACTORS[2])
    diverge(FACTORS[2], 0)
    assert best(0, 1) == FACTORS[1]
    for factor in FACTORS[:2]:
        diverge(factor, 0)
    assert best(0, 1) == FACTORS[3]  # none is left: the row says how many diverged


def test_trials_differ_in_both_rates_alone_and_are_scored_on_training_videos(store: Store) -> None:
    found = trials(METHOD, "1")
    train = next(train for name, train, _ in store.folds if name == "1")
    for run, factor in zip(found, FACTORS, strict=True):
        optimiser = run.method.optimiser
        assert optimiser.lr == pytest.approx(factor * METHOD.optimiser.lr)
        assert optimiser.lr_prompts == pytest.approx(factor * METHOD.optimiser.lr_prompts)
        assert with_rates(METHOD, factor).optimiser == optimiser
        scored = scored_rows(store, "1", run.method.selection, run.seed)
        assert 0 < len(scored) < len(train)
        assert set(scored) <= set(train)


def test_rates_of_which_none_works_or_a_record_is_damaged_are_refused(
    store: Store, tmp_path: Path
) -> None:
    records = Records(tmp_path / "runs", store)
    write(records, trials(METHOD, "1"), (-1, -1, -1, -1, -1))
    with pytest.raises(RefusedError, match="fold 1: training diverged with every learning rate"):
        best_factors([METHOD], ["1"], [0, 1], records)
    (records.folder(trials(METHOD, "1")[0]) / "predictions.csv").write_text("")
    with pytest.raises(RefusedError, match="--retrain-damaged"):
        best_factors([METHOD], ["1"], [0, 1], records)


def test_while_some_rates_are_not_tried_the_others_are_known_and_the_reason_is_said(
    store: Store, tmp_path: Path
) -> None:
    records = Records(tmp_path / "runs", store)
    write(records, trials(METHOD, "1"), (0.1, 0.2, 0.5, 0.9, -1))
    write(records, trials(METHOD, "2")[:3], (0.6, 0.6, 0.6))
    write(records, trials(METHOD, "3"), (-1, -1, -1, -1, -1))
    write(records, trials(METHOD, "4"), (0.1, 0.1, 0.1, 0.1, 0.1))
    damaged = records.folder(trials(METHOD, "4")[3]) / "predictions.csv"
    damaged.write_text("")
    tried = tried_factors([METHOD], ["1", "2", "3", "4"], [0], records)
    assert tried.factors == best_factors([METHOD], ["1"], [0], records)
    assert tried.lacking == {
        (METHOD, "2"): "learning rates not tried: 3, 10 times the base's",
        (METHOD, "3"): "training diverged with every learning rate",
        (METHOD, "4"): f"{damaged} is damaged: its sha256 is not the recorded one",
    }
