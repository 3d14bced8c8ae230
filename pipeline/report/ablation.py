"""Records of runs -> the ablation tables: Markdown to read, CSV to compute with, LaTeX to print.

A table is a pure function of the result files. Missing and diverged runs are shown as such.
"""

import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.store import Store
from pipeline.config import MethodConfig, SelectionConfig, runs_of
from pipeline.evaluate.influence import influence_by, repool
from pipeline.evaluate.metrics import confusion, recalls, uar, war
from pipeline.evaluate.statistics import Interval, Metric, bootstrap_difference
from pipeline.report.tables import FrameChoice, Table, TableRow
from pipeline.report.written import write_reports
from pipeline.show import markdown_line, show
from pipeline.train.record import Record
from pipeline.train.records import Records
from pipeline.train.split import scored_rows

Guess = tuple[list[str], NDArray[np.int64], NDArray[np.int64]]  # ids, labels, predicted classes

REPORTED = "as reported in the paper for DFEW"
SELECTION = {
    "last": "the last epoch",
    "best_on_val": "the best epoch on videos held out of the training set",
    "best_on_test": "the best epoch on the test videos, which is optimistic",
}
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
    differences: Mapping[str, Interval | None]  # to the table's main row; None if runs are missing

    @property
    def n(self) -> str:
        """Number of runs, with a note if some are missing."""
        return describe_runs(self.done, self.expected, self.diverged, self.damaged)


def collect(
    table: Table,
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    records: Records,
) -> list[FilledRow]:
    """Read the records of a table's runs; ``base`` is the method that its rows change."""
    store = records.store
    main_runs = runs_of(table.main.method(base), folds, seeds)
    found = [records.find(run) for run in main_runs]
    main = [record.predictions()[2] for record in found if record is not None and record.ok]
    named = _metrics(["UAR", "WAR", *table.recalls, *table.differences], store.classes)
    reported = tomllib.loads(files("pipeline.report").joinpath("reported.toml").read_text())
    rows = []
    for row in table.rows:
        runs = runs_of(row.method(base), folds, seeds)
        found = [records.find(run) for run in runs]
        good = [record for record in found if record is not None and record.ok]
        statuses = [record.status for record in found if record is not None]
        guesses = [_predicted(record, row.choice) for record in good]
        scores = _scores(guesses, named, len(store.classes))
        compared = {name: named[name] for name in table.differences if name in named}
        complete = len(good) == len(runs) == len(main)
        rows.append(
            FilledRow(
                row=row,
                uar=scores["UAR"],
                war=scores["WAR"],
                done=len(good),
                diverged=statuses.count("diverged"),
                damaged=statuses.count("damaged"),
                expected=len(runs),
                reported=reported.get(table.name, {}).get(row.name, {}),
                recalls={name: scores[name] for name in table.recalls if name in named},
                differences=_differences(guesses, main, compared, store)
                if complete
                else dict.fromkeys(compared),
            )
        )
    return rows


def describe_runs(done: int, expected: int, diverged: int, damaged: int) -> str:
    """How many runs a figure is made from, and why not all.

    >>> describe_runs(5, 5, 0, 0), describe_runs(3, 5, 1, 1)
    ('5', '3 of 5, 1 diverged, 1 damaged')
    """
    notes = [str(done) if done == expected else f"{done} of {expected}"]
    notes += [f"{diverged} diverged"] * (diverged > 0) + [f"{damaged} damaged"] * (damaged > 0)
    return ", ".join(notes)


def describe_selection(selection: SelectionConfig) -> str:
    """Which epoch is reported, and on which videos if not on those of the test."""
    rule = SELECTION[selection.rule]
    return f"{rule}, {HELD_OUT}" if selection.tested_on == "held_out" else rule


def describe_absent(store: Store, folds: Sequence[str]) -> str:
    """Which classes have no test video in which folds; empty if there are none."""
    notes = []
    for fold in folds:
        absent = set(range(len(store.classes))).difference(store.labels[_tested(store, fold)])
        if absent:
            notes.append(f"{', '.join(store.classes[k] for k in sorted(absent))} in fold {fold}")
    return "; ".join(notes)


