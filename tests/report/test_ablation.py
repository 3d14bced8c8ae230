"""Tables are a pure function of the records."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import PRESETS, MethodConfig, Run, load_method, runs_of, stack_key
from pipeline.evaluate.statistics import holm
from pipeline.report.ablation import collect, header_of, left_out, runs_of_table
from pipeline.report.forms import write_tables
from pipeline.report.tables import (
    LONG,
    TABLE1,
    TABLE3,
    Table,
    _split,
    choose_rows,
    find_tables,
    names_of_rows,
    vary,
)
from pipeline.train.records import Records
from support.markdown import cells_of, prose, tight
from support.records import write_record
from support.stores import CLASSES, write_store

FOLDS = ["1", "2", "3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten test videos of class 0 in each of three folds."""
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    return write_store(path, np.ones((30, 1, 3, 8)), np.zeros(30, int), folds=3)


def write_result(
    root: Path, store: Store, name: str, fold: int, war: float = 0.0, table: Table = TABLE3
) -> Path:
    """The record of a run that predicts a share ``war`` of its test videos right."""
    row = next(row for row in table.rows if row.name == name)
    (run,) = runs_of(row.method(load_method()), [FOLDS[fold]], [0])
    predicted = (np.arange(10) >= round(10 * war)).astype(int)
    return write_record(Records(root, store), run, predicted, diverged=war < 0)


def test_table_shows_mean_deviation_n_and_the_reported_column(store: Store, tmp_path: Path) -> None:
    for fold, value in enumerate((0.5, 0.6, 0.7)):
        write_result(tmp_path / "runs", store, "e", fold, war=value)
        write_result(tmp_path / "runs", store, "f", fold, war=value + 0.1)
    write_result(tmp_path / "runs", store, "b", 0, war=0.4)
    write_result(tmp_path / "runs", store, "c", 0, war=-1)
    broken = write_result(tmp_path / "runs", store, "d", 1, war=0.4)
    (broken / "predictions.csv").write_text("id,label,predicted\n")
    write_result(tmp_path / "runs", store, "d", 2, war=0.3)
    rows = collect(TABLE3, MethodConfig(), FOLDS, [0], Records(tmp_path / "runs", store))
    header = header_of(store, MethodConfig(), 3, 1)
    md, table, tex, _ = write_tables([(TABLE3, rows)], header, tmp_path / "out")
    text = tight(md.read_text())
    same, more = "+0.00 [+0.00, +0.00]", "+10.00 ["
    cells = cells_of(text)
    assert cells["e"][:4] == ["1", "1", "60.00 ± 10.00", "60.00 ± 10.00 ≈"]
    assert cells["f"][:4] == ["1", "2", "70.00 ± 10.00 *", "70.00 ± 10.00 *"]
    assert cells["b"][:4] == ["none", "1", "40.00", "40.00"]
    assert cells["c"][:6] == ["none", "2", "–", "–", "–", "–"]
    assert cells["d"][2:4] == ["30.00", "30.00"]
    sure = np.e / (np.e + 6)  # every network of every video
    assert cells["e"][6:8] == [f"{100 * (0.6 - sure):.1f}", "40.0"]
    assert cells["c"][6:8] == ["–", "–"]
    assert [cells[name][8] for name in "ebcda"] == [
        *("3", "1 of 3", "0 of 3, 1 diverged", "1 of 3, 1 damaged", "0 of 3"),
    ]
    assert cells["e"][9:] == [same, "60.17 / 71.62"]
    assert cells["f"][9].startswith(more)
    assert cells["d"][9:] == ["–", "58.50 / 69.24"]
    pooled = next(line for line in rows if line.row.name == "e").pooled
    assert cells["e"][4:6] == [pooled[name].text(".1f", 100) for name in ("UAR", "WAR")]
    assert "UAR / WAR as reported in the paper for DFEW" in prose(text)
    lines = {line["row"]: line for line in csv.DictReader(table.open())}
    assert float(lines["e"]["uar_std"]) == pytest.approx(10)
    shown = [float(lines["e"][f"war_pooled{end}"]) for end in ("_low", "", "_high")]
    assert shown == [100 * own for own in (pooled["WAR"].low, 0.6, pooled["WAR"].high)]
    assert shown[0] < shown[1] < shown[2]
    assert float(lines["f"]["ece"]) == pytest.approx(100 * (0.7 - sure))
    assert float(lines["f"]["aurc"]) == pytest.approx(30)
    assert lines["c"]["ece"] == ""
    assert lines["c"]["war_pooled"] == ""
    assert lines["e"]["war_reported_dfew"] == "71.62"
    assert r"60.00 $\pm$ 10.00" in tex.read_text()
    assert lines["d"]["damaged"] == "1"
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
    found = [row.differences["WAR"] for row in rows]
    assert [own and round(own.value, 3) for own in found] == [0, 0.1, 0, 0]
    text = write_tables([(table, rows)], {"data": ""}, tmp_path)[0].read_text()
    assert "WAR − one view" in text
    assert "reported" not in text


