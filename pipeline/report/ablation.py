"""Records of runs -> the rows of the ablation tables, which ``forms`` writes.

A row is a pure function of the result files. Missing and diverged runs are counted.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cache.store import Store
from pipeline.config import MethodConfig, Run, SelectionConfig, runs_of
from pipeline.evaluate.calibration import reliability, risk_coverage
from pipeline.evaluate.classes import ClassScores
from pipeline.evaluate.influence import influence_by, repool
from pipeline.evaluate.localisation import Found, localise, mean_precision
from pipeline.evaluate.metrics import confusion, recalls, uar, war
from pipeline.evaluate.statistics import (
    Difference,
    Interval,
    Metric,
    Sample,
    bootstrap,
    bootstrap_difference,
    mcnemar,
)
from pipeline.report.reported import reported_in
from pipeline.report.rules import OPTIMISTIC, RULES, by_rule
from pipeline.report.tables import REGRESSION, FrameChoice, Table, TableRow
from pipeline.train.rates import EDGES, FACTORS, Tried, tried_factors, with_rates
from pipeline.train.record import Record
from pipeline.train.records import Records
from pipeline.train.split import scored_rows

Factors = Mapping[tuple[MethodConfig, str], float]  # of learning rates, by method and fold
Guess = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # rows, labels, predicted

SELECTION = {
    "last": "the last epoch",
    "best_on_val": "the best epoch on videos held out of the training set",
    "best_on_test": "the best epoch on the test videos, which is optimistic",
}
TUNING = (
    f"every trained row with {', '.join(f'{own:g}' for own in FACTORS)} times the base's learning "
    "rates ({lr:g}, and {lr_prompts:g} for prompts), the best on 20 % of a fold's training videos, "
    "with one seed, chosen in every fold; the regression among 30 settings, on three such parts"
)
AT_EDGE, DIVERGED = "!", "†"  # marks of a factor
HELD_OUT = "scored on videos held out of the training set, not on the test videos"


@dataclass(frozen=True)
class Cell:
    """UAR, WAR or the recall of a class, of a row over its runs, in per cent."""

    mean: float | None  # None while no run is finished
    deviation: float | None  # sample standard deviation over runs; None for fewer than two

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True)
class Rates:
    """The learning rates that were chosen for a row in one fold."""

    factor: float  # by which those of the base are multiplied
    lr: float
    lr_prompts: float
    diverged: int  # runs with them

    @property
    def at_edge(self) -> bool:
        """Whether no larger or no smaller ones were tried."""
        return self.factor in EDGES

    def __str__(self) -> str:
        return f"{self.factor:g}" + AT_EDGE * self.at_edge + DIVERGED * bool(self.diverged)


@dataclass(frozen=True)
class FilledRow:
    """One line of a finished table."""

    row: TableRow
    uar: Cell
    war: Cell
    done: int
    diverged: int
    damaged: int
    expected: int
    reported: Mapping[str, float]
    recalls: Mapping[str, Cell]  # of the table's classes that the store has
    differences: Mapping[str, Difference | None]  # to its reference; None if runs are missing
    behind: Difference | None  # in WAR, the best row minus this one; None without a best row
    mcnemar: float | None  # p-value of no difference in WAR to its reference; None for more seeds
    pooled: Mapping[str, Interval]  # UAR and WAR over the videos of all runs; {} without any
    precisions: Mapping[str, Interval | None]  # of the table's rankings, if the truth is known
    selection: SelectionConfig  # of its runs
    by_rule: Mapping[str, Cell]  # WAR by each rule of selection, where its runs tell all of it
    scores: ClassScores  # of the videos of all runs together
    classes: Sequence[str]
    runs: Sequence[str]  # folders of its finished ones, if it is scored on all that these predict
    calibration: Mapping[str, float]  # ECE and AURC over the videos of all runs; {} if unknown
    rates: Mapping[str, Rates]  # by fold, in a tuned table; {} for a baseline

    @property
    def n(self) -> str:
        """Number of runs, with a note if some are missing."""
        return describe_runs(self.done, self.expected, self.diverged, self.damaged)

    @property
    def complete(self) -> bool:
        """Whether all of its runs are done."""
        return self.done == self.expected > 0

    @property
    def name(self) -> str:
        """Its name, with a note if its epochs were selected on the test videos."""
        return mark_optimistic(self.row.name, self.selection)


def collect(
    table: Table,
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    records: Records,
    factors: Factors = MappingProxyType({}),
) -> list[FilledRow]:
    """Read the records of a table's runs; ``base`` is the method that its rows change.

    ``factors`` are those of ``best_factors``, if the table is tuned.
    """
    store, find = records.store, cache(records.find)

    def read(row: TableRow) -> _Said:
        if row.baseline:
            return _said_by_baseline(row.baseline, records, row.folds or folds)
        found = [find(run) for run in runs_of_row(table, row, base, folds, seeds, factors)]
        unknown = len(row.folds or folds) * len(seeds) - len(found)  # without learning rates
        return _said([*found, *[None] * unknown], row, store)

    methods = [row.method(base) for row in table.rows]
    said_of_rows = [read(row) for row in table.rows]
    references = [read(table.reference(row)) for row in table.rows]
    rows = _filled(table, methods, said_of_rows, references, store)
    if not table.tuned:
        return rows
    return [
        replace(line, rates={} if line.row.baseline else _rates(method, folds, factors, said))
        for line, method, said in zip(rows, methods, said_of_rows, strict=True)
    ]


def collect_stores(
    table: Table,
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    records: Sequence[Records],
) -> list[FilledRow]:
    """As ``collect``, of a table whose rows are ``base`` on the stores of the ``records``."""
    runs = runs_of(base, folds, seeds)
    said_of_rows = [
        _said([own.find(run) for run in runs], row, own.store)
        for row, own in zip(table.rows, records, strict=True)
    ]
    rows = len(table.rows)
    return _filled(table, [base] * rows, said_of_rows, [said_of_rows[0]] * rows, records[0].store)


def _filled(
    table: Table,
    methods: Sequence[MethodConfig],
    said_of_rows: "Sequence[_Said]",
    references: "Sequence[_Said]",
    store: Store,
) -> list[FilledRow]:
    """The rows of a table, by what the runs of each and of its reference say."""
    located: dict[tuple[Path, ...], dict[str, Found]] = {}
    best, rows = _best(table, said_of_rows), []
    for row, method, said, reference in zip(
        table.rows, methods, said_of_rows, references, strict=True
    ):
        folders = tuple(record.folder for record in said.good)
        if table.rankings and folders not in located:
            located[folders] = localise(said.good, store)
        found = located.get(folders, {})
        filled = _fill(row, method, table, said, reference, found, store)
        behind = _differences(best, said, {"WAR": war}, store)["WAR"] if best else None
        rows.append(replace(filled, behind=behind))
    return rows


def _best(table: Table, said_of_rows: "Sequence[_Said]") -> "_Said | None":
    """The row of highest WAR, if all rows are scored on the same videos and one is complete."""
    complete = [said for said in said_of_rows if said.complete]
    if table.by_subset or not complete:
        return None
    return max(complete, key=_Said.war)


def runs_of_table(
    table: Table,
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    factors: Factors = MappingProxyType({}),
) -> list[Run]:
    """The runs that a table is made from, without duplicates; ``folds`` are the command's.

    Those of rows that others are compared with are among them, unless the table is narrowed.
    """
    rows = [
        own
        for row in table.rows
        for own in (*[table.reference(row)] * (not table.narrowed), row)
        if not own.baseline
    ]
    found = (run for row in rows for run in runs_of_row(table, row, base, folds, seeds, factors))
    return list(dict.fromkeys(found))


def runs_of_row(
    table: Table,
    row: TableRow,
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    factors: Factors,
) -> list[Run]:
    """The runs of a row that has some; ``folds`` are the command's, ``factors`` of a tuned table.

    In a tuned table, those of a fold whose factor is not known are left out.
    """
    method = row.method(base)
    methods = {fold: method for fold in row.folds or folds}
    if table.tuned:
        known = ((fold, factors.get((method, fold))) for fold in methods)
        methods = {fold: with_rates(method, own) for fold, own in known if own is not None}
    return [
        Run(method=own, fold=fold, seed=seed) for seed in seeds for fold, own in methods.items()
    ]


def methods_to_tune(tables: Sequence[Table], base: MethodConfig) -> list[MethodConfig]:
    """The methods whose learning rates are chosen, without duplicates."""
    rows = [row for table in tables if table.tuned for row in table.rows if not row.baseline]
    return list(dict.fromkeys(row.method(base) for row in rows))


def left_out(table: Table, base: MethodConfig) -> dict[str, MethodConfig]:
    """Of a narrowed table, what its rows are compared with and what is not trained for it."""
    if not table.narrowed:
        return {}
    asked = {row.method(base) for row in table.rows if not row.baseline}
    references = {own.name: own.method(base) for own in map(table.reference, table.rows)}
    return {name: method for name, method in references.items() if method not in asked}


def choose_factors(
    tables: Sequence[Table],
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    records: Records,
) -> Factors:
    """``best_factors`` of the rows of tuned tables, and of those left out as far as at hand."""
    return try_factors(tables, base, folds, seeds, records).settled()


def try_factors(
    tables: Sequence[Table],
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    records: Records,
) -> Tried:
    """As ``choose_factors``, with a reason in the place of an error."""
    tried = tried_factors(methods_to_tune(tables, base), folds, seeds, records)
    compared = [own for t in tables if t.tuned for own in left_out(t, base).values()]
    beside = tried_factors(compared, folds, seeds, records)
    unknown = {method for method, _ in beside.lacking}
    at_hand = {own: factor for own, factor in beside.factors.items() if own[0] not in unknown}
    return Tried({**tried.factors, **at_hand}, tried.lacking)


def describe_runs(done: int, expected: int, diverged: int, damaged: int) -> str:
    """How many runs a figure is made from, and why not all.

    >>> describe_runs(5, 5, 0, 0), describe_runs(3, 5, 1, 1)
    ('5', '3 of 5, 1 diverged, 1 damaged')
    """
    notes = [str(done) if done == expected else f"{done} of {expected}"]
    notes += [f"{diverged} diverged"] * (diverged > 0) + [f"{damaged} damaged"] * (damaged > 0)
    return ", ".join(notes)


def mark_optimistic(name: str, selection: SelectionConfig) -> str:
    """The name of something with scores, with a note if the test videos selected the epoch.

    >>> mark_optimistic("a", SelectionConfig(rule="best_on_test"))
    'a (optimistic)'
    """
    return f"{name} (optimistic)" if selection.rule == OPTIMISTIC else name


def describe_selection(selection: SelectionConfig) -> str:
    """Which epoch is reported, and on which videos if not on those of the test."""
    rule = SELECTION[selection.rule]
    return f"{rule}, {HELD_OUT}" if selection.tested_on == "held_out" else rule


def describe_intervals(store: Store, seeds: int, folds: int) -> str:
    """What the intervals cover, for so many folds and seeds per fold."""
    known = [subject is not None for subject in store.subjects]
    unknown = "people, and of videos of unknown people" if any(known) else "videos"
    resampled = f"95 %, 2,000 bootstrap resamples of {'people' if all(known) else unknown}"
    if seeds > 1:
        return f"{resampled}, and of the seeds in every fold"
    if folds > 1:
        return (
            f"{resampled}, and of the folds, each of which has one network: how much another "
            "training would differ is known from few of them, so the intervals are wide"
        )
    return (
        f"{resampled}, of this trained network: with one seed and fold, nothing tells how much "
        "another training would differ"
    )


def describe_absent(store: Store, folds: Sequence[str]) -> str:
    """Which classes have no test video in which folds; empty if there are none."""
    notes = []
    for fold in folds:
        absent = set(range(len(store.classes))).difference(store.labels[_tested(store, fold)])
        if absent:
            notes.append(f"{', '.join(store.classes[k] for k in sorted(absent))} in fold {fold}")
    return "; ".join(notes)


def named_metrics(names: Sequence[str], classes: Sequence[str]) -> dict[str, Metric]:
    """UAR, WAR and the recalls of classes by their names; those of other classes are left out."""
    known: dict[str, Metric] = {name: partial(_recall, k) for k, name in enumerate(classes)}
    known |= {"UAR": uar, "WAR": war}
    return {name: known[name] for name in names if name in known}


def _recall(k: int, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return recalls(counts)[..., k]


def header_of(
    store: Store, base: MethodConfig, folds: int, seeds: int, tables: Sequence[Table] = ()
) -> dict[str, str]:
    """What a reader must know about the numbers of tables; ``folds`` are those of the command."""
    absent = describe_absent(store, [name for name, _, _ in store.folds])
    synthetic = " (rendered; not comparable with DFEW)" if store.name.startswith("faces") else ""
    resplit = " (folds drawn here, not its own; not comparable with published results)"
    about = store.title + synthetic + resplit * (store.plan.videos.resplit is not None)
    rows = [row for table in tables for row in table.rows if not row.baseline]
    methods = [row.method(base) for row in rows] or [base]
    notes = {}
    if absent:
        notes["UAR"] = f"over the classes that are tested; without a test video: {absent}"
    if any(table.tuned for table in tables):
        notes["tuning"] = TUNING.format(lr=base.optimiser.lr, lr_prompts=base.optimiser.lr_prompts)
    return {
        "data": f"{about}, {len(store.ids)} videos, {len(store.missing)} missing",
        "encoder": f"{store.identity.encoder.name}, frozen, {store.views} views per video",
        "protocol": f"{_folds(folds, tables)}, seeds per fold: {seeds}, epochs: "
        + _by_row(sorted({own.optimiser.epochs for own in methods})),
        "reported": "; or, by row, ".join(
            dict.fromkeys(describe_selection(own.selection) for own in methods)
        ),
        "spread": "mean ± sample standard deviation over the runs, in per cent",
        "intervals": f"{describe_intervals(store, seeds, folds)}; pooled are the videos of all "
        "runs together; differences are paired, not corrected for the number of comparisons",
        "store": store.digest,
    } | notes


def _by_row(values: Sequence[int]) -> str:
    """Sorted values of a setting.

    >>> _by_row([50]), _by_row([30, 90]), _by_row([10, 20, 40, 80])
    ('50', '30 or 90, by row', '10 to 80, by row')
    """
    if len(values) > 3:
        return f"{values[0]} to {values[-1]}, by row"
    return " or ".join(map(str, values)) + ", by row" * (len(values) > 1)


def _folds(folds: int, tables: Sequence[Table]) -> str:
    """How many there are, and how many of them a row uses where that differs."""
    own = {table.name: {len(row.folds) or folds for row in table.rows} for table in tables}
    notes = [
        f"of which a row of {name} uses {' or '.join(map(str, sorted(counts)))}"
        for name, counts in own.items()
        if counts != {folds}
    ]
    return ", ".join([f"{folds} folds", *notes])


@dataclass(frozen=True)
class _Said:
    """What the runs of a row, or a baseline in each fold, say of the videos that they score."""

    expected: int  # runs, or folds
    good: list[Record]
    lost: list[Record]  # diverged or damaged
    guesses: list[Guess]  # of each good record or fold
    networks: list[tuple[str, int]]  # (fold, seed) of each

    def war(self) -> float:
        """Over the videos of all runs."""
        return float(self.right().mean())

    def right(self) -> NDArray[np.bool_]:
        """Whether each video of each run was predicted right."""
        return np.concatenate([labels == predicted for _, labels, predicted in self.guesses])

    def rows(self) -> NDArray[np.int64]:
        """The videos of each run."""
        return np.concatenate([rows for rows, _, _ in self.guesses])

    def sample(self, store: Store) -> Sample:
        """Folds and seeds concatenated."""
        rows, labels, said = (np.concatenate(parts) for parts in zip(*self.guesses, strict=True))
        networks = [
            own
            for own, (tested, _, _) in zip(self.networks, self.guesses, strict=True)
            for _ in tested
        ]
        return Sample(labels, said, store.people(rows), networks)

    def scores(self, classes: int) -> ClassScores:
        """Of all runs together."""
        counts = [confusion(labels, said, classes) for _, labels, said in self.guesses]
        return ClassScores(np.sum(counts, 0) if counts else np.zeros((classes, classes)))

    @property
    def complete(self) -> bool:
        return len(self.guesses) == self.expected > 0

    def diverged(self) -> Counter[str]:
        """How many runs, by fold."""
        return Counter(own.run.fold for own in self.lost if own.status == "diverged")


def _said_by_baseline(name: str, records: Records, folds: Sequence[str]) -> _Said:
    from pipeline.evaluate.baselines import by_name
    from pipeline.train.regressions import Regressions

    store = records.store
    if name == REGRESSION:
        regressions = Regressions(records.root, store)
        found = [(fold, regressions.find(fold)) for fold in folds]
    else:
        found = [(fold, by_name(name, store, [fold])) for fold in folds]
    known = {fold: own for fold, own in found if own is not None}
    guesses = [(own.rows, store.labels[own.rows], own.predicted) for own in known.values()]
    return _Said(len(folds), [], [], guesses, [(fold, 0) for fold in known])


def _said(found: Sequence[Record | None], row: TableRow, store: Store) -> _Said:
    """Runs that were tested on no video of the row's subset are left out."""
    records = [record for record in found if record is not None]
    guesses = [(own, _predicted(own, row, store)) for own in records if own.ok]
    scored = [(own, guess) for own, guess in guesses if len(guess[0])]
    return _Said(
        expected=len(found) - len(guesses) + len(scored),
        good=[own for own, _ in scored],
        lost=[record for record in records if not record.ok],
        guesses=[guess for _, guess in scored],
        networks=[(own.run.fold, own.run.seed) for own, _ in scored],
    )


