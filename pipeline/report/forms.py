"""Rows of the ablation tables -> Markdown to read, CSV and JSON to compute with, LaTeX to print."""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluate.statistics import Difference, Interval, holm
from pipeline.markdown import groups, item, paragraph, table
from pipeline.report.ablation import AT_EDGE, DIVERGED, FilledRow, describe_selection
from pipeline.report.reported import reported_systems
from pipeline.report.rules import OPTIMISTIC, RULES
from pipeline.report.tables import Table
from pipeline.report.written import write_reports
from pipeline.show import show

Test = tuple[str, str]  # a row's name, and the metric in which it is compared
Filled = Sequence[tuple[Table, Sequence[FilledRow]]]

FORMS = ("ablation.md", "ablation.csv", "ablation.tex", "ablation.json")
PROVENANCE = ("store", "runs", "code", "command")  # of the notes, those below the tables
LEVEL = 0.05
BEST, NEAR = "*", "≈"  # marks of the best row, and of those not clearly worse
RULES_HEAD = ("epoch of the same runs", "WAR, mean of the rows", "minus the last", "best row")
RANKINGS = {"logit": "AP of influence", "attention": "AP of attention"}
# What columns and marks mean.
_SUBSETS = (
    "Each row is scored on the test videos of one subset, its UAR over the classes that they show, "
    "and compared with the row that is named: a resample draws people for both rows together, and "
    "each row is scored on its own videos of them."
)
_PRECISIONS = (
    "AP is the average precision at finding the frames that show the label: by the paper's "
    "influence, and by the attention of the visual prompt."
)
_CALIBRATION = (
    "ECE is the error of calibration (15 bins), AURC the area under risk and coverage, both in per "
    "cent, the lower the better."
)
_RATES = (
    "Rates: by how much the base's learning rates were multiplied, chosen in each fold ({folds}). "
    f"{AT_EDGE}: at the edge of what was tried, so that a better one may lie beyond; {DIVERGED}: "
    "training diverged with it."
)
_NO_DIFFERENCES = "No differences: they need all runs of {names}, which are not at hand."
_IN_THE_PAPER = (
    "In the paper: UAR / WAR as reported in the paper for DFEW; nothing of that was measured here."
)