def write_tables(
    tables: Sequence[tuple[Table, list[FilledRow]]], header: Mapping[str, str], out: Path
) -> list[Path]:
    """Write ``ablation.md``, ``.csv`` and ``.tex`` to ``out``; returns their paths.

    ``header`` says what the tables were made from: data set, encoder, protocol, digests.
    """
    contents = {
        "ablation.md": _markdown(tables, header),
        "ablation.csv": _frame(tables).to_csv(index=False),
        "ablation.tex": _latex(tables, header),
    }
    return write_reports(contents, out)


def header_of(store: Store, base: MethodConfig, folds: int, seeds: int) -> dict[str, str]:
    """What a reader must know about a table's numbers."""
    absent = describe_absent(store, [name for name, _, _ in store.folds])
    synthetic = " (rendered; not comparable with DFEW)" if store.name.startswith("faces") else ""
    optimiser = base.optimiser
    notes = {"UAR": f"over the classes that are tested; without a test video: {absent}"}
    return {
        "data": f"{store.name}{synthetic}, {len(store.ids)} videos, {len(store.missing)} missing",
        "encoder": f"{store.identity.encoder.name}, frozen, {store.views} views per video",
        "protocol": f"{folds} folds, seeds per fold: {seeds}, epochs: {optimiser.epochs}",
        "reported": describe_selection(base.selection),
        "spread": "mean ± sample standard deviation over the runs, in per cent",
        "intervals": "95 %, 2,000 paired bootstrap resamples of people (of videos where people are "
        "not known), not corrected for multiple comparisons",
        "store": store.digest,
    } | (notes if absent else {})


def _tested(store: Store, fold: str) -> NDArray[np.int64]:
    return scored_rows(store, fold, SelectionConfig(), 0)


def _predicted(record: Record, choice: FrameChoice | None) -> Guess:
    """What a run says of its test videos, from all or the chosen frames."""
    ids, labels, predicted = record.predictions()
    if choice is not None:
        frame_logits = record.frame_logits()
        scores = influence_by(choice.by, frame_logits, record.attention(), predicted)
        predicted = repool(frame_logits, scores, choice.influence, choice.frames)
    return ids, labels, predicted


def _metrics(names: Sequence[str], classes: Sequence[str]) -> dict[str, Metric]:
    """UAR, WAR and the recalls of classes by their names; those of other classes are left out."""
    known: dict[str, Metric] = {name: partial(_recall, k) for k, name in enumerate(classes)}
    known |= {"UAR": uar, "WAR": war}
    return {name: known[name] for name in names if name in known}


def _recall(k: int, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return recalls(counts)[..., k]


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
    guesses: Sequence[Guess],
    main: Sequence[NDArray[np.int64]],
    metrics: Mapping[str, Metric],
    store: Store,
) -> dict[str, Interval | None]:
    """Metrics minus the main setting's on the same videos, folds and seeds concatenated."""
    ids = [video_id for own, _, _ in guesses for video_id in own]
    labels = np.concatenate([own for _, own, _ in guesses])
    predicted = np.concatenate([own for _, _, own in guesses])
    baseline = np.concatenate(main)
    groups = store.people(store.rows_of(ids))
    counts = confusion(labels, predicted, len(store.classes))
    tested = {name: metric for name, metric in metrics.items() if not np.isnan(metric(counts))}
    found = bootstrap_difference(
        labels, predicted, baseline, len(store.classes), groups, metrics=list(tested.values())
    )
    return dict.fromkeys(metrics) | dict(zip(tested, found, strict=True))


def _show(difference: Interval | None) -> str:
    return "–" if difference is None else difference.text("+.2f", 100)


