"""What rules of selection would report of the same runs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.report.ablation import collect
from pipeline.report.forms import write_tables
from pipeline.report.rules import by_rule
from pipeline.report.tables import vary
from pipeline.train.features import load_training_data
from pipeline.train.records import Records
from pipeline.train.split import scored_rows
from pipeline.train.stack import train_stack
from support.markdown import tight
from support.records import write_record
from support.stores import random_store

RULES = ("last", "best_on_val", "best_on_test")
HELD_OUT = ["selection.tested_on=held_out", "selection.validation_share=0.5"]
TWO_RULES = vary(["selection.rule=['last', 'best_on_test']"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", 70, folds=2, frames=4, dim=8)


def test_each_rule_reports_what_a_run_with_that_rule_reports(store: Store, tmp_path: Path) -> None:
    settings = ["optimiser.epochs=6", "optimiser.lr=0.05", "selection.validation_share=0.3"]
    runs = [
        Run(method=load_method("paper", [*settings, f"selection.rule={rule}"]), fold="1", seed=0)
        for rule in RULES
    ]
    records = Records(tmp_path, store)
    for outcome in train_stack(load_training_data(store, torch.device("cpu")), runs):
        records.write(outcome, seconds=1.0)
    found = {rule: records.find(run) for rule, run in zip(RULES, runs, strict=True)}
    said = {rule: by_rule(record) for rule, record in found.items() if record is not None}
    reported = {
        rule: (record.result["uar"], record.result["war"])
        for rule, record in found.items()
        if record is not None and record.result is not None
    }
    # The first and the last train on the same videos, so each tells what the other reports.
    for rule in ("last", "best_on_test"):
        assert said[rule] == {name: reported[name] for name in ("last", "best_on_test")}
    assert said["best_on_val"]["best_on_val"] == reported["best_on_val"]
    assert said["best_on_val"]["best_on_test"] >= said["best_on_val"]["last"]
    assert len({*reported.values()}) > 1


def test_runs_that_saw_no_test_video_tell_nothing(store: Store, tmp_path: Path) -> None:
    run = Run(method=load_method("paper", HELD_OUT), fold="1", seed=0)
    records = Records(tmp_path, store)
    held = scored_rows(store, run.fold, run.method.selection, run.seed)
    write_record(records, run, np.zeros(len(held), int))
    record = records.find(run)
    assert record is not None
    assert by_rule(record) == {}


def test_every_form_says_which_rows_were_selected_on_test_videos(
    store: Store, tmp_path: Path
) -> None:
    base, records = load_method(), Records(tmp_path / "runs", store)
    for row in TWO_RULES.rows:
        for fold in ("1", "2"):
            run = Run(method=row.method(base), fold=fold, seed=0)
            write_record(records, run, np.zeros(35, int))
    rows = collect(TWO_RULES, base, ["1", "2"], [0], records)
    md, comma, tex, json = write_tables([(TWO_RULES, rows)], {"data": ""}, tmp_path)
    assert "| 1 | last |" in tight(md.read_text())
    assert "| 2 (optimistic) | best_on_test |" in tight(md.read_text())
    assert "\n2 (optimistic) & best\\_on\\_test &" in tex.read_text()
    last, best = comma.read_text().splitlines()[1:]
    assert "optimistic" not in last
    assert "the best epoch on the test videos, which is optimistic" in best
    assert json.read_text().count("which is optimistic") == 1
    assert "| best_on_test (optimistic) | 50.00 | +0.00 | 1 |" in tight(md.read_text())