def _fill(
    row: TableRow,
    method: MethodConfig,
    table: Table,
    own: _Said,
    reference: _Said,
    found: Mapping[str, Found],
    store: Store,
) -> FilledRow:
    named = named_metrics(["UAR", "WAR", *table.recalls, *table.differences], store.classes)
    scores = _scores(own.guesses, named, len(store.classes))
    compared = {name: named[name] for name in table.differences if name in named}
    members_N = _members(store, row.subset)
    return FilledRow(
        row=row,
        uar=scores["UAR"],
        war=scores["WAR"],
        done=len(own.guesses),
        diverged=own.diverged().total(),
        damaged=len(own.lost) - own.diverged().total(),
        expected=own.expected,
        reported=reported_in(table.name).get(row.name, {}),
        recalls={name: scores[name] for name in table.recalls if name in named},
        differences=_differences(own, reference, compared, store),
        behind=None,
        mcnemar=_mcnemar(own, reference),
        pooled=_pooled(own, store),
        precisions={
            name: mean_precision(found[name], members_N) if name in found else None
            for name in (table.rankings if store.plan.videos.truth_sha256 else ())
        },
        selection=method.selection,
        by_rule={} if row.choice or row.subset else _by_rule(own.good),
        scores=own.scores(len(store.classes)),
        classes=store.classes,
        runs=[] if row.choice or row.subset else [record.folder.name for record in own.good],
        calibration={} if row.choice else _calibration(own, row, store),
        rates={},
    )


