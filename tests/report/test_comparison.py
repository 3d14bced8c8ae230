"""Several methods in one table, also where runs are missing."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import load_method, runs_of
from pipeline.evaluate.baselines import PredictedLabels
from pipeline.evaluate.statistics import Sample, bootstrap, bootstrap_difference
from pipeline.report.comparison import comparison_table, of_runs
from pipeline.train.records import Records
from support.markdown import cells_of, prose, tight
from support.records import write_record
from support.stores import random_store


def test_damaged_and_diverged_runs_are_left_out_and_counted(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=21, folds=3, frames=3, dim=8)
    records, runs = Records(tmp_path / "runs", store), runs_of(load_method(), ["1", "2", "3"], [0])
    first, second, third = (
        write_record(records, run, np.zeros(7, int), diverged=run.fold == "3") for run in runs
    )
    some, good = of_runs("ours", [records.find(run) for run in runs], store)
    assert (some.name, len(good)) == ("ours (2 of 3, 1 diverged)", 2)
    for folder in (first, second, third):
        (folder / "metrics.csv").write_text("")
    none, good = of_runs("a|b", [records.find(run) for run in runs], store)
    assert (none.name, len(good)) == ("a|b (0 of 3, 3 damaged)", 0)
    text = tight(comparison_table(store, [some, none], {"data": "x\x1b"}))
    assert "| ours (2 of 3, 1 diverged) | 14.3 [" in text
    assert r"| a\|b (0 of 3, 3 damaged) | – | – | 0 | 0 |" in text
    assert r"- data: x\x1b" in text


@pytest.mark.parametrize(
    ("known", "said"), [(0, "videos"), (20, "people, and of videos of unknown people")]
)
def test_videos_of_unknown_people_are_resampled_one_by_one(
    tmp_path: Path, known: int, said: str
) -> None:
    people = [f"person {row % 4}" if row < known else None for row in range(40)]
    store = random_store(tmp_path / "s.zarr", subjects=people)
    rows = np.arange(40)
    some = PredictedLabels("some", rows, np.where(rows % 3, store.labels, 0))
    alone = [people[row] or store.ids[row] for row in rows.tolist()]
    expected = bootstrap(Sample(store.labels, some.predicted, alone), len(store.classes))
    text = tight(comparison_table(store, [some], {}))
    uar, war = (interval.text(".1f", 100) for interval in expected)
    assert f"| some | {uar} | {war} | 40 | 1 |" in text
    assert f"bootstrap resamples of {said}, of this trained network" in prose(text)


def test_differences_to_several_methods_are_paired_by_video_and_seed(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=40, folds=2)
    generator, rows = np.random.default_rng(0), np.arange(40)

    def method(name: str, rows: np.ndarray, seeds: int) -> PredictedLabels:
        right = generator.random(len(rows)) < 0.6
        networks = [("1", n // 40) for n in range(len(rows))] if seeds > 1 else []
        return PredictedLabels(name, rows, np.where(right, store.labels[rows], 0), networks)

    regression = method("regression", rows[::-1], 1)
    paper, ours = (method(name, np.tile(rows, 2), 2) for name in ("paper", "ours"))
    text = comparison_table(
        store, [regression, paper, ours], {}, {"best": regression, "paper": paper}
    )
    cells = cells_of(text)
    heads = ["UAR − best", "WAR − best", "UAR − paper", "WAR − paper", "videos", "seeds"]
    assert cells["method"][2:] == heads
    assert "best is regression; paper is paper" in prose(text)
    assert "resamples of videos, and of the seeds in every fold, folds pooled" in prose(text)
    assert max(map(len, text.splitlines())) <= 100
    labels, people = store.labels[ours.rows], store.people(ours.rows)
    said = np.tile(regression.predicted[::-1], 2)
    others = (Sample(labels, said, people), Sample(labels, paper.predicted, people, ours.networks))
    expected = [
        interval.text("+.1f", 100)
        for other in others
        for interval in bootstrap_difference(ours.sample(store), other, len(store.classes))
    ]
    assert cells["ours"][2:] == [*expected, "40", "2"]
    assert cells["regression"][2:4] == ["–", "–"]  # itself
    assert cells["regression"][4][0] in "+-"  # the paper's setting


def test_methods_whose_epochs_were_selected_on_test_videos_say_so(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=14, folds=2, frames=2, dim=4)
    method = load_method("paper", ["selection.rule=best_on_test"])
    records, runs = Records(tmp_path / "runs", store), runs_of(method, ["1", "2"], [0])
    for run in runs:
        write_record(records, run, np.zeros(7, int))
    said, _ = of_runs("ours", [records.find(run) for run in runs], store)
    assert "ours (optimistic)" in cells_of(comparison_table(store, [said], {}))