def test_remedies_for_rare_classes_show_their_recalls_and_the_war_they_cost(
    tmp_path: Path,
) -> None:
    labels = np.array([5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])  # disgust, happiness; nobody is afraid
    store = write_store(tmp_path / "s.zarr", np.ones((12, 1, 3, 8)), labels, folds=2)
    (table,) = find_tables(["imbalance"])
    methods = [row.method(load_method()) for row in table.rows]
    assert len(set(methods)) == len(methods) == 9
    assert methods[0] == load_method() == table.main.method(load_method())
    assert len({stack_key(method) for method in methods}) == 1
    for preset in PRESETS:
        assert len({row.method(load_method(preset)) for row in table.rows}) == 9
    records = Records(tmp_path / "runs", store)
    for fold in ("1", "2"):
        for row, predicted in ((0, [0, 0, 0, 0, 0, 0]), (1, [5, 0, 0, 0, 0, 5])):
            run = Run(method=methods[row], fold=fold, seed=0)
            write_record(records, run, np.array(predicted))
    rows = collect(table, load_method(), ["1", "2"], [0], records)
    assert [cell.mean for cell in rows[1].recalls.values()] == [100, None]
    values = {name: found and found.value for name, found in rows[1].differences.items()}
    assert values == {
        "UAR": pytest.approx(0.4),
        "WAR": pytest.approx(0.0),
        "disgust": 1,
        "fear": None,
    }
    assert set(rows[2].differences.values()) == {None}
    header = header_of(store, load_method(), 2, 1)
    md, comma, tex, _ = write_tables([(table, rows)], header, tmp_path)
    text = tight(md.read_text())
    cells = cells_of(text)
    heads = ["UAR", "WAR", "UAR pooled", "WAR pooled", "recall of disgust", "recall of fear"]
    assert cells[""][3:12] == [*heads, "ECE", "AURC", "n"]
    assert cells["b"][:5] == ["0.5", "cross_entropy", "0", "90.00 ± 0.00 *", "83.33 ± 0.00 ≈"]
    assert cells["b"][7:9] == ["100.00 ± 0.00", "–"]
    assert cells["b"][12].startswith("+40.00 [")
    lines = {line["row"]: line for line in csv.DictReader(comma.open())}
    assert float(lines["b"]["recall_disgust_difference"]) == 100
    for metric in ("uar", "war"):
        found = rows[1].differences[metric.upper()]
        assert found is not None
        assert found.low < found.value < found.high
        ends = [f"{metric}_difference{end}" for end in ("_low", "", "_high")]
        shown = [float(lines["b"][end]) for end in ends]
        assert shown == pytest.approx([100 * found.low, 100 * found.value, 100 * found.high])
    uar, war = (rows[1].differences[name] for name in ("UAR", "WAR"))
    assert uar is not None
    assert war is not None
    found_p = [float(lines["b"][f"{metric}_difference_p_holm"]) for metric in ("uar", "war")]
    assert found_p == pytest.approx(holm([uar.p, war.p]))
    assert lines["a"]["uar_difference_p_holm"] == ""
    behind = {line.row.name: line.behind for line in rows}
    tested = {name: own.p for name, own in behind.items() if own is not None and own.error}
    assert tested
    for (name, p), own in zip(tested.items(), holm([*tested.values()]), strict=True):
        shown = [float(lines[name][f"war_behind_best_p{end}"]) for end in ("", "_holm")]
        assert shown == pytest.approx([p, own])
    assert float(lines["b"]["war_mcnemar_p"]) == 1  # as many videos gained as lost
    assert lines["c"]["uar_difference"] == lines["b"]["recall_fear_mean"] == ""
    assert "& fear $-$ main setting" in tex.read_text()