def _rates(
    method: MethodConfig, folds: Sequence[str], factors: Factors, said: _Said
) -> dict[str, Rates]:
    diverged, rates = said.diverged(), {}
    for fold in folds:
        factor = factors.get((method, fold))
        if factor is None:
            continue
        own = with_rates(method, factor).optimiser
        rates[fold] = Rates(factor, own.lr, own.lr_prompts, diverged[fold])
    return rates


def _pooled(own: _Said, store: Store) -> dict[str, Interval]:
    if not own.guesses:
        return {}
    return dict(zip(("UAR", "WAR"), bootstrap(own.sample(store), len(store.classes)), strict=True))


def _calibration(own: _Said, row: TableRow, store: Store) -> dict[str, float]:
    if not own.good:  # such as a baseline
        return {}
    members = _members(store, row.subset)
    logits = [run.logits()[members[store.rows_of(run.predictions()[0])]] for run in own.good]
    labels = np.concatenate([labels for _, labels, _ in own.guesses])
    said = np.concatenate(logits), labels
    return {"ECE": reliability(*said).ece, "AURC": risk_coverage(*said).aurc}


def _by_rule(good: Sequence[Record]) -> dict[str, Cell]:
    found = [by_rule(record) for record in good]
    return {
        rule: _cell([100 * own[rule][1] for own in found])
        for rule in RULES
        if found and all(rule in own for own in found)
    }


