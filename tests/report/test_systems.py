"""Tables 1 and 2: other publications' systems on the same features, beside what was reported."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, load_method, runs_of
from pipeline.evaluate.baselines import PredictedLabels, class_means
from pipeline.evaluate.statistics import Difference
from pipeline.model.heads.choose import NETWORKS
from pipeline.report.ablation import (
    choose_factors,
    collect,
    header_of,
    methods_to_tune,
    runs_of_table,
)
from pipeline.report.forms import write_tables
from pipeline.report.reported import reported_in, reported_systems, scores_of_recalls
from pipeline.report.tables import HEADS, TABLE1, TABLE2, TABLE3, TableRow, choose_rows, fit
from pipeline.train.grid import train_runs
from pipeline.train.rates import FACTORS, best_factors, trials
from pipeline.train.records import Records
from pipeline.train.split import scored_rows
from support.markdown import cells_of, prose, tight
from support.records import write_record
from support.stores import random_store, write_store

ONE_EPOCH = load_method("paper", ["optimiser.epochs=1"])


def test_only_three_systems_report_scores_that_do_not_follow_from_their_recalls() -> None:
    strange = {}
    for name, found in reported_in("table1").items():
        if "recalls" in found:
            scores = scores_of_recalls(found["recalls"], "dfew")
            off = [b - a for a, b in zip((found["uar"], found["war"]), scores, strict=True)]
            if max(map(abs, off)) > 0.3:
                strange[name] = [round(one, 2) for one in off]
    assert strange == {"DPCNet": [-1.98, -0.64], "EST": [-0.51, 0.0], "MIDAS": [1.73, -2.68]}
    text = tight(reported_systems(TABLE1))
    assert "| DPCNet | – | 57.11 ≠ | 66.32 ≠ |" in text
    assert "| TG-DFER | CLIP ViT-B/32 | 60.17 | 71.62 |" in text
    assert "≠" not in reported_systems(TABLE2)


def test_rows_named_as_in_the_paper_have_their_reported_figures() -> None:
    for table in (TABLE1, TABLE2):
        names = {row.name for row in table.rows}
        expected = {"ResNet18-LSTM", "Former-DFER", "IAL", "MIDAS", "M3DFEL", "DFER-CLIP", "CLIPER"}
        expected |= {"NR-DFERNet", "AEN", "LOGO-Former"}
        expected |= {"TG-DFER"} | ({"EST", "DPCNet"} if table is TABLE1 else set())
        assert names & reported_in(table.name).keys() == expected
        assert table.main.method(load_method()) == load_method()


def test_rows_keep_their_heads_whatever_the_base_has() -> None:
    for table in (TABLE1, TABLE2, HEADS):
        base = load_method("paper", ["head.kind=mlp", "head.layers=2"])
        kinds = {row.name: row.method(base).head.kind for row in table.rows if not row.baseline}
        assert kinds["TG-DFER"] == "tgdfer"
    trained = {row.method(load_method()).head.kind for row in (*TABLE1.rows, *HEADS.rows)}
    assert trained == set(NETWORKS)


def test_baselines_of_all_frames_are_left_out_where_the_heads_see_fewer(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=14, frames=8, folds=2)
    fewer = load_method("paper", ["input.frames=4"])
    kept = ("class means", "MLP", "TG-DFER without layers")
    table = replace(TABLE1, rows=tuple(map(row_of, kept)))
    assert [row.name for row in fit(table, store, fewer).rows] == [*kept[1:]]
    assert [row.name for row in fit(table, store, load_method()).rows] == [*kept]


def test_heads_that_read_texts_do_not_fit_a_store_without(tmp_path: Path) -> None:
    features, labels = np.ones((14, 1, 16, 64)), np.arange(14) % 7
    store = write_store(tmp_path / "s.zarr", features, labels, folds=2, texts=False)
    with pytest.raises(RefusedError, match="reads texts") as refused:
        fit(HEADS, store, load_method())
    assert '--rows "class means,regression,MLP,linear probe,S2D"' in str(refused.value)


def write_trials(records: Records, row: str, best: Sequence[float]) -> None:
    """Records of the trials of a row, of which this factor does best in each fold."""
    method = row_of(row).method(ONE_EPOCH)
    for (fold, _, _), factor in zip(records.store.folds, best, strict=True):
        for run, own in zip(trials(method, fold), FACTORS, strict=True):
            labels = labels_of(records.store, run)
            write_record(records, run, labels if own == factor else (labels + 1) % 7)


def labels_of(store: Store, run: Run) -> np.ndarray:
    return store.labels[scored_rows(store, run.fold, run.method.selection, run.seed)]


def row_of(name: str) -> TableRow:
    return next(row for row in TABLE1.rows if row.name == name)


def test_chosen_rates_stand_in_their_row_with_those_at_the_edge_and_those_that_diverge(
    tmp_path: Path,
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=70, frames=4, dim=4, folds=2)
    records, folds = Records(tmp_path / "runs", store), ["1", "2"]
    names = ("class means", "MLP", "TG-DFER")
    table = fit(replace(TABLE1, rows=tuple(map(row_of, names))), store, ONE_EPOCH)
    write_trials(records, "MLP", (10, 3))
    write_trials(records, "TG-DFER", (1, 1))
    factors = best_factors(methods_to_tune([table], ONE_EPOCH), folds, [0], records)
    runs = runs_of_table(table, ONE_EPOCH, folds, [0], factors)
    for run in runs:
        diverged = run.method.head.kind == "mlp" and run.fold == "2"
        write_record(records, run, labels_of(store, run), diverged)
    rows = collect(table, ONE_EPOCH, folds, [0], records, factors)
    header = header_of(store, ONE_EPOCH, 2, 1, [table])
    assert "times the base's learning rates (0.01, and 0.001 for prompts)" in header["tuning"]
    md, comma, tex, _ = write_tables([(table, rows)], header, tmp_path / "out")
    cells = cells_of(md.read_text())
    place = cells[""].index("rates")
    assert [cells[name][place] for name in names] == ["–", "10!, 3†", "1, 1"]
    assert cells["MLP"][cells[""].index("n")] == "1 of 2, 1 diverged"
    assert "chosen in each fold (1, 2)" in prose(md.read_text())
    assert r"10!, 3$\dagger$" in tex.read_text()
    lines = {line["row"]: line for line in csv.DictReader(comma.open())}
    heads = [f"{own}_fold_{n}" for n in folds for own in ("factor", "lr", "at_edge", "diverged")]
    shown = [lines["MLP"][head] for head in heads]
    assert shown == ["10.0", "0.1", "True", "0.0", "3.0", "0.03", "False", "1.0"]
    untuned = runs_of_table(TABLE3, ONE_EPOCH, folds, [0], factors)
    assert {run.method.optimiser for run in untuned} == {ONE_EPOCH.optimiser}


def test_rows_without_their_reference_are_compared_with_it_only_after_equal_tuning(
    tmp_path: Path,
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=70, frames=4, dim=4, folds=2)
    records, folds = Records(tmp_path / "runs", store), ["1", "2"]
    (table,) = choose_rows([TABLE1], store, ONE_EPOCH, "MLP")
    write_trials(records, "MLP", (1, 1))
    untuned = runs_of(ONE_EPOCH, folds, [0])
    for run in [*untuned, *runs_of(row_of("MLP").method(ONE_EPOCH), folds, [0])]:
        write_record(records, run, labels_of(store, run))

    def difference() -> Difference | None:
        factors = choose_factors([table], ONE_EPOCH, folds, [0], records)
        (line,) = collect(table, ONE_EPOCH, folds, [0], records, factors)
        return line.differences["WAR"]

    assert difference() is None
    write_trials(records, "TG-DFER", (1, 1))
    assert difference() is not None


@pytest.mark.slow
def test_systems_are_trained_with_rates_of_their_own_and_stand_beside_baselines(
    tmp_path: Path,
) -> None:
    store = random_store(tmp_path / "s.zarr", videos=70, frames=4, folds=2)
    base = ONE_EPOCH
    chosen = ("class means", "MLP", "TG-DFER without layers")
    table = replace(
        TABLE1,
        rows=tuple(row for row in TABLE1.rows if row.name in chosen),
        main=next(row for row in TABLE1.rows if row.name == "MLP"),
    )
    table, records = fit(table, store, base), Records(tmp_path / "runs", store)
    tuned, folds = methods_to_tune([table], base), ["1", "2"]
    train_runs(
        [r for own in tuned for f in folds for r in trials(own, f)], records, "cpu", workers=0
    )
    factors = best_factors(tuned, folds, [0, 1], records)
    runs = runs_of_table(table, base, folds, [0, 1], factors)
    assert {run.method.optimiser.lr for run in runs if run.method.head.kind == "mlp"} == {
        factors[tuned[0], fold] * base.optimiser.lr for fold in folds
    }
    train_runs(runs, records, "cpu", workers=0)
    means, mlp, plain = collect(table, base, folds, [0, 1], records, factors)
    assert (means.n, mlp.n, plain.n) == ("2", "4", "4")
    assert {line.row.cells[-1] for line in (means, mlp, plain)} == {store.identity.encoder.name}
    assert means.war.mean == pytest.approx(100 * accuracy(class_means(store), store))
    assert means.differences["WAR"] is not None
    header = header_of(store, base, 2, 2, [table])
    assert header["tuning"].startswith("every trained row with 0.1, 0.3, 1, 3, 10 times the base's")
    md, *_ = write_tables([(table, [means, mlp, plain])], header, tmp_path / "out")
    assert "| DPCNet | – | 57.11 ≠ | 66.32 ≠ |" in tight(md.read_text())


def accuracy(found: PredictedLabels, store: Store) -> float:
    """Mean over the folds, which are equally large."""
    return float((found.predicted == store.labels[found.rows]).mean())