def write_tables(
    tables: Filled,
    header: Mapping[str, str],
    out: Path,
    pictures: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write FORMS to ``out``, and pictures; returns their paths.

    ``header`` says what the tables were made from: data set, encoder, protocol, digests, command.
    """
    forms = (_markdown, _csv, _latex, _json)
    contents = {name: form(tables, header) for name, form in zip(FORMS, forms, strict=True)}
    return write_reports({**contents, **(pictures or {})}, out)


@dataclass(frozen=True)
class _Column:
    head: str
    cells: Sequence[str]
    marks: Sequence[str] = ()  # of each cell, if any is marked

    def marked(self) -> list[str]:
        """The cells with their marks."""
        marks = self.marks or [""] * len(self.cells)
        return [f"{cell} {mark}".rstrip() for cell, mark in zip(self.cells, marks, strict=True)]


def _columns(own: Table, rows: Sequence[FilledRow]) -> list[_Column]:
    described = zip(*(line.row.cells for line in rows), strict=True)
    found = [
        _Column("", [line.name for line in rows]),
        *(_Column(head, cells) for head, cells in zip(own.columns, described, strict=True)),
        _Column("UAR", [str(line.uar) for line in rows], _best_uar(rows)),
        _Column("WAR", [str(line.war) for line in rows], _near_the_best(rows)),
        *(
            _Column(f"{name} pooled", [_pooled(line, name) for line in rows])
            for name in ("UAR", "WAR")
        ),
        *(
            _Column(f"recall of {k}", [str(line.recalls[k]) for line in rows])
            for k in rows[0].recalls
        ),
        *(
            _Column(RANKINGS[name], [_precision(line.precisions[name]) for line in rows])
            for name in rows[0].precisions
        ),
    ]
    if any(line.calibration for line in rows):
        found += [
            _Column(name, [_calibration(line, name) for line in rows]) for name in ("ECE", "AURC")
        ]
    if not _runs_of_every_row(rows):
        found.append(_Column("n", [line.n for line in rows]))
    if any(line.rates for line in rows):
        found.append(_Column("rates", [_rates(line) for line in rows]))
    if own.has_references:
        found.append(_Column("compared with", [own.reference(line.row).name for line in rows]))
    for name in rows[0].differences:
        head = f"{name} difference" if own.has_references else f"{name} − {own.main.name}"
        found.append(_Column(head, [_difference(line.differences[name]) for line in rows]))
    if any(line.reported for line in rows):
        found.append(_Column("in the paper", [_reported(line) for line in rows]))
    return found


def _pooled(line: FilledRow, name: str) -> str:
    return line.pooled[name].text(".1f", 100) if line.pooled else "–"


def _calibration(line: FilledRow, name: str) -> str:
    return f"{100 * line.calibration[name]:.1f}" if line.calibration else "–"


def _rates(line: FilledRow) -> str:
    return ", ".join(map(str, line.rates.values())) or "–"


def _precision(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.3f}"


def _difference(found: Interval | None) -> str:
    return "–" if found is None else found.text("+.2f", 100)


def _reported(line: FilledRow) -> str:
    figures = (f"{line.reported[metric]:.2f}" for metric in ("uar", "war") if line.reported)
    return " / ".join(figures) or "–"


def _runs_of_every_row(rows: Sequence[FilledRow]) -> int:
    """How many runs every row is made from; 0 if they differ, or if any is missing."""
    return rows[0].done if all(own.complete and own.done == rows[0].done for own in rows) else 0


def _best_uar(rows: Sequence[FilledRow]) -> list[str]:
    best = max((line.uar.mean or 0 for line in rows if line.behind is not None), default=None)
    return [BEST if line.behind is not None and line.uar.mean == best else "" for line in rows]


def _near_the_best(rows: Sequence[FilledRow]) -> list[str]:
    """The marks of rows by their distance to the one of highest WAR, with all of them counted."""
    worse = {name for name, _ in _significant(_behind(rows))}
    return [
        "" if own is None or line.row.name in worse else NEAR if own.error else BEST
        for line, own in ((line, line.behind) for line in rows)
    ]


def _behind(rows: Sequence[FilledRow]) -> dict[Test, Difference]:
    return {
        (line.row.name, "WAR"): line.behind
        for line in rows
        if line.behind is not None and line.behind.error
    }


def tests_of(rows: Sequence[FilledRow]) -> dict[Test, Difference]:
    """The differences of a table but those of a row to itself."""
    return {
        (line.row.name, metric): own
        for line in rows
        for metric, own in line.differences.items()
        if own is not None and own.error
    }


def _significant(tests: Mapping[Test, Difference]) -> list[Test]:
    """The names of the tests that reject at 5 %, all of them counted."""
    return [name for name, p in corrected(tests).items() if p < LEVEL]


def corrected(tests: Mapping[Test, Difference]) -> dict[Test, float]:
    """The p-value of each test, with all of them counted (Holm)."""
    return dict(zip(tests, holm([own.p for own in tests.values()]), strict=True))


def _markdown(tables: Filled, header: Mapping[str, str]) -> str:
    blocks = [
        "# Ablation tables",
        _items(header, [name for name in header if name not in PROVENANCE]),
    ]
    for own, rows in tables:
        columns = _columns(own, rows)
        cells = [*zip(*(column.marked() for column in columns), strict=True)]
        blocks += [f"## {own.title}", paragraph(_legend(own, rows))]
        blocks += ["\n".join(table([column.head for column in columns], cells))]
        blocks += ["\n".join(map(item, reading(rows))), "\n".join(_selection_rules(rows))]
        blocks += [reported_systems(own)] if own.counts else []
    blocks.append(_items(header, [name for name in PROVENANCE if name in header]))
    return "\n\n".join(filter(None, blocks)) + "\n"


def _items(header: Mapping[str, str], names: Sequence[str]) -> str:
    return "\n".join(item(f"{name}: {header[name]}") for name in names)


def _legend(own: Table, rows: Sequence[FilledRow]) -> str:
    runs = _runs_of_every_row(rows)
    notes = [_SUBSETS] * own.by_subset + [_PRECISIONS] * bool(rows[0].precisions)
    notes += [_CALIBRATION] * any(line.calibration for line in rows)
    notes += [f"Runs in every row: {runs}."] * bool(runs)
    if own.narrowed and not any(any(line.differences.values()) for line in rows):
        notes.append(
            _NO_DIFFERENCES.format(
                names=" and ".join(sorted({own.reference(line.row).name for line in rows}))
            )
        )
    if folds := next((", ".join(line.rates) for line in rows if line.rates), ""):
        notes.append(_RATES.format(folds=folds))
    notes += [_IN_THE_PAPER] * any(line.reported for line in rows)
    return " ".join(notes)


def reading(rows: Sequence[FilledRow]) -> list[str]:
    """What the differences of a table allow to say, with all of its tests counted."""
    tests, notes = tests_of(rows), []
    if tests:
        smallest = 100 * statistics.median(own.detectable for own in tests.values())
        clear = [f"{row} ({metric})" for row, metric in _significant(tests)]
        notes += [
            f"Clear of zero at 5 % with all {len(tests)} tests of this table counted (Holm): "
            + _listed(clear),
            "Smallest true difference that one test finds in about 80 % of all cases, median over "
            f"the tests: {smallest:.1f}",
        ]
    marks = [*zip(_near_the_best(rows), (line.row.name for line in rows), strict=True)]
    best, near = ([name for mark, name in marks if mark == own] for own in (BEST, NEAR))
    if best and _behind(rows):
        notes.append(
            f"Not clearly worse in WAR ({NEAR}) than {' and '.join(best)} ({BEST}, Holm): "
            + _listed(near)
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _selection_rules(rows: Sequence[FilledRow]) -> list[str]:
    """What the same runs would show by other rules of selection, over the rows that tell it."""
    cells = selection_rules(rows)
    return table(RULES_HEAD, cells) if cells else []


def selection_rules(rows: Sequence[FilledRow]) -> list[list[str]]:
    """A line of RULES_HEAD for each rule; none if no complete row tells what its epochs scored."""
    shown = [line for line in rows if line.complete and line.by_rule]
    if not shown:
        return []
    cells = []
    for rule in RULES:
        wars = {
            line.row.name: line.by_rule[rule].mean or 0 for line in shown if rule in line.by_rule
        }
        if len(wars) < len(shown):
            cells.append([_rule(rule), "–", "–", "–"])
            continue
        mean = statistics.fmean(wars.values())
        last = statistics.fmean(line.by_rule["last"].mean or 0 for line in shown)
        cells.append(
            [_rule(rule), f"{mean:.2f}", f"{mean - last:+.2f}", max(wars, key=wars.__getitem__)]
        )
    return cells


def _rule(rule: str) -> str:
    return f"{rule} (optimistic)" if rule == OPTIMISTIC else rule


def _records(
    own: Table, rows: Sequence[FilledRow], header: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Each row as a value per column; scores in per cent."""
    p_values, behind = corrected(tests_of(rows)), corrected(_behind(rows))
    return [_record(own, line, p_values, behind, header) for line in rows]


def _record(
    own: Table,
    line: FilledRow,
    corrected: Mapping[Test, float],
    behind: Mapping[Test, float],
    header: Mapping[str, str],
) -> dict[str, Any]:
    record: dict[str, Any] = {"table": own.name, "row": show(line.row.name)}
    record |= dict(zip(own.columns, map(show, line.row.cells), strict=True))
    cells = {"uar": line.uar, "war": line.war}
    cells |= {f"recall_{name}": cell for name, cell in line.recalls.items()}
    for name, cell in cells.items():
        record |= {f"{name}_mean": cell.mean, f"{name}_std": cell.deviation}
    for name, pooled in line.pooled.items():
        record |= _bounds(f"{name.lower()}_pooled", pooled, 100)
    record |= {name.lower(): 100 * own for name, own in line.calibration.items()}
    for name, found in line.precisions.items():
        record |= _bounds(f"ap_{name}", found, 1)
    if own.has_references:
        record["compared_with"] = show(own.reference(line.row).name)
    for name, difference in line.differences.items():
        metric = name.lower() if name in ("UAR", "WAR") else f"recall_{name}"
        record |= _bounds(f"{metric}_difference", difference, 100)
        if difference is not None:
            record[f"{metric}_difference_p"] = difference.p
            record[f"{metric}_difference_p_holm"] = corrected.get((line.row.name, name))
    record |= {} if line.mcnemar is None else {"war_mcnemar_p": line.mcnemar}
    record |= _bounds("war_behind_best", line.behind, 100)
    if line.behind is not None and line.behind.error:
        record["war_behind_best_p"] = line.behind.p
        record["war_behind_best_p_holm"] = behind[line.row.name, "WAR"]
    record |= {"n": line.done, "diverged": line.diverged}
    record |= {"damaged": line.damaged, "expected": line.expected}
    for fold, rates in line.rates.items():
        record |= {f"{name}_fold_{show(fold)}": own for name, own in asdict(rates).items()}
        record |= {f"at_edge_fold_{show(fold)}": rates.at_edge}
    record |= {"reported": describe_selection(line.selection)}
    record |= {f"war_by_{rule}": cell.mean for rule, cell in line.by_rule.items()}
    record |= {f"{metric}_reported_dfew": value for metric, value in line.reported.items()}
    return record | {name: header[name] for name in ("store", "code") if name in header}


def _bounds(name: str, found: Interval | None, scale: float) -> dict[str, float]:
    """The columns of an interval; none if there is none."""
    if found is None:
        return {}
    bounds = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {column: scale * value for column, value in bounds.items()}


def _csv(tables: Filled, header: Mapping[str, str]) -> str:
    import pandas as pd

    records = [record for own, rows in tables for record in _records(own, rows, header)]
    text: str = pd.DataFrame(records).to_csv(index=False)
    return text


def _json(tables: Filled, header: Mapping[str, str]) -> str:
    content = {
        "about": dict(header),
        "tables": [
            {
                "name": own.name,
                "title": own.title,
                "rows": [
                    record
                    | {
                        "runs": [*line.runs],
                        "classes": _classes(line),
                        "confusion": line.scores.counts_KK.tolist(),
                    }
                    for record, line in zip(_records(own, rows, header), rows, strict=True)
                ],
            }
            for own, rows in tables
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _classes(line: FilledRow) -> dict[str, dict[str, float | None]]:
    """Scores of each class over the videos of all runs, in per cent; None for what is undefined."""
    own = line.scores
    shares = {"recall": own.recall_K, "precision": own.precision_K, "f1": own.f1_K}
    return {
        name: {"videos": int(own.videos_K[k])}
        | {which: _defined(100 * float(share_K[k])) for which, share_K in shares.items()}
        for k, name in enumerate(line.classes)
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


# Points of LaTeX: the text of article at 10 pt, a digit in \footnotesize, and between two columns.
_TEXT, _DIGIT, _GAP = 345.0, 4.25, 6.0
_LATEX = r"""\begin{{table}}
\centering
\caption{{{caption}}}
\label{{tab:{label}}}
\footnotesize
\setlength{{\tabcolsep}}{{3pt}}
\begin{{tabular}}{{@{{}}{kinds}@{{}}}}
\toprule
{head} \\
\midrule
{rows} \\
\bottomrule
\end{{tabular}}
\end{{table}}
"""


def _latex(tables: Filled, header: Mapping[str, str]) -> str:
    lines = [r"% Needs \usepackage{booktabs}; no table is wider than the text of article at 10 pt."]
    lines += [f"% {name}: {show(text)}" for name, text in header.items()]
    return "\n".join([*lines, *(_floats(own, rows, header) for own, rows in tables)])


def _floats(own: Table, rows: Sequence[FilledRow], header: Mapping[str, str]) -> str:
    """A table, or several with the first column in each if it is too wide for one."""
    columns = _columns(own, rows)
    letters = [max(map(len, (column.head, *column.marked()))) for column in columns]
    parts = groups([_DIGIT * own + _GAP for own in letters], _TEXT + _GAP)
    caption = _caption(own, rows, header)
    floats = []
    for number, chosen in enumerate(parts, 1):
        lines = zip(*(_tex_cells(columns[n]) for n in chosen), strict=True)
        part = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
        floats.append(
            _LATEX.format(
                caption=_tex(f"{own.title}{part}. {caption}"),
                label=own.name + (f"-{number}" if number > 1 else ""),
                kinds="l" * len(chosen),
                head=" & ".join(_tex(columns[n].head) for n in chosen),
                rows=" \\\\\n".join(" & ".join(line) for line in lines),
            )
        )
    return "\n".join(floats)


def _caption(own: Table, rows: Sequence[FilledRow], header: Mapping[str, str]) -> str:
    marks = f"Bold: the best; {NEAR}: not clearly worse in WAR (Holm)." if _behind(rows) else ""
    spread = (
        "Mean ± standard deviation over the runs; brackets: 95 % intervals, of the videos of all "
    )
    spread += "runs together."
    chosen = f"Of {header['reported']}." if "reported" in header else ""
    notes = (f"{header['data']}.", chosen, spread, marks, _legend(own, rows))
    return " ".join(filter(None, notes))


def _tex_cells(column: _Column) -> list[str]:
    return [
        _bold(cell.removesuffix(f" {BEST}")) if mark == BEST else _tex(cell)
        for cell, mark in zip(
            column.marked(), column.marks or [""] * len(column.cells), strict=True
        )
    ]


def _bold(cell: str) -> str:
    """The first word of a cell, a number, in bold."""
    number, space, rest = cell.partition(" ")
    return rf"\textbf{{{_tex(number)}}}{space}{_tex(rest)}"


# What LaTeX would obey instead of printing, and what not every font has.
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "≈": r"$\approx$",
    "–": "--",
    "−": "$-$",
    "°": r"$^\circ$",
    "[": "{[}",  # \\ would take it for an argument
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _tex(text: str) -> str:
    """Text as LaTeX prints it, a hyphen before a number as a minus."""
    signed = re.sub(r"(?<![\w.)-])-(?=\d)", "−", show(text))
    return "".join(_TEX.get(letter, letter) for letter in signed)
