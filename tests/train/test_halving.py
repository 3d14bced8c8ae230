"""Successive halving: test videos stay unseen, the best go on, a stopped search is resumed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.train.grid import check_shapes, train_runs
from pipeline.train.halving import Search, halve, parse_rungs, plan_search
from pipeline.train.records import Records
from pipeline.train.space import read_space
from pipeline.train.split import scored_rows
from support.records import write_record
from support.stores import random_store

BASE = load_method("paper", ["temporal.coarse_depth=0", "temporal.fine_depth=0"])
RUNGS = parse_rungs("6:1:2,3:2:2,1:3:3")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = tmp_path_factory.mktemp("store") / "s.zarr"
    return random_store(place, videos=60, subjects=[f"p{n % 20}" for n in range(60)])


@pytest.fixture
def search(store: Store, tmp_path: Path) -> Search:
    (tmp_path / "space.toml").write_text(
        "[optimiser]\nlr = {low = 0.001, high = 0.1, log = true}\n"
    )
    space = read_space(str(tmp_path / "space.toml"))
    return plan_search(BASE, space, "1", RUNGS, 0, lambda runs: check_shapes(runs, store))


def trainer(records: Records, trained: list[int]) -> Callable[[Sequence[Run]], None]:
    def train(runs: Sequence[Run]) -> None:
        trained.append(train_runs(runs, records, "cpu", workers=0))

    return train


def test_rungs_are_read_and_must_get_smaller() -> None:
    assert [rung.run_epochs for rung in RUNGS] == [12, 12, 9]
    for text in (
        "",
        "3",
        "3:1",
        "3:1:1,3:2:1",
        "3:1:1,4:2:1",
        "0:1:1",
        "3:0:1",
        "3:1:x",
        "3:1:1:1",
    ):
        with pytest.raises(RefusedError, match="expected TRIALS:EPOCHS:HOLDOUTS"):
            parse_rungs(text)


def test_same_seed_gives_the_same_trials_and_the_base_is_the_first(
    store: Store, search: Search
) -> None:
    space = read_space("default")

    def trials(seed: int) -> tuple[object, ...]:
        return plan_search(BASE, space, "1", RUNGS, seed, lambda r: check_shapes(r, store)).trials

    assert trials(0) == trials(0) != trials(1)
    assert trials(1)[0] == BASE
    assert len(set(search.trials)) == 6


def test_space_that_is_too_small_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("[label]\ntop_k = [1, 2]\n")
    space = read_space(str(tmp_path / "space.toml"))
    with pytest.raises(RefusedError, match="only 3 of 6 different settings"):
        plan_search(BASE, space, "1", RUNGS, 0, lambda runs: None)


def test_settings_that_the_store_cannot_train_are_no_trials(store: Store, tmp_path: Path) -> None:
    most = store.frames + 3
    (tmp_path / "space.toml").write_text(
        f'[label]\npooling = ["top_k"]\ntop_k = {{low = 1, high = {most}}}\n'
        "[optimiser]\nlr = {low = 0.001, high = 0.1}\n"
    )
    space = read_space(str(tmp_path / "space.toml"))
    search = plan_search(BASE, space, "1", RUNGS, 0, lambda runs: check_shapes(runs, store))
    assert all(method.label.top_k <= store.frames for method in search.trials)


def test_search_never_predicts_a_test_video_and_keeps_people_apart(
    store: Store, search: Search, tmp_path: Path
) -> None:
    records = Records(tmp_path / "runs", store)
    halve(search, records, trainer(records, []))
    _, train, test = store.folds[0]
    every = list(records.root.glob("?" * 16))
    assert len(every) == 6 * 2 + 3 * 2 + 1 * 3
    hold_outs = set()
    for rung in RUNGS:
        for run in search.runs(BASE, rung):
            record = records.find(run)
            if record is None:
                continue
            ids, labels, _ = record.predictions()
            rows = [store.ids.index(video_id) for video_id in ids]
            assert set(rows) < set(train.tolist())
            assert not set(rows) & set(test.tolist())
            assert labels.tolist() == store.labels[rows].tolist()
            left = set(train.tolist()) - set(rows)
            people = [{store.subjects[row] for row in part} for part in (rows, left)]
            assert not people[0] & people[1]
            hold_outs.add(tuple(rows))
    assert len(hold_outs) >= 2
    for folder in every:
        said = (folder / "predictions.csv").read_text()
        assert not any(f"{store.ids[row]}," in said for row in test), folder


def test_best_trials_go_on_and_a_diverged_one_is_last(
    store: Store, search: Search, tmp_path: Path
) -> None:
    records = Records(tmp_path / "runs", store)
    right = {0: 0.5, 1: 0.9, 2: 0.1, 3: 0.7, 4: 0.9, 5: math.nan}

    def pretend(runs: Sequence[Run]) -> None:
        for run in records.pending(runs):
            share = right[search.trials.index(trial_of(search, run))]
            rows = scored_rows(store, run.fold, run.method.selection, run.seed)
            predicted = store.labels[rows].copy()
            wrong = 0 if math.isnan(share) else round((1 - share) * len(rows))
            predicted[:wrong] = (predicted[:wrong] + 1) % len(store.classes)
            write_record(records, run, predicted, diverged=math.isnan(share))

    trials = halve(search, records, pretend)
    assert [trial.number for trial in trials[:3]] == [1, 4, 3]
    assert [len(trial.scores) for trial in trials] == [3, 2, 2, 1, 1, 1]
    assert trials[-1].number == 5
    assert math.isnan(trials[-1].scores[0])


def test_finished_runs_are_not_repeated_and_the_outcome_is_the_same(
    store: Store, search: Search, tmp_path: Path
) -> None:
    whole = Records(tmp_path / "whole", store)
    expected = halve(search, whole, trainer(whole, []))
    records, trained = Records(tmp_path / "runs", store), list[int]()
    first = [run for method in search.trials for run in search.runs(method, RUNGS[0])]
    train_runs(first, records, "cpu", workers=0)
    found = halve(search, records, trainer(records, trained))
    assert [(t.number, t.scores) for t in found] == [(t.number, t.scores) for t in expected]
    assert trained == [0, 6, 3]


def test_winner_is_used_with_the_base_s_selection_and_the_last_epochs(search: Search) -> None:
    chosen = search.chosen(search.trials[3])
    assert chosen.selection == BASE.selection
    assert chosen.optimiser.epochs == 3
    assert chosen.optimiser.lr == search.trials[3].optimiser.lr


def trial_of(search: Search, run: Run) -> object:
    found = [m for m in search.trials if m.optimiser.lr == run.method.optimiser.lr]
    assert len(found) == 1
    return found[0]


def test_hold_outs_of_a_record_are_checked_like_test_videos(store: Store, tmp_path: Path) -> None:
    records = Records(tmp_path / "runs", store)
    method = load_method(
        "paper", ["selection.tested_on=held_out", "selection.validation_share=0.2"]
    )
    run = Run(method=method, fold="1", seed=0)
    rows = scored_rows(store, "1", method.selection, 0)
    write_record(records, run, np.zeros(len(rows), np.int64))
    found = records.find(run)
    assert found is not None
    assert found.ok
    other = run.model_copy(update={"seed": 1})
    assert rows.tolist() != scored_rows(store, "1", method.selection, other.seed).tolist()