def test_ingredients_are_added_to_the_base_or_taken_from_it_one_at_a_time() -> None:
    paper, tuned = load_method(), load_method("tuned")
    added, taken = find_tables(["input", "without"])
    methods = [row.method(paper) for row in added.rows]
    assert methods[0] == paper == added.main.method(paper)
    assert len(set(methods)) == len(methods) == 14
    left = [row.method(tuned) for row in taken.rows]
    assert left[0] == taken.main.method(tuned) == tuned
    assert len(set(left)) == 1 + 12  # five rows change nothing in tuned, the base among them
    # Taking all of it away leaves the paper's setting.
    settings = tuned
    for row in taken.rows:
        settings = settings if row.cells == ("visual prompt",) else row.method(settings)
    assert settings == paper


def test_frames_and_depths_of_long_videos_and_their_linear_cost() -> None:
    (table,) = find_tables(["long"])
    methods = [row.method(load_method()) for row in table.rows]
    assert len(set(methods)) == len(methods) == 4 * 5 + 2 * 2
    assert {method.input.frames for method in methods} == {16, 32, 64, 128}
    assert {m.temporal.coarse_keys for m in methods if m.input.frames < 64} == {0}


def test_other_influences_choose_other_frames_of_the_same_runs(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s.zarr", np.ones((4, 1, 3, 8)), np.array([0, 0, 0, 0]), folds=2)
    (table,) = find_tables(["influence"])
    assert {row.method(load_method()) for row in table.rows} == {load_method()}
    records = Records(tmp_path / "runs", store)
    # Frame 0 has the highest logit of class 0, frame 1 the widest margin.
    logits = np.zeros((2, 3, len(store.classes)))
    logits[:, 0, :2] = (9, 10)
    logits[:, 1, :2] = (5, 0)
    for fold in ("1", "2"):
        run = Run(method=load_method(), fold=fold, seed=0)
        write_record(records, run, np.array([0, 0]), frame_logits_NTK=logits)
    rows = {row.row.name: row for row in collect(table, load_method(), ["1", "2"], [0], records)}
    assert rows["logit 1"].war.mean == 0
    assert rows["margin 1"].war.mean == rows["probability 1"].war.mean == 100


def test_the_controls_of_the_texts_are_eight_settings_compared_with_the_real_texts() -> None:
    (table,) = find_tables(["text"])
    methods = [row.method(load_method()) for row in table.rows]
    assert len(set(methods)) == 8
    assert methods[0] == load_method() == table.main.method(load_method())
    controls = [(m.prompts.tower, m.prompts.texts, m.prompts.fine_learnable) for m in methods]
    assert controls[1::2] == [(*control[:2], False) for control in controls[::2]]
    references = [table.reference(row).method(load_method()).prompts for row in table.rows]
    assert {(own.tower, own.texts) for own in references} == {("trained", "real")}
    # The real plain texts are compared with the real learnable ones, all others with their like.
    kinds = [own.fine_learnable for own in references]
    assert kinds == [True, True, *([True, False] * 3)]
    assert {control[:2] for control in controls} == {
        ("trained", "real"),
        ("trained", "permuted"),
        ("trained", "orthogonal"),
        ("random", "real"),
    }


def test_a_table_without_rare_classes_shows_only_the_difference_in_war(
    store: Store, tmp_path: Path
) -> None:
    rows = collect(TABLE3, load_method(), FOLDS, [0], Records(tmp_path, store))
    md, _, tex, _ = write_tables([(TABLE3, rows)], {"data": ""}, tmp_path)
    columns = ["fine", "coarse", "UAR", "WAR", "UAR pooled", "WAR pooled", "n"]
    columns += ["WAR − main setting", "in the paper"]
    assert cells_of(md.read_text())[""] == columns
    heads = [line for line in tex.read_text().splitlines() if line.startswith(" & ")]
    shown = " & ".join(line.removeprefix(" & ").removesuffix(r" \\") for line in heads)
    assert shown == " & ".join(columns).replace("−", "$-$")


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


def test_rows_that_are_asked_for_are_trained_alone(store: Store, tmp_path: Path) -> None:
    base, root = load_method(), tmp_path / "runs"
    table = replace(TABLE3, rows=(TABLE3.rows[1], TABLE3.rows[5]), narrowed=True)
    runs = runs_of_table(table, base, FOLDS, [0])
    assert {run.method for run in runs} == {row.method(base) for row in table.rows}
    assert [*left_out(table, base)] == ["main setting"]
    for fold in range(3):
        write_result(root, store, "b", fold, war=0.5)
    rows = collect(table, base, FOLDS, [0], Records(root, store))
    text = write_tables([(table, rows)], {"data": ""}, tmp_path)[0].read_text()
    assert "No differences: they need all runs of main setting, which are not at hand." in prose(
        text
    )
    for fold in range(3):
        write_result(root, store, "e", fold, war=0.4)  # the main setting
    difference = collect(table, base, FOLDS, [0], Records(root, store))[0].differences["WAR"]
    assert difference is not None
    assert difference.value == pytest.approx(0.1)
    main = replace(TABLE3, rows=TABLE3.rows[4:6], narrowed=True)
    assert left_out(main, base) == left_out(TABLE3, base) == {}


def test_unknown_rows_are_refused_with_the_nearest_and_names_may_have_commas(
    store: Store,
) -> None:
    base = load_method("paper", ["temporal.window=1"])
    for name, said in (
        ("est,b", r"no row est; did you mean EST\? --rows list shows the names of all \d+"),
        ("former-dfr", r"did you mean Former-DFER\? --rows list"),
        ("?", r"no row \?; --rows list"),
    ):
        with pytest.raises(RefusedError, match=said):
            choose_rows([TABLE1], store, base, name)
    long = replace(LONG, rows=LONG.rows[:2])
    names = names_of_rows([long, TABLE3], store, base)
    assert names[:3] == ["16 frames, 0 fine, 0 coarse", "16 frames, 0 fine, 1 coarse", "a"]
    assert _split(f"b,{names[1]},a", names) == ["b", names[1], "a"]


def test_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        RefusedError, match="no table table9; available: table1, table2, table3, table4"
    ):
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


