"""Tables are a pure function of the records."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import MethodConfig, load_method, runs_of
from pipeline.report.ablation import collect, header_of, write_tables
from pipeline.report.tables import TABLE3, Table, find_tables, vary
from pipeline.train.records import Records
from support.stores import random_store

FOLDS = ["1", "2", "3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=10, dim=8)


def write_result(
    root: Path,
    store: Store,
    name: str,
    fold: int,
    war: float = 0.0,
    status: str = "done",
    table: Table = TABLE3,
) -> None:
    """The record of a run that predicts a share ``war`` of ten videos of class 0 right."""
    row = next(row for row in table.rows if row.name == name)
    (run,) = runs_of(row.method(load_method()), [FOLDS[fold]], [0])
    folder = Records(root, store).folder(run)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps({"status": status}))
    lines = [f"{store.ids[n]},0,{int(n >= round(10 * war))}" for n in range(10)]
    (folder / "predictions.csv").write_text("id,label,predicted\n" + "\n".join(lines))


def test_table_shows_mean_deviation_n_and_the_reported_column(store: Store, tmp_path: Path) -> None:
    for fold, value in enumerate((0.5, 0.6, 0.7)):
        write_result(tmp_path / "runs", store, "e", fold, war=value)
        write_result(tmp_path / "runs", store, "f", fold, war=value + 0.1)
    write_result(tmp_path / "runs", store, "b", 0, war=0.4)
    write_result(tmp_path / "runs", store, "c", 0, status="diverged")
    rows = collect(TABLE3, MethodConfig(), FOLDS, [0], Records(tmp_path / "runs", store))
    header = header_of(store, MethodConfig(), 3, 1)
    md, table, tex = write_tables([(TABLE3, rows)], header, tmp_path / "out")
    text = md.read_text()
    same, more = "+0.00 [+0.00, +0.00]", "+10.00 ["
    assert f"| e | 1 | 1 | 60.00 ± 10.00 | 60.00 ± 10.00 | 3 | {same} | 60.17 | 71.62 |" in text
    assert f"| f | 1 | 2 | 70.00 ± 10.00 | 70.00 ± 10.00 | 3 | {more}" in text
    assert "| b | none | 1 | 40.00 | 40.00 | 1 of 3 | – | 59.83 | 71.34 |" in text
    assert "| c | none | 2 | – | – | 0 of 3, 1 diverged | – | 59.45 | 71.18 |" in text
    assert "| a | none | none | – | – | 0 of 3 | – | 57.66 | 69.14 |" in text
    assert text.count("as reported in the paper for DFEW") == 2
    lines = {line["row"]: line for line in csv.DictReader(table.open())}
    assert float(lines["e"]["uar_std"]) == pytest.approx(10)
    assert lines["e"]["war_reported_dfew"] == "71.62"
    assert r"60.00 $\pm$ 10.00" in tex.read_text()
    assert r"\toprule" in tex.read_text()


def test_table3_has_the_paper_s_twelve_depths_and_changes_nothing_else() -> None:
    (table,) = find_tables(["table3"])
    base = load_method("paper", ["optimiser.epochs=7"])
    methods = {row.name: row.method(base) for row in table.rows}
    depths = {n: (m.temporal.fine_depth, m.temporal.coarse_depth) for n, m in methods.items()}
    assert list(depths) == list("abcdefghijkl")
    assert (depths["a"], depths["e"], depths["j"]) == ((0, 0), (1, 1), (1, 7))
    assert methods["e"] == base
    assert len(set(depths.values())) == 12


def test_views_are_compared_with_one_view_and_nothing_is_reported(
    store: Store, tmp_path: Path
) -> None:
    (table,) = find_tables(["views"])
    for row, war in zip(table.rows, (0.5, 0.6, 0.5, 0.5), strict=True):
        write_result(tmp_path / "runs", store, row.name, 0, war, table=table)
    rows = collect(table, load_method(), FOLDS[:1], [0], Records(tmp_path / "runs", store))
    assert [row.difference and round(row.difference.value, 3) for row in rows] == [0, 0.1, 0, 0]
    text = write_tables([(table, rows)], {"data": ""}, tmp_path)[0].read_text()
    assert "WAR − one view" in text
    assert "reported" not in text


def test_varied_settings_are_a_table_of_every_combination() -> None:
    table = vary(["optimiser.lr=[0.003, 0.01]", "label.pooling=[ 'mean_logits', 'top_k' ]"])
    assert table.columns == ("optimiser.lr", "label.pooling")
    assert [row.cells for row in table.rows] == [
        ("0.003", "mean_logits"),
        ("0.003", "top_k"),
        ("0.01", "mean_logits"),
        ("0.01", "top_k"),
    ]
    base = load_method()
    methods = [row.method(base) for row in table.rows]
    assert (methods[1].optimiser.lr, methods[1].label.pooling) == (0.003, "top_k")
    assert methods[2] == base == table.main.method(base)
    for wrong in ("optimiser.lr=0.1", "optimiser.lr=[]", "lr=[1]", "optimiser.lr"):
        with pytest.raises(RefusedError, match=r"expected KEY="):
            vary([wrong])
    for unknown in ("optimiser.lrr", "optimser.lr"):
        with pytest.raises(RefusedError, match=rf"--vary {unknown}.* did you mean optimiser\.lr\?"):
            vary([f"{unknown}=[1]"])


def test_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RefusedError, match="no table table9; available: table3, table4"):
        find_tables(["table9"])


def test_tables_3_to_5_are_31_trainings_that_share_the_main_setting() -> None:
    tables = find_tables(["table3", "table4", "table5"])
    methods = [row.method(MethodConfig()) for table in tables for row in table.rows]
    assert (len(methods), len(set(methods))) == (33, 31)
    assert methods.count(MethodConfig()) == 3
    assert all(row.method(MethodConfig()).temporal.window_starts(16) for row in tables[1].rows)
    (table6,) = find_tables(["table6"])
    assert {row.method(MethodConfig()) for row in table6.rows} == {MethodConfig()}


def test_every_row_of_the_paper_has_its_reported_figures() -> None:
    import tomllib
    from importlib.resources import files

    reported = tomllib.loads(files("pipeline.report").joinpath("reported.toml").read_text())
    for table in find_tables(["table3", "table4", "table5", "table6"]):
        assert list(reported[table.name]) == [row.name for row in table.rows]
    assert reported["table3"]["e"] == reported["table4"]["w4 s1"] == reported["table5"]["h"]


def test_table_6_predicts_again_from_the_chosen_frames(store: Store, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_result(runs, store, "e", 0)
    (folder,) = runs.iterdir()
    (folder / "predictions.csv").write_text("id,label,predicted\nx,0,0\ny,1,1\n")
    frames = np.zeros((2, 3, 7), np.float32)
    frames[0, :, 0], frames[0, 1, 2] = (3, 1, 2), 9  # frame 1 looks like class 2
    frames[1, :, 1] = 1
    np.save(folder / "frame_logits.npy", frames)
    (table,) = find_tables(["table6"])
    filled = collect(table, load_method(), FOLDS, [0], Records(runs, store))
    rows = {row.row.name: row for row in filled}
    assert rows["highest 1"].war.mean == 100
    assert rows["lowest 1"].war.mean == 50
