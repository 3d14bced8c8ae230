"""Tables whose rows are scored on subsets of the test videos, in folds of their own."""

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import MethodConfig, Run, load_method
from pipeline.evaluate.influence import average_precision
from pipeline.report.ablation import FilledRow, collect, header_of, runs_of_table
from pipeline.report.curves import CURVES, draw_curves
from pipeline.report.forms import FORMS, write_tables
from pipeline.report.tables import (
    POPULATION,
    ROBUSTNESS,
    WITHOUT,
    Table,
    find_tables,
    fit,
    robustness,
)
from pipeline.train.records import Records
from support.commands import tgdfer
from support.markdown import cells_of, tight
from support.records import write_record
from support.stores import random_store, write_store

VERSIONS = ("clean", "hidden_30", "hidden_60", "dark_25")
BASES = 24  # videos, each in all versions; two of every person
FRAMES = 4
FOLDS = ("1", "2")


@pytest.fixture(scope="module")
def robust(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two folds of different people, trained on clean videos and tested on all versions."""
    base, version = (own.ravel() for own in np.indices((BASES, len(VERSIONS))))
    person, rows = base // 2, np.arange(base.size)
    folds = {
        fold: (rows[(version == 0) & (person % 2 != k)].tolist(), rows[person % 2 == k].tolist())
        for k, fold in enumerate(FOLDS)
    }
    shows = np.tile(np.arange(FRAMES) % 2 == 0, (base.size, 1))
    labels = base % 3
    return write_store(
        tmp_path_factory.mktemp("robust") / "s.zarr",
        np.ones((base.size, 1, FRAMES, 8)),
        labels,
        folds=folds,
        subjects=tuple(f"person {n}" for n in person),
        truth_NT=np.where(shows, labels[:, None], -1),
        subsets={name: rows[version == k].tolist() for k, name in enumerate(VERSIONS)},
        name="faces-robust",
    )


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eight people, one for every combination of values and half; two videos of each."""
    values = [("light", "dark"), ("young", "old"), ("no_glasses", "glasses")]
    shown = [(*own, half) for own in product(*values) for half in "12" for _ in range(2)]
    rows = range(len(shown))
    folds = {
        f"{value}-{half}": (
            [n for n in rows if value in shown[n] and shown[n][-1] == half],
            [n for n in rows if shown[n][-1] != half],
        )
        for value in sum(values, ())
        for half in "12"
    }
    return write_store(
        tmp_path_factory.mktemp("people") / "s.zarr",
        np.ones((len(shown), 1, FRAMES, 8)),
        np.arange(len(shown)) // 2 % 2,
        folds=folds,
        subjects=tuple("".join(own) for own in shown),
        subsets={value: [n for n in rows if value in shown[n]] for value in sum(values, ())},
        name="faces-people",
    )


def write_runs(table: Table, store: Store, root: Path, base: MethodConfig) -> Records:
    """Records of all runs of a table, which are right of 9 in 10 videos, fewer if it is hard."""
    records, generator = Records(root, store), np.random.default_rng(0)
    hard = np.zeros(len(store.ids))
    for name, members in store.subsets.items():
        hard[members] += {"hidden_60": 0.6, "hidden_30": 0.2, "dark": 0.5}.get(name, 0)
    for run in runs_of_table(table, base, [name for name, _, _ in store.folds], [0]):
        test = next(test for name, _, test in store.folds if name == run.fold)
        right = generator.random(len(test)) > 0.1 + hard[test] * (not run.method.label.quality)
        predicted = np.where(right, store.labels[test], 3)
        shape = (len(test), store.frames, len(store.classes))
        logits, attention = generator.standard_normal(shape), generator.random(shape)
        write_record(records, run, predicted, False, logits, attention)
    return records


def said_of(records: Records, run: Run, subset: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(people, labels, predicted classes) of a run's test videos in a subset, one at a time."""
    record = records.find(run)
    assert record is not None
    store, kept = records.store, []
    for video_id, label, guess in zip(*record.predictions(), strict=True):
        row = store.ids.index(video_id)
        if store.subsets[subset][row]:
            kept.append((store.subjects[row], label, guess))
    persons, labels, guesses = zip(*kept, strict=True)
    return list(persons), np.array(labels), np.array(guesses)


def by_name(rows: list[FilledRow]) -> dict[str, FilledRow]:
    return {line.row.name: line for line in rows}


def test_robustness_trains_three_settings_and_scores_each_on_every_subset(
    robust: Store, tmp_path: Path
) -> None:
    base = load_method("tuned")
    table = fit(ROBUSTNESS, robust, base)
    runs = runs_of_table(table, base, FOLDS, [0])
    assert len(runs) == 3 * 2
    scaled = {(run.method.input.scale, run.method.label.quality) for run in runs}
    assert scaled == {("layer_norm", 0), ("standardise", 0), ("standardise", 1)}
    records = write_runs(table, robust, tmp_path, base)
    rows = collect(table, base, FOLDS, [0], records)
    assert [line.row.subset for line in rows[::3]] == list(VERSIONS)
    lines = by_name(rows)
    for subset in VERSIONS:
        own = [said_of(records, run, subset) for run in runs if run.method == base]
        wars = [100 * np.mean(labels == guesses) for _, labels, guesses in own]
        line = lines[subset]
        assert line.war.mean == pytest.approx(np.mean(wars))
        pooled = line.pooled["WAR"]
        assert 100 * pooled.value == pytest.approx(np.mean(wars))
        assert pooled.low <= pooled.value <= pooled.high


def test_hard_videos_are_compared_with_clean_ones_and_the_remedy_with_the_same_videos(
    robust: Store, tmp_path: Path
) -> None:
    base = load_method()
    table = fit(ROBUSTNESS, robust, base)
    rows = collect(table, base, FOLDS, [0], write_runs(table, robust, tmp_path, base))
    lines = by_name(rows)
    against = {name: (line.row.against or table.main).name for name, line in lines.items()}
    assert against["hidden_60"] == "clean"
    assert against["hidden_60 scaled"] == "clean scaled"
    assert against["hidden_60 quality"] == "hidden_60 scaled"
    for name, reference in against.items():
        found, ours, theirs = lines[name].differences["WAR"], lines[name].war, lines[reference].war
        assert found is not None
        assert ours.mean is not None
        assert theirs.mean is not None
        assert 100 * found.value == pytest.approx(ours.mean - theirs.mean)
    lost, won = (lines[n].differences["WAR"] for n in ("hidden_60", "hidden_60 quality"))
    assert lost is not None
    assert won is not None
    assert lost.value < 0 < won.value
    header = header_of(robust, base, 2, 1)
    md, comma, tex, _ = write_tables([(table, rows)], header, tmp_path / "out")
    text = tight(md.read_text())
    heads = ["UAR", "WAR", "AP of influence", "AP of attention", "compared with", "UAR difference"]
    assert [head for head in heads if f" | {head} |" not in text] == []
    assert "| hidden_60 quality | face hidden | 60 % of the face | standardise | 1 |" in text
    assert "Runs in every row: 2." in text
    line = next(line for line in csv.DictReader(comma.open()) if line["row"] == "hidden_30 quality")
    assert line["compared_with"] == "hidden_30 scaled"
    assert float(line["war_pooled"]) == pytest.approx(float(line["war_mean"]))
    assert float(line["war_pooled_low"]) < float(line["war_pooled"])
    assert float(line["ap_logit_low"]) < float(line["ap_logit"]) < float(line["ap_logit_high"])
    assert r"hidden\_60 quality & face hidden & 60 \% of the face &" in tex.read_text()


def test_average_precision_is_that_of_the_videos_of_the_subset(
    robust: Store, tmp_path: Path
) -> None:
    base = load_method()
    table = fit(ROBUSTNESS, robust, base)
    records = write_runs(table, robust, tmp_path, base)
    lines = by_name(collect(table, base, FOLDS, [0], records))
    values = []
    for run in runs_of_table(table, base, FOLDS, [0])[:2]:
        record = records.find(run)
        assert record is not None
        logits = record.frame_logits()
        for n, (video_id, _, guess) in enumerate(zip(*record.predictions(), strict=True)):
            if robust.subsets["dark_25"][robust.ids.index(video_id)]:
                shows = np.arange(FRAMES)[None] % 2 == 0
                values.append(average_precision(logits[n : n + 1, :, guess].astype(float), shows))
    found = lines["dark_25"].precisions["logit"]
    assert found is not None
    assert found.value == pytest.approx(np.mean(values))
    assert found.low < found.value < found.high


def test_curves_have_a_panel_for_each_condition_and_are_the_same_each_time(
    robust: Store, tmp_path: Path
) -> None:
    base = load_method()
    table = fit(ROBUSTNESS, robust, base)
    rows = collect(table, base, FOLDS, [0], write_runs(table, robust, tmp_path, base))
    header = header_of(robust, base, 2, 1) | {"data": "faces-robust (rendered) $\\frac"}
    pictures = draw_curves(rows, header)
    assert tuple(pictures) == CURVES
    assert pictures == draw_curves(rows, header)
    assert pictures["robustness.png"].startswith(b"\x89PNG")
    picture = pictures["robustness.svg"].decode()
    for text in (
        "face hidden (% of the face)",
        "brightness (%)",
        "WAR (%)",
        "AP of influence",
        "frame quality as a prior",
        "faces-robust (rendered) $\\frac",
        "seeds per fold: 1",
    ):
        assert text in picture, text
    assert "blur" not in picture


def test_runs_that_are_missing_leave_gaps_in_tables_and_curves(
    robust: Store, tmp_path: Path
) -> None:
    base = load_method()
    table = fit(ROBUSTNESS, robust, base)
    rows = collect(table, base, FOLDS, [0], Records(tmp_path, robust))
    assert [(str(line.war), line.pooled, line.n) for line in rows] == [("–", {}, "0 of 2")] * 12
    assert set(rows[1].differences.values()) == {None}
    header = header_of(robust, base, 2, 1)
    md, *_ = write_tables([(table, rows)], header, tmp_path / "out", draw_curves(rows, header))
    text = tight(md.read_text())
    cells = cells_of(text)["clean"]
    assert cells == ["clean", "–", "base", "base", *["–"] * 6, "0 of 2", "clean", "–", "–"]


def test_a_user_s_own_subsets_are_compared_with_all_videos(tmp_path: Path) -> None:
    subsets = {
        "occluded": [0, 1, 5, 6],
        "noise_10": [2, 3],
        "noise_5": [4, 8],
        "dark$": [],
        "x": [1],
    }
    store = random_store(tmp_path / "s.zarr", 20, frames=FRAMES, folds=2, subsets=subsets)
    (named,) = find_tables(["robustness"])
    base = load_method()
    table = fit(named, store, base)
    names = ["all videos", "dark$", "noise_5", "noise_10", "occluded", "x"]
    assert [row.name for row in table.rows[::3]] == names
    assert {row.against.name for row in table.rows[::3] if row.against} == {"all videos"}
    rows = by_name(collect(table, base, FOLDS, [0], write_runs(table, store, tmp_path, base)))
    runs = {name: (rows[name].n, str(rows[name].war) == "–") for name in names}
    # Video 1 is in one of the folds only.
    assert runs["x"] == ("1", False)
    assert runs["dark$"] == ("0", True)
    assert runs["occluded"] == runs["all videos"] == ("2", False)
    assert rows["occluded"].precisions == {}
    picture = draw_curves(list(rows.values()), header_of(store, base, 2, 1))[CURVES[1]].decode()
    assert "dark$" in picture
    assert "AP of" not in picture


def test_population_scores_every_pair_of_values_in_folds_of_their_own(
    people: Store, tmp_path: Path
) -> None:
    base = load_method()
    table = fit(POPULATION, people, base)
    runs = runs_of_table(table, base, ["not used"], [0])
    assert len(runs) == 12
    assert {run.method for run in runs} == {base}
    records = write_runs(table, people, tmp_path, base)
    lines = by_name(collect(table, base, ["not used"], [0], records))
    assert len(lines) == 4 * 3
    for trained, tested in product(("light", "dark"), repeat=2):
        own = [run for run in runs if run.fold.startswith(trained)]
        wars = []
        for _, labels, guesses in (said_of(records, run, tested) for run in own):
            wars.append(100 * np.mean(labels == guesses))
        line = lines[f"{trained} on {tested}"]
        assert (line.row.cells, line.n) == (("skin", trained, tested), "2")
        assert line.war.mean == pytest.approx(np.mean(wars))
        assert line.row.against is not None
        other = "dark" if trained == tested else tested
        assert line.row.against.name == f"{other} on {other}"
    for name in ("light on dark", "light on light"):
        difference = lines[name].differences["WAR"]
        means = (lines[name].war.mean, lines["dark on dark"].war.mean)
        assert difference is not None
        assert None not in means
        assert 100 * difference.value == pytest.approx(means[0] - means[1])  # type: ignore[operator]
    header = header_of(people, base, 12, 1, [table])
    assert header["protocol"].startswith("12 folds, of which a row of population uses 2, seeds per")


def test_a_store_without_the_subsets_or_folds_is_refused_with_the_set_that_has_them(
    robust: Store, people: Store, tmp_path: Path
) -> None:
    plain = random_store(tmp_path / "s.zarr", 20, frames=FRAMES)
    with pytest.raises(
        RefusedError, match=r"no subset clean, which table robustness.*extract --dataset faces-robu"
    ):
        fit(ROBUSTNESS, plain, load_method())
    with pytest.raises(
        RefusedError, match=r"no subset light, which table population.*--dataset faces-people"
    ):
        fit(POPULATION, robust, load_method())
    half = write_store(
        tmp_path / "half.zarr",
        np.ones((10, 1, FRAMES, 8)),
        np.zeros(10, int),
        subsets={name: [0] for name in people.subsets},
    )
    with pytest.raises(RefusedError, match="no fold light-1, which table population"):
        fit(POPULATION, half, load_method())
    (table3,) = find_tables(["table3"])
    assert fit(table3, plain, load_method()) is table3


def test_known_conditions_come_first_from_mild_to_severe() -> None:
    names = ["noise_1", "dark_10", "dark_50", "hidden_60", "hidden_15", "a", "clean", "yaw_15"]
    order = [row.subset for row in robustness(names).rows[::3]]
    known = ["clean", "hidden_15", "hidden_60", "yaw_15", "dark_50", "dark_10"]
    assert order == [*known, "a", "noise_1"]
    assert [row.subset for row in ROBUSTNESS.rows[:9:3]] == ["clean", "hidden_15", "hidden_30"]
    assert len(ROBUSTNESS.rows) == 3 * (1 + 4 + 3 + 4 + 3 + 3)


def test_the_command_writes_tables_and_curves_and_refuses_another_store(tmp_path: Path) -> None:
    subsets = {"clean": range(14), "hidden_30": range(14, 28)}
    store = random_store(tmp_path / "s.zarr", 28, frames=FRAMES, folds=2, subsets=subsets)
    base = load_method()
    write_runs(fit(ROBUSTNESS, store, base), store, tmp_path / "runs", base)
    options = ["--store", "s.zarr", "--device", "cpu"]
    done = tgdfer("ablate", "robustness", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| hidden_30 quality | face hidden | 30 % of the face | standardise | 1 |" in tight(
        done.stdout
    )
    assert "0 runs trained, 6 already finished" in done.stdout
    names = {*FORMS, *CURVES}
    assert {path.name for path in (tmp_path / "reports").iterdir()} == names
    assert tgdfer("report", "robustness", *options, cwd=tmp_path).returncode == 0
    page = (tmp_path / "reports" / "index.html").read_text()
    assert "The rows are scored on different videos, so that none leads" in page
    assert '<figure class="chart" id="figure-robustness">' in page
    refused = tgdfer("ablate", "population", *options, cwd=tmp_path)
    assert (refused.returncode, "extract --dataset faces-people" in refused.stderr) == (2, True)


def test_without_takes_back_what_the_base_adds_to_the_paper(robust: Store) -> None:
    table = fit(WITHOUT, robust, load_method("tuned"))
    taken = [row.cells[0] for row in table.rows]
    assert taken[:3] == ["nothing", "scaled input", "centred texts"]
    assert "epochs" in taken
    assert "dropout" not in taken
    with pytest.raises(RefusedError, match="adds nothing; name another with --config"):
        fit(WITHOUT, robust, load_method())