def test_table_6_predicts_again_from_the_chosen_frames(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 1, 0, 0])  # of which fold 1 tests videos 0 and 3
    store = write_store(tmp_path / "s.zarr", np.ones((6, 1, 3, 8)), labels, folds=3)
    frames = np.zeros((2, 3, 7))
    frames[0, :, 0], frames[0, 1, 2] = (3, 1, 2), 9  # frame 1 looks like class 2
    frames[1, :, 1] = 1
    records, (run,) = Records(tmp_path / "runs", store), runs_of(load_method(), ["1"], [0])
    write_record(records, run, np.array([0, 1]), frame_logits_NTK=frames)
    (table,) = find_tables(["table6"])
    filled = collect(table, load_method(), FOLDS, [0], records)
    rows = {row.row.name: row for row in filled}
    assert rows["highest 1"].war.mean == 100
    assert rows["lowest 1"].war.mean == 50


def test_names_from_outside_break_no_table_and_no_terminal(store: Store, tmp_path: Path) -> None:
    table = vary([r'store.encoder=["a|b\u001b", "c_%"]'])
    rows = collect(table, load_method(), FOLDS, [0], Records(tmp_path / "runs", store))
    header = header_of(store, load_method(), 3, 1) | {"data": "50 % & #1_{x}\x1b[31m\nof \u202e"}
    paths = write_tables([(table, rows)], header, tmp_path / "out")
    md, comma, tex, json = (path.read_text() for path in paths)
    for text in (md, comma, tex, json):
        assert not {"\x1b", "\u202e"} & set(text)
    assert r"- data: 50 % & #1_{x}\x1b[31m\nof \u202e" in md.splitlines()
    assert r"| 1 | a\|b\x1b | – |" in tight(md)
    assert r"1,a|b\x1b,," in comma
    assert r"50 \% \& \#1\_\{x\}\textbackslash{}x1b{[}31m\textbackslash{}nof" in tex
    assert r"2 & c\_\% & -- &" in tex
    assert all(len(line) <= 100 for line in md.splitlines())


def test_header_says_epochs_and_selection_of_all_rows(store: Store) -> None:
    for epochs, said in (("[10,30]", "10 or 30, by row"), ("[1,2,5,9]", "1 to 9, by row")):
        table = vary([f"optimiser.epochs={epochs}", 'selection.rule=["last","best_on_test"]'])
        header = header_of(store, load_method(), 3, 1, [table])
        assert header["protocol"].endswith(f"epochs: {said}")
        assert "the last epoch; or, by row, the best epoch on the test" in header["reported"]
    assert header_of(store, load_method(), 3, 1, [TABLE3])["protocol"].endswith("epochs: 50")


def test_header_names_the_classes_that_no_test_video_shows(store: Store) -> None:
    assert header_of(store, load_method(), 3, 1)["UAR"] == (
        "over the classes that are tested; without a test video: "
        + "; ".join(f"{', '.join(CLASSES[1:])} in fold {fold}" for fold in FOLDS)
    )
