"""A and B side by side: settings, runs and tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.evaluate.metrics import uar, war
from pipeline.evaluate.statistics import Sample, bootstrap_difference, holm, mcnemar
from pipeline.report.ablation import collect
from pipeline.report.forms import write_tables
from pipeline.report.tables import vary
from pipeline.report.versus import Side, read_side, versus, versus_report
from pipeline.report.versus_tables import versus_tables
from pipeline.train.records import Records
from support.commands import tgdfer
from support.markdown import cells_of, prose
from support.records import write_record
from support.stores import random_store

FOLDS = ("1", "2")
PEOPLE = tuple(f"person {n % 14}" for n in range(42))
METHODS = [load_method("paper", [f"optimiser.lr={rate}"]) for rate in (0.01, 0.02)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and two folders with the runs of a setting each, two folds and two seeds."""
    folder = tmp_path_factory.mktemp("versus")
    store = random_store(folder / "s.zarr", 42, frames=4, dim=4, folds=2, subjects=PEOPLE)
    generator = np.random.default_rng(0)
    for name, method, share in zip("ab", METHODS, (0.1, 0.9), strict=True):
        for fold in FOLDS:
            for seed in (0, 1):
                run = Run(method=method, fold=fold, seed=seed)
                labels = labels_of(store, fold)
                right = generator.random(len(labels)) < share
                predicted = np.where(right, labels, (labels + 1) % 7)
                write_record(Records(folder / name, store), run, predicted)
    return folder


@pytest.fixture(scope="module")
def store(place: Path) -> Store:
    from cache.store import open_store

    return open_store(place / "s.zarr")


def labels_of(store: Store, fold: str) -> np.ndarray:
    return store.labels[next(test for name, _, test in store.folds if name == fold)]


def alone(side: Side, seed: int) -> Side:
    return Side(side.name, [record for record in side.records if record.run.seed == seed])


def sample_of(side: Side, store: Store) -> Sample:
    """One record after the other, by fold and seed."""
    records = sorted(side.records, key=lambda record: (record.run.fold, record.run.seed))
    parts = [record.predictions() for record in records]
    ids = [name for own, _, _ in parts for name in own]
    networks = [(r.run.fold, r.run.seed) for r in records for _ in r.predictions()[0]]
    people = store.people(store.rows_of(ids).tolist())
    labels, said = (np.concatenate([own[n] for own in parts]) for n in (1, 2))
    return Sample(labels, said, people, networks)


def test_differences_are_those_of_the_paired_bootstrap(place: Path, store: Store) -> None:
    a, b = (read_side(place / name) for name in "ab")
    found = versus(a, b, store)
    samples = sample_of(b, store), sample_of(a, store)
    expected = bootstrap_difference(*samples, len(store.classes), metrics=(uar, war))
    assert tuple(line.difference for line in found.lines[:2]) == expected
    assert [line.name for line in found.lines] == ["UAR", "WAR", *store.classes]
    assert (found.videos, found.runs, found.absent, found.mcnemar) == (42, 4, [], None)
    for line in found.lines:
        assert line.b.value - line.a.value == pytest.approx(line.difference.value)
    text = versus_report(found)
    assert max(map(len, text.splitlines())) <= 100
    cells = cells_of(text)
    assert cells["WAR"][2] == expected[1].text("+.1f", 100)
    assert cells["WAR"][5] == f"{100 * expected[1].detectable:.1f}"
    corrected = holm([line.difference.p for line in found.lines])
    clear = [own.name for own, p in zip(found.lines, corrected, strict=True) if p < 0.05]
    assert f"with all 9 tests counted (Holm): {', '.join(clear)} - Finds" in prose(text)
    assert clear
    assert "several seeds" in prose(text)


def test_one_network_for_each_video_has_a_mcnemar_test(place: Path, store: Store) -> None:
    a, b = (alone(read_side(place / name), 0) for name in "ab")
    found = versus(a, b, store)
    right = [own.labels == own.predictions for own in (sample_of(a, store), sample_of(b, store))]
    assert found.mcnemar == pytest.approx(mcnemar(*right))
    assert found.mcnemar is not None
    assert f"as given: p = {found.mcnemar:.3f}".replace("0.000", "<.001") in prose(
        versus_report(found)
    )


def test_only_folds_and_seeds_of_both_are_compared(place: Path, store: Store) -> None:
    a, b = (read_side(place / name) for name in "ab")
    found = versus(alone(a, 0), b, store)
    assert found.runs == 2
    assert found.names == (str(place / "a"), f"{place / 'b'}; 2 of its runs have no counterpart")
    with pytest.raises(
        RefusedError, match=r"no fold and seed in common: .*fold 1 seed 0.*fold 1 seed 1"
    ):
        versus(alone(a, 0), alone(b, 1), store)