def _cell(values: Sequence[float]) -> Cell:
    return Cell(
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def _markdown(tables: Sequence[tuple[Table, list[FilledRow]]], header: Mapping[str, str]) -> str:
    lines = ["# Ablation tables", "", *[f"- {name}: {show(text)}" for name, text in header.items()]]
    for table, rows in tables:
        columns = ["", *table.columns, "UAR", "WAR", *_recalled(rows), "n"]
        columns += [f"{name} − {table.main.name} [95 %]" for name in rows[0].differences]
        if in_paper := any(line.reported for line in rows):
            columns += [f"{metric}, {REPORTED}" for metric in ("UAR", "WAR")]
        lines += [
            "",
            f"## {table.title}",
            "",
            markdown_line(columns),
            markdown_line(["---"] * len(columns)),
        ]
        for line in rows:
            ours = [line.row.name, *line.row.cells, str(line.uar), str(line.war)]
            ours += [*map(str, line.recalls.values()), line.n]
            ours += map(_show, line.differences.values())
            theirs = [_reported(line, metric) for metric in ("uar", "war") if in_paper]
            lines.append(markdown_line([*ours, *theirs]))
    return "\n".join(lines) + "\n"


def _recalled(rows: Sequence[FilledRow]) -> list[str]:
    return [f"recall of {name}" for name in rows[0].recalls]


def _reported(line: FilledRow, metric: str) -> str:
    return f"{line.reported[metric]:.2f}" if line.reported else "–"


def _frame(tables: Sequence[tuple[Table, list[FilledRow]]]) -> Any:
    import pandas as pd

    records = []
    for table, rows in tables:
        for line in rows:
            record: dict[str, Any] = {"table": table.name, "row": line.row.name}
            record |= dict(zip(table.columns, map(show, line.row.cells), strict=True))
            for metric in ("uar", "war"):
                cell: Cell = getattr(line, metric)
                record[f"{metric}_mean"], record[f"{metric}_std"] = cell.mean, cell.deviation
            for name, cell in line.recalls.items():
                record[f"recall_{name}_mean"] = cell.mean
                record[f"recall_{name}_std"] = cell.deviation
            for name, found in line.differences.items():
                if found is not None:
                    metric = name.lower() if name in ("UAR", "WAR") else f"recall_{name}"
                    record[f"{metric}_difference"] = 100 * found.value
                    record[f"{metric}_difference_low"] = 100 * found.low
                    record[f"{metric}_difference_high"] = 100 * found.high
            record |= {"n": line.done, "diverged": line.diverged}
            record |= {"damaged": line.damaged, "expected": line.expected}
            record |= {f"{metric}_reported_dfew": value for metric, value in line.reported.items()}
            records.append(record)
    return pd.DataFrame(records)


def _latex(tables: Sequence[tuple[Table, list[FilledRow]]], header: Mapping[str, str]) -> str:
    import pandas as pd

    parts = [f"% {name}: {show(text)}" for name, text in header.items()]
    for table, rows in tables:
        columns = ["", *map(_tex, table.columns), "UAR", "WAR", *_recalled(rows), "$n$"]
        in_paper = any(line.reported for line in rows)
        # Beside the paper's figures, the page has no room for differences.
        compared = {} if in_paper else rows[0].differences
        columns += [_tex(f"{name} − {table.main.name}") for name in compared]
        caption = _tex(f"{table.title}. {header['data']}.")
        if in_paper:
            columns += ["UAR (reported)", "WAR (reported)"]
            reported = f"The last two columns are {REPORTED}."
            caption = _tex(f"{table.title}. {reported} {header['data']}.")
        cells = [
            [
                *map(_tex, (line.row.name, *line.row.cells, str(line.uar), str(line.war))),
                *map(_tex, (*map(str, line.recalls.values()), line.n)),
                *(_tex(_show(line.differences[name])) for name in compared),
                *(_tex(_reported(line, metric)) for metric in ("uar", "war") if in_paper),
            ]
            for line in rows
        ]
        parts.append(
            pd.DataFrame(cells, columns=columns)
            .style.hide(axis="index")
            .to_latex(
                hrules=True, caption=caption, label=f"tab:{table.name}", position_float="centering"
            )
        )
    return "\n".join(parts)


# What LaTeX would obey instead of printing, and what not every font has.
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in show(text))
