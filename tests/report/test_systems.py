"""Tables 1 and 2: other publications' systems on the same features, beside what was reported."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache.store import Store
from pipeline.config import load_method
from pipeline.evaluate.baselines import PredictedLabels, class_means
from pipeline.report.ablation import collect, header_of, methods_to_tune, runs_of_table
from pipeline.report.forms import write_tables
from pipeline.report.reported import reported_in, reported_systems, scores_of_recalls
from pipeline.report.tables import TABLE1, TABLE2, fit
from pipeline.train.grid import train_runs
from pipeline.train.rates import best_factors, trials
from pipeline.train.records import Records
from support.markdown import tight
from support.stores import random_store

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
        expected = {"ResNet18-LSTM", "Former-DFER", "IAL", "MIDAS", "M3DFEL", "DFER-CLIP"}
        expected |= {"NR-DFERNet", "AEN", "LOGO-Former"}
        expected |= {"TG-DFER"} | ({"EST", "DPCNet"} if table is TABLE1 else set())
        assert names & reported_in(table.name).keys() == expected
        assert table.main.method(load_method()) == load_method()


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
    assert header["tuning"].startswith("every trained row with 0.3, 1, 3, 10 times the base's")
    md, *_ = write_tables([(table, [means, mlp, plain])], header, tmp_path / "out")
    assert "| DPCNet | – | 57.11 ≠ | 66.32 ≠ |" in tight(md.read_text())


def accuracy(found: PredictedLabels, store: Store) -> float:
    """Mean over the folds, which are equally large."""
    return float((found.predicted == store.labels[found.rows]).mean())
