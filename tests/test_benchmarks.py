"""The figures of the benchmarks and the page made from them; nothing is timed here."""

import json
from pathlib import Path

import pytest

from benchmarks import extraction, plans, views
from benchmarks.__main__ import BENCHMARKS
from benchmarks.check import grow_dfew, grow_ferv39k, make_pool
from benchmarks.generated import fill
from benchmarks.report import page
from cache.store import open_store
from pipeline.datasets.read import survey_dataset
from pipeline.datasets.survey import Reading
from pipeline.extract.overlaps import similar_features
from pipeline.extract.readings import glance
from support.commands import ROOT, python, tgdfer


def reports() -> dict[str, object]:
    return {p.stem: json.loads(p.read_text()) for p in (ROOT / "benchmarks").glob("*.json")}


def test_page_is_made_from_the_committed_figures() -> None:
    assert (ROOT / "docs/performance.md").read_text() == page(reports())


def test_page_says_what_was_not_measured() -> None:
    some = {name: report for name, report in reports().items() if name != "stacks-gpu"}
    assert "Nothing here was run on a GPU" in page(some)
    assert "## Feature store" not in page({"training": some["training"]})


def test_every_benchmark_is_named_and_can_be_run() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(BENCHMARKS) == modules - {"__init__", "__main__", "generated", "machine", "report"}
    for name in BENCHMARKS:
        done = tgdfer(f"benchmarks.{name}", "--help", cwd=ROOT, what="module")
        assert done.returncode == 0, done.stderr
        assert "--out" in done.stdout


def test_unknown_benchmark_is_refused() -> None:
    done = python("-m", "benchmarks", "speed", cwd=ROOT)
    assert done.returncode == 2
    assert "no benchmark speed; available: extraction" in done.stderr


def test_make_bench_runs_them_all() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2].splitlines()[1]
    assert recipe.strip() == "$(BIN)/python -m benchmarks"


def test_costs_of_decoding_and_views_are_measured_and_shown() -> None:
    report = views.measure(quick=True)
    costs = report["milliseconds_per_view_frame"]["224-px jpg"]
    assert list(costs) == ["1", "5"]
    assert all(0 < cost["decode"] < cost["peer"] for cost in costs.values())
    assert page({"views": report}).count("| 224-px jpg |") == 2


def test_trees_that_are_checked_are_whole_and_have_their_stores(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    for name, grow in (("dfew", grow_dfew), ("ferv39k", grow_ferv39k)):
        ids, frames = grow(tmp_path / name, pool, 0.002)
        survey = survey_dataset(name, tmp_path / name)
        assert sorted(survey.found.places) == sorted(ids)
        assert sum(filter(None, survey.frame_counts().values())) == frames
        assert {*glance(survey).values()} == {Reading()}
        fill(tmp_path / f"{name}.zarr", len(ids), 1, dim=8, ids=ids, name=name)
        assert similar_features(survey, open_store(tmp_path / f"{name}.zarr"), least=0)


@pytest.mark.slow  # it starts processes
def test_extraction_is_measured_beside_its_floor_and_a_loader_of_peers_and_shown() -> None:
    report = extraction.measure(quick=True)
    costs = report["encoders"]["mini"]["sources"]["224-px jpg"]
    assert list(costs) == ["1", "5"]
    for cost in costs.values():
        ways, ratios = cost["milliseconds"], cost["ratios"]
        assert 0 < ratios["of bare encoder"] <= ratios["of floor"]
        assert ratios["of bare encoder"] == ways["bare encoder"] / ways["extraction"]
        assert all(0 <= share <= 1 for share in cost["busy"].values())
        assert 0.9999 <= cost["lowest_cosine"] < 1
    assert page({"extraction": report}).count("| 224-px jpg |") == 2


@pytest.mark.slow  # it starts processes
def test_both_forms_of_a_plan_are_measured_and_shown(tmp_path: Path) -> None:
    report = plans.measure(tmp_path, [200], rounds=1)
    costs = report["videos"]["200"]
    assert all(costs[f"{work}, {form}"]["seconds"] > 0 for work, form in plans.CASES)
    assert page({"plans": report}).count("200 videos") == 3
