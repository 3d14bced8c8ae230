"""What is drawn of records, and what is said of tables in words."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cache.store import Store
from pipeline.config import MethodConfig, Run, runs_of
from pipeline.evaluate.calibration import reliability
from pipeline.report.ablation import Cell
from pipeline.report.answer import answer, judge
from pipeline.report.contents import (
    Asked,
    Reported,
    ask_for_found,
    choose_videos,
    draw_leading,
    draw_tables,
    fill,
    find_leading,
    found_runs,
)
from pipeline.report.figures import draw_forest, draw_reliability, scaled
from pipeline.report.pooled import disagreement, pool
from pipeline.report.tables import vary
from pipeline.train.record import Record
from pipeline.train.records import Records
from support.records import write_record
from support.stores import write_store

BASE = MethodConfig()
FOLDS, SEEDS, FRAMES = ["1", "2"], range(2), 4
CLASSES = ("happiness", "$x^{", "fear")  # a formula that matplotlib would refuse
TABLE = vary(["optimiser.lr=[0.1,0.2,0.3]"])
ASKED = Asked([TABLE], BASE, FOLDS, SEEDS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """60 videos of 30 people; the first two frames of four show the label."""
    labels = np.arange(60) % 3
    shows = np.tile(np.arange(FRAMES) < 2, (60, 1))
    return write_store(
        tmp_path_factory.mktemp("store") / "s.zarr",
        np.ones((60, 1, FRAMES, 8)),
        labels,
        classes=CLASSES,
        folds=2,
        subjects=[f"person {n // 2}" for n in range(60)],
        truth_NT=np.where(shows, labels[:, None], -1),
    )


def write(store: Store, root: Path, rights: Sequence[float], leave: int = 0) -> Records:
    """Runs of which a share of answers is right, by the row; the last few are left out."""
    records = Records(root, store)
    rows = zip(TABLE.rows, rights, strict=True)
    runs = [(run, right) for row, right in rows for run in runs_of(row.method(BASE), FOLDS, SEEDS)]
    for number, (run, right) in enumerate(runs[: len(runs) - leave]):
        generator = np.random.default_rng(number)
        labels = store.labels[[n for n in range(60) if n % 2 == int(run.fold) - 1]]
        wrong = generator.random(len(labels)) >= right
        frames = generator.standard_normal((len(labels), FRAMES, 3))
        frames[np.arange(len(labels)), :, (labels + wrong) % 3] += 2
        logits = frames.mean(1)
        write_record(records, run, logits.argmax(1), logits_NK=logits, frame_logits_NTK=frames)
    return records


@pytest.fixture(scope="module")
def filled(store: Store, tmp_path_factory: pytest.TempPathFactory) -> list[Reported]:
    return fill(ASKED, write(store, tmp_path_factory.mktemp("runs"), (0.4, 0.9, 0.88)))


def records_of(reported: Reported, row: str) -> list[Record]:
    return list(reported.records[row])


def test_pooled_answers_are_the_mean_probabilities_of_the_networks(
    store: Store, filled: list[Reported]
) -> None:
    records = records_of(filled[0], "2")
    pooled = pool(records, store)
    assert pooled.rows_N.tolist() == [*range(60)]
    for row in (0, 7, 59):
        shares, frame_logits = [], []
        for record in records:
            ids, *_ = record.predictions()
            if store.ids[row] in ids:
                place = ids.index(store.ids[row])
                powers = [np.exp(float(own)) for own in record.logits()[place]]
                shares.append([own / sum(powers) for own in powers])
                frame_logits.append(record.frame_logits()[place].astype(np.float64))
        assert len(shares) == 2  # seeds
        mean = np.mean(shares, 0)
        np.testing.assert_allclose(pooled.p_NK[row], mean)
        expected = np.mean(frame_logits, 0)[:, mean.argmax()]
        np.testing.assert_allclose(pooled.influence_NT[row], expected, rtol=1e-6)
    counts = np.zeros((3, 3))
    for record in records:
        for label, said in zip(*record.predictions()[1:], strict=True):
            counts[label, said] += 1
    assert pooled.scores.counts_KK.tolist() == counts.tolist()
    assert {fold: own.sum() for fold, own in pooled.confusions.items()} == {"1": 60, "2": 60}
    assert pooled.logits_MK.shape == (120, 3)


def test_networks_disagree_if_they_do_not_say_what_most_say(
    store: Store, filled: list[Reported]
) -> None:
    every = [record for name in "123" for record in records_of(filled[0], name)]
    found = disagreement(every, store)
    for row in (0, 31):
        said = [
            int(predicted[ids.index(store.ids[row])])
            for ids, _, predicted in (record.predictions() for record in every)
            if store.ids[row] in ids
        ]
        assert len(said) == 6
        assert found[row] == pytest.approx(1 - max(map(said.count, said)) / 6)
    assert np.isnan(disagreement(every[:1], store)[1])  # tested in the other fold


def test_the_answer_names_the_leading_row_and_what_is_not_separable_from_it(
    filled: list[Reported],
) -> None:
    verdict = judge(filled[0].rows)
    assert verdict is not None
    assert verdict.leading.war.mean == max(line.war.mean or 0 for line in filled[0].rows)
    assert verdict.worse == ["1"]
    other = "3" if verdict.leading.row.name == "2" else "2"
    assert verdict.near == [other]
    lead, *rest = answer(TABLE, filled[0].rows)
    assert lead.startswith(f"{verdict.leading.row.name} (0.")
    assert f"leads: WAR {verdict.leading.war} %" in lead
    assert (
        f"separable from 1 row, with all 2 comparisons counted (Holm, 5 %), but not from "
        f"{other}." in " ".join(rest)
    )
    assert "the best of 3 on these very videos" in rest[-1]


def test_without_all_runs_there_is_no_answer(store: Store, tmp_path: Path) -> None:
    records = write(store, tmp_path, (0.5, 0.9, 0.9), leave=5)
    (reported,) = fill(ASKED, records)
    first, second, *rest = answer(TABLE, reported.rows)
    assert first == "No answer yet: 2 of 3 rows lack runs."
    assert second.startswith("1 (0.1) leads the rows that have all of theirs")
    assert rest == []
    (nothing,) = fill(ASKED, Records(tmp_path / "none", store))
    assert answer(TABLE, nothing.rows) == ["No answer yet: 3 of 3 rows lack runs."]
    assert find_leading([nothing], store) is None
    (picture,) = draw_tables([nothing], {})
    assert picture.svg.count(b"runs: 0 of 4") == 3


def test_found_runs_make_a_table_and_others_are_counted(store: Store, tmp_path: Path) -> None:
    records = write(store, tmp_path, (0.4, 0.9, 0.9), leave=1)
    folders = [records.folder(Run(method=TABLE.rows[0].method(BASE), fold=f, seed=0)) for f in "12"]
    (folders[0] / "result.json").unlink()  # unfinished
    (folders[1] / "run.json").write_text("{}")  # damaged
    runs, others = found_runs(records)
    assert (len(runs), others) == (10, {"damaged": 1})
    elsewhere = write_store(tmp_path / "s.zarr", np.ones((6, 1, 4, 8)), np.arange(6) % 3)
    assert found_runs(Records(tmp_path, elsewhere)) == ([], {"of other stores": 10, "damaged": 1})
    asked = ask_for_found(runs, ["1", "2", "never"])
    assert (asked.folds, asked.seeds) == (["1", "2"], [0, 1])
    (reported,) = fill(asked, records)
    assert reported.table.columns == ("optimiser.lr",)
    assert [line.row.cells for line in reported.rows] == [("0.1",), ("0.2",), ("0.3",)]
    assert [line.n for line in reported.rows] == ["2 of 4, 1 damaged", "4", "3 of 4"]
    assert reported.lacking == {
        "1": ["fold 1, seed 0", "fold 2, seed 0 (damaged)"],
        "3": ["fold 2, seed 1"],
    }
    assert asked.notes == []


def test_settings_are_compared_in_the_folds_and_seeds_that_they_share(store: Store) -> None:
    methods = [row.method(BASE) for row in TABLE.rows]
    runs = [
        *runs_of(methods[0], FOLDS, range(3)),
        *runs_of(methods[1], FOLDS, range(1)),
        *runs_of(methods[2], FOLDS[:1], range(3)),
    ]
    asked = ask_for_found(runs, FOLDS)
    assert (asked.folds, asked.seeds) == (FOLDS, [0])
    assert [row.cells for row in asked.tables[0].rows] == [("0.1",), ("0.2",)]
    assert asked.notes == [
        "Settings not compared, since they lack some of the runs of the others: 1. tgdfer report "
        "TABLE compares the rows of a table, whichever runs they have.",
        "Compared are the runs that all settings have (fold 1, 2, seed 0), not 4 more of some.",
    ]
    elsewhere = [*runs_of(methods[0], FOLDS, range(2)), *runs_of(methods[1], FOLDS, [7, 8])]
    assert len(ask_for_found(elsewhere, FOLDS).tables[0].rows) == 1


def test_a_row_does_not_lead_a_main_setting_that_is_better_and_no_row(
    store: Store, tmp_path: Path
) -> None:
    records = write(store, tmp_path, (0.95, 0.6, 0.5))
    table = replace(TABLE, rows=TABLE.rows[1:], main=replace(TABLE.rows[0], name="main setting"))
    (reported,) = fill(Asked([table], BASE, FOLDS, SEEDS), records)
    lead, behind, *_ = answer(table, reported.rows)
    assert lead.startswith("2 (0.2) leads")
    assert behind.startswith("But it is behind main setting, which is no row of this table: -")
    _, learning = draw_tables([reported], {})
    assert b">main setting<" in learning.svg
    assert "of 3 rows. Of 2:" in learning.alt
    assert len(reported.records["main setting"]) == 4


def test_rows_are_ranked_over_all_videos_and_another_order_of_the_means_is_said(
    filled: list[Reported],
) -> None:
    first, second, third = filled[0].rows
    means = (replace(first, war=Cell(99.0, 1.0)), second, third)
    assert (
        "; by the mean over runs, in which a small fold counts as much as a large one, 1 is "
        in (" ".join(answer(TABLE, means)))
    )
    assert "by the mean over runs" not in " ".join(answer(TABLE, filled[0].rows))


def test_rows_that_diverged_are_not_waited_for_and_not_ranked(filled: list[Reported]) -> None:
    first, second, third = filled[0].rows
    rows = (first, second, replace(third, done=3, diverged=1, behind=None))
    lead, *rest = answer(TABLE, rows)
    assert lead.startswith("2 (0.2) leads the rows that have all of theirs: WAR")
    assert "Not ranked, since some of their runs diverged: 3." in rest
    (alone,) = answer(TABLE, rows[2:])
    assert alone == "Not ranked, since some of their runs diverged: 3."
    assert answer(TABLE, (first, second, replace(rows[2], diverged=0)))[0].startswith("No answer")


def test_rows_whose_learning_rates_are_not_chosen_lack_their_runs(
    store: Store, tmp_path: Path
) -> None:
    records = write(store, tmp_path, (0.5, 0.9, 0.9))
    why = "learning rates not tried: 3, 10 times the base's"
    method = TABLE.rows[1].method(BASE)
    tuned = replace(TABLE, tuned=True)
    methods = [row.method(BASE) for row in (*TABLE.rows, TABLE.reference(TABLE.rows[0]))]
    factors = {(own, fold): 1.0 for own in methods for fold in FOLDS}
    del factors[method, "2"]
    asked = Asked([tuned, TABLE], BASE, FOLDS, SEEDS, factors, {(method, "2"): why})
    found, plain = fill(asked, records)
    main = {"main setting": ["fold 1, seed 0, seed 1", "fold 2, seed 0, seed 1"]}
    assert found.lacking == {"2": [f"fold 2, {why}"]} | main
    assert [line.n for line in found.rows] == ["4", "2 of 4", "4"]
    assert plain.lacking == main  # it is not tuned


def test_calibration_error_is_that_of_all_answers_of_a_row(filled: list[Reported]) -> None:
    confidence, right = [], []
    for record in records_of(filled[0], "3"):
        _, labels, predicted = record.predictions()
        powers = np.exp(record.logits().astype(float))
        confidence += [*(powers.max(1) / powers.sum(1))]
        right += [*(labels == predicted)]
    places = np.ceil(np.array(confidence) * 15)
    gaps = [
        abs(sum(np.array(right)[places == b]) - sum(np.array(confidence)[places == b]))
        for b in range(16)
    ]
    assert filled[0].ece["3"] == pytest.approx(sum(gaps) / len(right))


def test_videos_with_frames_are_the_most_surely_wrong_and_some_of_every_class(
    store: Store, filled: list[Reported]
) -> None:
    pooled = pool(records_of(filled[0], "1"), store)
    rows = choose_videos(pooled, 20)
    assert len(rows) == len(set(rows.tolist())) <= 20
    wrong = np.flatnonzero(pooled.predicted_N != pooled.labels_N)
    surest = wrong[np.argsort(-pooled.p_NK[wrong].max(1))][:10]
    assert set(pooled.rows_N[surest].tolist()) <= set(rows.tolist())
    assert set(store.labels[rows].tolist()) == {0, 1, 2}
    assert choose_videos(pooled, 1000).tolist() == [*range(60)]


def test_influence_is_scaled_from_the_lowest_to_the_highest_of_a_video() -> None:
    found = scaled(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]))
    assert found.tolist() == [[0, 1, 0.5], [0, 0, 0]]


def test_figures_say_what_they_show_and_are_the_same_again(
    store: Store, filled: list[Reported]
) -> None:
    leading = find_leading(filled, store)
    assert leading is not None
    generator = np.random.default_rng(0)
    shape = (FRAMES, 16, 16, 3)
    frames = {row: generator.integers(0, 255, shape).astype(np.uint8) for row in range(60)}
    pictures = [*draw_tables(filled, {}), *draw_leading(leading, store, frames)]
    by_name = {own.name: own for own in pictures}
    assert [*by_name] == [
        *("forest-varied", "learning-varied", "confusion", "classes", "reliability"),
        *("risk-coverage", "localisation", "influence", "contact-sheet"),
    ]
    for own in pictures:
        ElementTree.fromstring(own.svg)
        assert own.png.startswith(b"\x89PNG")
        assert b"<dc:date>" not in own.svg
    counts = leading.pooled.scores.counts_KK
    off = counts - np.diag(np.diag(counts))
    assert f"{int(off.max())} of " in by_name["confusion"].alt
    assert b">$x^{<" in by_name["confusion"].svg
    assert f"fear {100 * leading.pooled.scores.recall_K[2]:.1f} %" in by_name["classes"].alt
    assert "the 1, 2, 3, … highest ranked" in by_name["localisation"].caption
    assert "true intensity" in by_name["influence"].caption
    assert by_name["influence"].alt.count("strongest in frame") == 6
    assert by_name["contact-sheet"].alt.count(" of ") == 3
    again = [
        draw_forest(TABLE, filled[0].rows, leading.row),
        draw_reliability(reliability(leading.pooled.logits_MK, leading.pooled.labels_M)),
    ]
    assert again == [by_name[own.name] for own in again]
