"""Records of a store's runs -> what a report shows of them, and its figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.identity import flatten
from cache.store import Store
from pipeline.config import MethodConfig, Run
from pipeline.evaluate.calibration import reliability, risk_coverage
from pipeline.evaluate.influence import Array, Influence
from pipeline.evaluate.localisation import precision_recall
from pipeline.evaluate.metrics import Rows
from pipeline.report.ablation import Factors, FilledRow, collect, runs_of_row
from pipeline.report.answer import Verdict, judge
from pipeline.report.figures import (
    Picture,
    Strip,
    draw_classes,
    draw_confusion,
    draw_contact_sheet,
    draw_forest,
    draw_learning,
    draw_localisation,
    draw_reliability,
    draw_risk,
    draw_robustness,
    draw_strips,
    scaled,
)
from pipeline.report.pooled import Pooled, disagreement, learning_curves, pool
from pipeline.report.rules import OPTIMISTIC
from pipeline.report.tables import REGRESSION, ROBUSTNESS, Table, TableRow
from pipeline.train.rates import Tuned
from pipeline.train.record import Record, read_records
from pipeline.train.records import Records

Own = TypeVar("Own", str, int)  # folds or seeds
Frames = Mapping[int, NDArray[np.uint8]]  # row of the store -> its T frames, [T, H, W, 3]

STRIPS = 3  # of answers that are right, and as many of those that are wrong
SHEET = 10  # frames of a class on the contact sheet


@dataclass(frozen=True)
class Asked:
    """The tables of a report, and the runs that they are made from."""

    tables: Sequence[Table]
    base: MethodConfig  # that rows change
    folds: Sequence[str]
    seeds: Sequence[int]
    factors: Factors = field(default_factory=dict)  # of learning rates, in tuned tables
    undecided: Mapping[Tuned, str] = field(default_factory=dict)  # why there is no factor
    notes: Sequence[str] = ()  # what was found and is not asked for


@dataclass(frozen=True)
class Reported:
    """A filled table, and the runs of its rows, and of what they are compared with, by name."""

    table: Table
    rows: list[FilledRow]
    records: Mapping[str, list[Record]]  # the finished ones
    lacking: Mapping[str, list[str]]  # of each fold, which runs are not there, if any

    @property
    def ece(self) -> dict[str, float]:
        """Calibration error in [0, 1] of the rows of all frames and videos."""
        whole = (line for line in self.rows if line.calibration and not line.row.subset)
        return {line.row.name: line.calibration["ECE"] for line in whole}

    @cached_property
    def verdict(self) -> Verdict | None:
        """Which row leads, if one does."""
        return judge(self.rows)

    @property
    def best(self) -> FilledRow | None:
        """Of the rows that are trained and answer from all frames, the one of highest WAR.

        None if none of them has all of its runs, or if rows are scored on different videos.
        """
        # A baseline has no records, and those of a row of chosen frames are of all frames.
        compared = [
            (line.behind.value, place, line)
            for place, line in enumerate(self.rows)
            if line.behind is not None and self.records.get(line.row.name) and not line.row.choice
        ]
        return min(compared)[2] if compared else None


@dataclass(frozen=True)
class Leading:
    """The best trained row of a table, what its networks say, and where all networks disagree."""

    reported: Reported
    row: FilledRow
    records: list[Record]
    pooled: Pooled
    disagreement_N: Array  # of the pooled videos


def found_runs(records: Records) -> tuple[list[Run], Counter[str]]:
    """(runs that these records may count, finished or not; how many others there are, by reason).

    Damaged ones are among the others.
    """
    runs, others = [], Counter[str]()
    for record in read_records(records.root):
        identity = record.metadata.get("identity")
        if identity is None:
            others["damaged"] += 1
        elif identity["store"] != records.store.digest:
            others["of other stores"] += 1
        elif record.changed_code():
            others["of other code"] += 1
        elif record.run.method.selection.tested_on == "held_out":
            others["of a search, scored on held-out videos"] += 1
        elif identity["device"] != records.device:
            others[f"trained on {identity['device']}"] += 1
        else:
            runs.append(record.run)
    return runs, others


def ask_for_found(runs: Sequence[Run], folds: Sequence[str]) -> Asked:
    """A table of settings that some runs have, in those ``folds`` and seeds that all of them have.

    A setting counts as asked for in each of its folds with each of its seeds. If settings differ in
    their folds, those are taken that most of them can be compared in, and settings without them are
    left out; so are those whose epochs were selected on the test videos, if others were not.
    Differences refer to the paper's setting if it is there, else to the first.
    """
    honest = [run for run in runs if run.method.selection.rule != OPTIMISTIC]
    selected = len({run.method for run in runs}) - len({run.method for run in honest})
    left = (
        f"Settings not compared, since their epochs were selected on the test videos: {selected}. "
        "They are compared with each other where all settings were."
    )
    runs, optimistic = (honest, [left] * bool(selected)) if honest else (runs, [])
    grids = _grids(runs)
    shared = _most_shared([own for own, _ in grids.values()])
    seeds_of = {method: seeds for method, (own, seeds) in grids.items() if own >= shared}
    seeds = frozenset.intersection(*seeds_of.values()) or _most_shared([*seeds_of.values()])
    methods = [method for method, own in seeds_of.items() if own >= seeds]
    methods.sort(key=lambda method: (method != MethodConfig(), repr(method)))
    asked = [name for name in folds if name in shared]
    notes = [*optimistic, *_not_compared(runs, methods, asked, sorted(seeds))]
    return Asked([_table_of(methods)], methods[0], asked, sorted(seeds), notes=notes)


def _grids(runs: Sequence[Run]) -> dict[MethodConfig, tuple[frozenset[str], frozenset[int]]]:
    """The folds and the seeds that each setting has."""
    by_method: dict[MethodConfig, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    return {
        method: (frozenset(run.fold for run in own), frozenset(run.seed for run in own))
        for method, own in by_method.items()
    }


def _most_shared(sets: Sequence[frozenset[Own]]) -> frozenset[Own]:
    """The set whose members are had most often by the sets that have all of them.

    >>> sorted(_most_shared([frozenset("12"), frozenset("123"), frozenset("1")]))
    ['1', '2']
    """

    def shared(wanted: frozenset[Own]) -> tuple[int, int, list[Own]]:
        having = sum(own >= wanted for own in sets)
        return having * len(wanted), having, sorted(wanted, key=str)

    return max(sets, key=shared)


def _table_of(methods: Sequence[MethodConfig]) -> Table:
    """A row for each, which shows the settings in which they differ; the first is the main one."""
    settings = [_settings(method) for method in methods]
    names = [n for n in settings[0] if len({repr(own[n]) for own in settings}) > 1]
    rows = tuple(
        TableRow(str(number), tuple(str(own[name]) for name in names), method.model_dump())
        for number, (method, own) in enumerate(zip(methods, settings, strict=True), 1)
    )
    title = f"Settings found among the runs ({len(rows)})"
    return Table("settings", title, tuple(names), rows, main=rows[0], differences=("UAR", "WAR"))


def _not_compared(
    runs: Sequence[Run], methods: Sequence[MethodConfig], folds: Sequence[str], seeds: Sequence[int]
) -> list[str]:
    """What of the runs is not in the table, and why."""
    others = {run.method for run in runs}.difference(methods)
    more = [
        run
        for run in runs
        if run.method not in others and not (run.fold in folds and run.seed in seeds)
    ]
    grid = f"fold {', '.join(folds)}, seed {', '.join(map(str, seeds))}"
    left = (
        f"Settings not compared, since they lack some of the runs of the others: {len(others)}. "
        "tgdfer report TABLE compares the rows of a table, whichever runs they have."
    )
    extra = f"Compared are the runs that all settings have ({grid}), not {len(more)} more of some."
    return [left] * bool(others) + [extra] * bool(more)


@dataclass(frozen=True)
class _ReadOnce(Records):
    """Records that are read and verified once, however many rows they are part of."""

    known: dict[Path, Record | None] = field(default_factory=dict)

    def find(self, run: Run) -> Record | None:
        folder = self.folder(run)
        if folder not in self.known:
            self.known[folder] = super().find(run)
        return self.known[folder]


def fill(asked: Asked, records: Records) -> list[Reported]:
    """The tables, filled from the records."""
    once = _ReadOnce(records.root, records.store, records.device, records.code_files)
    return [_filled(table, asked, once) for table in asked.tables]


def _filled(table: Table, asked: Asked, records: Records) -> Reported:
    base, folds, seeds, factors = asked.base, asked.folds, asked.seeds, asked.factors
    every = {own.name: own for row in table.rows for own in (row, table.reference(row))}
    trained = {name: row for name, row in every.items() if not row.baseline}
    runs = {
        name: runs_of_row(table, row, base, folds, seeds, factors) for name, row in trained.items()
    }
    good = {
        name: [record for record in map(records.find, own) if record is not None and record.ok]
        for name, own in runs.items()
    }
    # What the rows of a narrowed table are compared with is not asked for.
    wanted = {row.name for row in table.rows} if table.narrowed else {*trained}
    lacking = {
        name: _lacking(runs[name], records, _undecided(table, row, asked))
        for name, row in trained.items()
        if name in wanted
    }
    if REGRESSION in every:
        lacking[REGRESSION] = _unsearched(records, folds)
    return Reported(
        table,
        collect(table, base, folds, seeds, records, factors),
        good,
        {name: own for name, own in lacking.items() if own},
    )


def _unsearched(records: Records, folds: Sequence[str]) -> list[str]:
    from pipeline.train.regressions import Regressions

    kept = Regressions(records.root, records.store)
    damaged = kept.damaged(folds)
    return [
        f"fold {fold}, {'damaged' if fold in damaged else 'not searched yet'}"
        for fold in kept.lacking(folds)
    ]


def _undecided(table: Table, row: TableRow, asked: Asked) -> dict[str, str]:
    """Fold -> why its learning rates, and so its runs, are not known yet."""
    if not table.tuned:
        return {}
    own = row.method(asked.base)
    return {fold: why for (method, fold), why in asked.undecided.items() if method == own}


def _lacking(runs: Sequence[Run], records: Records, undecided: Mapping[str, str]) -> list[str]:
    """Of each fold, which runs are not there, or why it is not known which they are.

    A run that diverged or is damaged is called so.
    """
    reasons = {fold: [why] for fold, why in undecided.items()}
    for run in runs:
        record = records.find(run)
        if record is None or not record.ok:
            status = f" ({record.status})" if record else ""
            reasons.setdefault(run.fold, []).append(f"seed {run.seed}{status}")
    return [f"fold {fold}, {', '.join(own)}" for fold, own in reasons.items()]


def find_leading(tables: Sequence[Reported], store: Store) -> Leading | None:
    """The best trained row of the first table that has one."""
    for own in tables:
        if (row := own.best) is not None:
            records = own.records[row.row.name]
            pooled = pool(records, store)
            every = {record.folder: record for good in own.records.values() for record in good}
            shares = disagreement([*every.values()], store)[pooled.rows_N]
            return Leading(own, row, records, pooled, shares)
    return None


def choose_videos(pooled: Pooled, count: int) -> Rows:
    """Rows of up to ``count`` videos: half of them most surely wrong, others of every class."""
    wrong_N = pooled.predicted_N != pooled.labels_N
    by_certainty = np.argsort(-pooled.p_NK.max(1), kind="stable")
    chosen = dict.fromkeys(by_certainty[wrong_N[by_certainty]][: count // 2].tolist())
    classes = np.unique(pooled.labels_N)
    for label in classes:
        left = [n for n in np.flatnonzero(pooled.labels_N == label).tolist() if n not in chosen]
        wanted = min(len(left), (count - count // 2) // len(classes))
        chosen |= dict.fromkeys(left[i * len(left) // wanted] for i in range(wanted))
    return pooled.rows_N[sorted(chosen)]


def draw_tables(tables: Sequence[Reported], header: Mapping[str, str]) -> list[Picture]:
    """The figures of each table."""
    pictures = []
    for own in tables:
        leading = own.verdict.leading if own.verdict else None
        pictures.append(draw_forest(own.table, own.rows, leading))
        if (best := own.best) is not None:
            curves = {name: learning_curves(good) for name, good in own.records.items() if good}
            reference = own.table.reference(best.row).name
            pictures.append(draw_learning(own.table, curves, best.row.name, reference))
        if own.table.name == ROBUSTNESS.name:
            pictures.append(draw_robustness(own.rows, header))
    return pictures


def draw_leading(leading: Leading, store: Store, frames: Frames) -> list[Picture]:
    """The figures of the leading row, and of the frames that are at hand."""
    pooled, classes = leading.pooled, store.classes
    pictures = [
        draw_confusion(pooled, classes),
        draw_classes(pooled.scores, classes),
        draw_reliability(reliability(pooled.logits_MK, pooled.labels_M)),
        draw_risk(risk_coverage(pooled.logits_MK, pooled.labels_M)),
    ]
    kinds: dict[str, Influence] = {"influence": "logit", "attention": "attention"}
    ranked = {name: precision_recall(leading.records, store, kind) for name, kind in kinds.items()}
    if found := {name: own for name, own in ranked.items() if own is not None}:
        pictures.append(draw_localisation(found))
    if strips := _strips(pooled, store, frames):
        pictures.append(draw_strips(strips))
    if sheet := _sheet(store, frames):
        pictures.append(draw_contact_sheet(sheet))
    return pictures


def true_intensity(store: Store, pooled: Pooled) -> Array | None:
    """How strongly each frame shows the label of its video, [N, T] in [0, 1], if that is known."""
    truth = store.frame_truth()
    if truth is None:
        return None
    labels_NT, intensity_NT = (own[pooled.rows_N][:, pooled.frames] for own in truth)
    return np.where(labels_NT == pooled.labels_N[:, None], intensity_NT, 0).astype(np.float64)


def _settings(method: MethodConfig) -> dict[str, object]:
    return flatten(method.model_dump(mode="json", exclude={"store"}))


def _strips(pooled: Pooled, store: Store, frames: Frames) -> list[Strip]:
    """Of the most certain answers, some that are wrong and some that are right."""
    order = np.argsort(-pooled.p_NK.max(1), kind="stable").tolist()
    shown = [n for n in order if int(pooled.rows_N[n]) in frames]
    wrong = [n for n in shown if pooled.predicted_N[n] != pooled.labels_N[n]]
    right = list({int(pooled.labels_N[n]): n for n in reversed(shown) if n not in wrong}.values())
    intensity_NT = true_intensity(store, pooled)
    return [
        Strip(
            describe_answer(pooled, n, store),
            frames[int(pooled.rows_N[n])][pooled.frames],
            scaled(pooled.influence_NT[n]),
            None if intensity_NT is None else intensity_NT[n],
        )
        for n in [*right[-STRIPS:], *wrong[:STRIPS]]
    ]


def describe_answer(pooled: Pooled, n: int, store: Store) -> str:
    """What was said of a video: "00042: fear, taken for surprise (62 %)"."""
    label, said = (store.classes[own[n]] for own in (pooled.labels_N, pooled.predicted_N))
    verdict = "right" if label == said else f"taken for {said}"
    return f"{store.ids[pooled.rows_N[n]]}: {label}, {verdict} ({100 * pooled.p_NK[n].max():.0f} %)"


def _sheet(store: Store, frames: Frames) -> dict[str, list[NDArray[np.uint8]]]:
    sheet: dict[str, list[NDArray[np.uint8]]] = {}
    for row in sorted(frames):
        own = sheet.setdefault(store.classes[store.labels[row]], [])
        if len(own) < SHEET:
            own.append(frames[row][store.frames // 2])
    return {name: sheet[name] for name in store.classes if name in sheet}