def test_runs_of_other_videos_or_of_several_settings_are_refused(
    place: Path, store: Store, tmp_path: Path
) -> None:
    other = random_store(tmp_path / "o.zarr", 50, frames=2, dim=4, folds=2)
    write_record(
        Records(tmp_path / "runs", other),
        Run(method=METHODS[0], fold="1", seed=0),
        np.zeros(25, int),
    )
    with pytest.raises(RefusedError, match=r"was not tested on videos of .*s\.zarr and its labels"):
        versus(read_side(tmp_path / "runs"), read_side(place / "a"), store)
    records = Records(tmp_path / "mixed", store)
    for method in METHODS:
        write_record(records, Run(method=method, fold="1", seed=0), np.zeros(21, int))
    with pytest.raises(RefusedError, match=r"runs that differ in optimiser\.lr, expected those"):
        read_side(tmp_path / "mixed")
    with pytest.raises(RefusedError, match="no finished run here"):
        read_side(tmp_path)


def test_epochs_selected_on_test_videos_are_named(store: Store, tmp_path: Path) -> None:
    method = load_method("paper", ["selection.rule=best_on_test"])
    write_record(Records(tmp_path, store), Run(method=method, fold="1", seed=0), np.zeros(21, int))
    side = read_side(tmp_path)
    found = versus(side, side, store)
    assert found.names == (f"{tmp_path} (optimistic)",) * 2
    assert {line.difference.p for line in found.lines} == {1}


def test_the_command_compares_finished_runs_settings_and_tables(place: Path) -> None:
    done = tgdfer("compare", "a", "b", "--store", "s.zarr", cwd=place)
    assert done.returncode == 0, done.stderr
    assert cells_of(done.stdout)["WAR"][2].startswith("+")
    settings = ["--set", "optimiser.lr=0.01", "--device", "cpu", "--seeds", 2, "--runs", "a"]
    mixed = tgdfer("compare", "paper", "b", "--store", "s.zarr", *settings, cwd=place)
    assert mixed.returncode == 0, mixed.stderr
    assert cells_of(mixed.stdout)["WAR"] == cells_of(done.stdout)["WAR"]


def table_of(path: Path, war: float | None, **about: str) -> Path:
    rows = [{"row": "e", "uar_mean": 50.0, "war_mean": war}]
    content = {"about": about, "tables": [{"name": "table3", "rows": rows}]}
    path.write_text(json.dumps(content))
    return path


def test_tables_of_finished_runs_have_paired_differences(place: Path, store: Store) -> None:
    varied = vary(["optimiser.lr=[0.01]"])
    table = replace(varied, rows=(replace(varied.rows[0], settings={}),))
    for name, method in zip("ab", METHODS, strict=True):
        rows = collect(table, method, FOLDS, [0, 1], Records(place / name, store))
        header = {"data": "x", "runs": str(place / name)}
        write_tables([(table, rows)], header, place / f"out-{name}")
    first, second = (place / f"out-{name}" / "ablation.json" for name in "ab")
    text = versus_tables(first, second, store)
    a, b = (read_side(place / name) for name in "ab")
    expected = versus(a, b, store).lines[1].difference
    cells = cells_of(text)["varied 1"]
    assert cells[5] == expected.text("+.2f", 100)
    assert "with all 2 tests counted (Holm): varied 1 (UAR), varied 1 (WAR)" in prose(text)
    assert "Without an interval" not in text
    assert max(map(len, text.splitlines())) <= 100
    gone = versus_tables(first, second, "no store here")
    assert "Without an interval: varied 1: no store here" in prose(gone)
    content = json.loads(first.read_text())
    content["tables"][0]["rows"][0]["runs"] = ["../a"]
    first.write_text(json.dumps(content))
    with pytest.raises(RefusedError, match="not tables as tgdfer ablate writes them"):
        versus_tables(first, second, store)


def test_tables_are_compared_row_by_row_without_intervals(tmp_path: Path, store: Store) -> None:
    a = table_of(tmp_path / "a.json", 60.0, code="1", data="x\x1b")
    b = table_of(tmp_path / "b.json", 61.5, code="2", data="x\x1b")
    text = versus_tables(a, b, store)
    assert cells_of(text)["table3 e"] == ["50.00", "50.00", "+0.00", "60.00", "61.50", "+1.50"]
    assert "- code: A 1; B 2" in text
    assert "Without an interval: table3 e: a file names no runs" in prose(text)
    assert "\x1b" not in text
    missing = versus_tables(a, table_of(tmp_path / "c.json", None), store)
    assert cells_of(missing)["table3 e"][3:] == ["60.00", "–", "–"]
    for name, content, said in (
        ("n.json", '{"about": {}, "tables": []}', "have no row in common"),
        ("l.json", "[]", "not tables as tgdfer ablate writes them"),
        ("s.json", '{"about": {}, "tables": [{"name": 1}]}', r"tables\.0\.name"),
        ("d.json", '{"a":' * 99_999, "not tables as tgdfer ablate writes them"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(RefusedError, match=said):
            versus_tables(a, tmp_path / name, store)