def _tested(store: Store, fold: str) -> NDArray[np.int64]:
    return scored_rows(store, fold, SelectionConfig(), 0)


def _members(store: Store, subset: str) -> NDArray[np.bool_]:
    """Which videos of the store are in a subset; all of them are in ""."""
    return store.subsets[subset] if subset else np.ones(len(store.ids), np.bool_)


def _predicted(record: Record, row: TableRow, store: Store) -> Guess:
    """What a run says of the test videos of a row, from all or the chosen frames."""
    ids, labels, predicted = record.predictions()
    rows = store.rows_of(ids)
    if row.choice is not None:
        predicted = _repooled(record, row.choice)
    scored = _members(store, row.subset)[rows]
    return rows[scored], labels[scored], predicted[scored]


def _repooled(record: Record, choice: FrameChoice) -> NDArray[np.int64]:
    frame_logits, (_, _, predicted) = record.frame_logits(), record.predictions()
    scores = influence_by(choice.by, frame_logits, record.attention(), predicted)
    return repool(frame_logits, scores, choice.influence, choice.frames)


def _scores(
    guesses: Sequence[Guess], metrics: Mapping[str, Metric], classes: int
) -> dict[str, Cell]:
    """Each metric over the runs in which it is defined, in per cent."""
    counts = [confusion(labels, predicted, classes) for _, labels, predicted in guesses]
    values = {
        name: [100 * float(metric(own)) for own in counts] for name, metric in metrics.items()
    }
    return {name: _cell([v for v in own if v == v]) for name, own in values.items()}


def _differences(
    own: _Said,
    reference: _Said,
    metrics: Mapping[str, Metric],
    store: Store,
) -> dict[str, Difference | None]:
    """Metrics minus those of the reference; None if runs are missing."""
    if not (own.complete and reference.complete):
        return dict.fromkeys(metrics)
    sample, baseline = own.sample(store), reference.sample(store)
    classes = len(store.classes)
    counts = [confusion(own.labels, own.predictions, classes) for own in (sample, baseline)]
    tested = {
        name: metric
        for name, metric in metrics.items()
        if not any(np.isnan(metric(own)) for own in counts)
    }
    found = bootstrap_difference(sample, baseline, classes, metrics=list(tested.values()))
    return dict.fromkeys(metrics) | dict(zip(tested, found, strict=True))


def _mcnemar(own: _Said, reference: _Said) -> float | None:
    """None unless both were asked about the same videos, each of them once."""
    if not (own.complete and reference.complete):
        return None
    rows, theirs = own.rows(), reference.rows()
    if not np.array_equal(rows, theirs) or len({*rows.tolist()}) < len(rows):
        return None
    return mcnemar(own.right(), reference.right())


def _cell(values: Sequence[float]) -> Cell:
    return Cell(
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )
