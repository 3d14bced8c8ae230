"""What a report shows -> one HTML page, which needs no other file and no network.

The page is made from ``page_files/``. The same records give the same bytes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from cache.store import Store
from pipeline.evaluate.statistics import Interval
from pipeline.report.ablation import Cell as Score
from pipeline.report.ablation import FilledRow
from pipeline.report.answer import Verdict, answer, missing
from pipeline.report.contents import Leading, Reported, true_intensity
from pipeline.report.figures import Picture, scaled
from pipeline.report.forms import (
    BEST,
    NEAR,
    RANKINGS,
    RULES_HEAD,
    corrected,
    reading,
    selection_rules,
    tests_of,
)
from pipeline.report.rules import OPTIMISTIC
from pipeline.show import show

PAGE = "index.html"
VIDEOS_MAX = 20_000  # that the browser lists
LEVELS = 35  # of a frame's influence, which one digit in base 36 says
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class About:
    """Where the numbers of a page come from."""

    header: Mapping[str, str]  # as in tables
    commands: Mapping[str, str]  # of every table by its name, and "report" of the page
    notes: Sequence[
        str
    ]  # what a reader has to know first: runs that do not count, frames that lack


@dataclass(frozen=True)
class Bar:
    """An interval on an axis from 0 to 100."""

    zero: float
    low: float
    width: float
    value: float


@dataclass(frozen=True)
class Cell:
    """A cell of a table, and what it is sorted by."""

    text: str
    order: float | str = ""
    bar: Bar | None = None
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table as it is shown; the first cell of a row is its name."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    command: str = ""


@dataclass(frozen=True)
class Section:
    """A table, and what is said below it."""

    grid: Grid
    reading: Sequence[str]  # what its differences allow to say
    rules: Grid  # what other rules of selection would report
    tests: Grid  # every difference with its p-values


def render(
    tables: Sequence[Reported],
    leading: Leading | None,
    pictures: Sequence[Picture],
    strips: Mapping[int, bytes],
    store: Store,
    about: About,
) -> str:
    """The page; ``strips`` has the frames of some rows of the store side by side, as JPEGs."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        title=f"Report: {store.title}",
        sections=[_section(own, about.commands[own.table.name]) for own in tables],
        answers=[answer(own.table, own.rows) for own in tables],
        missing=[
            (own, len(missing(own.rows)), _runs_lacking(own)) for own in tables if own.lacking
        ],
        leading=leading,
        pictures=[(own, _source(own)) for own in pictures],
        about=about,
        optimistic=_all_optimistic(tables),
        runs=_runs(tables),
        videos=None if leading is None else _videos(leading, store),
        strips={row: _data_url("jpeg", data) for row, data in sorted(strips.items())},
        versions=leading.records[0].metadata.get("versions", {}) if leading else {},
        style=_file("page.css"),
        script=script,
        script_digest=digest,
        videos_max=VIDEOS_MAX,
    )


def _all_optimistic(tables: Sequence[Reported]) -> bool:
    rules = {line.selection.rule for own in tables for line in own.rows if not line.row.baseline}
    return rules == {OPTIMISTIC}


def _template() -> Any:
    environment = Environment(
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _json
    return environment.from_string(_file("page.html"))


def _file(name: str) -> str:
    return files("pipeline.report").joinpath("page_files", name).read_text(encoding="utf-8")


def _harmless(value: object) -> object:
    """Names from outside, without letters that would reorder or hide what is beside them."""
    return value if hasattr(value, "__html__") else show(value)


def _json(value: object) -> str:
    """JSON that ends no element, whatever is in it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _source(picture: Picture) -> str:
    """Photographs are smaller as PNG, everything else as SVG."""
    if picture.shows_frames:
        return _data_url("png", picture.png)
    return _data_url("svg+xml", picture.svg)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _section(own: Reported, command: str) -> Section:
    rules = [[_sorted(cell) for cell in line] for line in selection_rules(own.rows)]
    return Section(
        _grid(own, command),
        reading(own.rows),
        Grid(f"rules-{own.table.name}", "By rule of selection", list(RULES_HEAD), rules),
        _tests(own),
    )


def _runs_lacking(own: Reported) -> list[tuple[str, str, str]]:
    """(row, how many runs it has, which it lacks) of what a table lacks, also to compare with."""
    counts = {line.row.name: f"{line.n} runs" for line in own.rows}
    return [
        (name, counts.get(name, "compared with"), "; ".join(runs))
        for name, runs in own.lacking.items()
    ]


def _grid(own: Reported, command: str) -> Grid:
    table, rows, verdict = own.table, own.rows, own.verdict
    columns = ["row", *table.columns, "UAR %", "WAR %"]
    columns += ["beside the best"] * (verdict is not None)
    columns += [f"recall of {name} %" for name in rows[0].recalls]
    columns += [RANKINGS[name] for name in rows[0].precisions]
    columns += ["compared with"] * table.has_references
    columns += [f"{name} − {_other(own)} [95 %]" for name in rows[0].differences]
    pooled = {name: [line.pooled[name] for line in rows if line.pooled] for name in ("UAR", "WAR")}
    columns += [f"{name} pooled [95 %]" for name in pooled]
    columns += ["ECE %"] * bool(own.ece)
    columns += ["runs"]
    in_paper = any(line.reported for line in rows)
    columns += ["UAR, as reported for DFEW", "WAR, as reported for DFEW"] * in_paper
    lines = [
        [
            Cell(line.name, line.row.name),
            *(Cell(cell, cell) for cell in line.row.cells),
            *map(_score, (line.uar, line.war)),
            *([_standing(line, verdict)] if verdict else []),
            *map(_score, line.recalls.values()),
            *(_interval(each, [], 1, ".3f") for each in line.precisions.values()),
            *[Cell(table.reference(line.row).name)] * table.has_references,
            *(_difference(line, name, rows) for name in line.differences),
            *(
                _interval(line.pooled.get(name), every, 100, ".1f")
                for name, every in pooled.items()
            ),
            *[_per_cent(own.ece.get(line.row.name))] * bool(own.ece),
            Cell(line.n, line.done, mark="lacking" if line.done < line.expected else ""),
            *(_reported(line, metric) for metric in ("uar", "war") if in_paper),
        ]
        for line in rows
    ]
    return Grid(table.name, table.title, columns, lines, command)


def _other(own: Reported) -> str:
    name = own.table.main.name
    if own.table.has_references:
        return "the compared"
    return f"row {name}" if name.isdigit() else name


def _tests(own: Reported) -> Grid:
    """Every difference of a table, what tests say of it, and what they could find."""
    tests, rows = tests_of(own.rows), {line.row.name: line for line in own.rows}
    p_values = corrected(tests)
    columns = ["row", "compared with", "metric", "difference [95 %]", "p", "p, all counted (Holm)"]
    columns += ["p, exact (McNemar)", "finds"]
    lines = [
        [
            Cell(rows[name].name, name),
            Cell(reference := own.table.reference(rows[name].row).name, reference),
            Cell(metric, metric),
            _interval(found, [*tests.values()], 100, "+.2f"),
            _p(found.p),
            _p(p_values[name, metric]),
            _p(rows[name].mcnemar if metric == "WAR" else None),
            _per_cent(found.detectable),
        ]
        for (name, metric), found in tests.items()
    ]
    return Grid(f"tests-{own.table.name}", "Every difference with its tests", columns, lines)


def _p(p: float | None) -> Cell:
    if p is None:
        return Cell("–")
    return Cell(f"{p:.3f}" if p >= 0.001 else "<.001", p)


def _per_cent(share: float | None) -> Cell:
    return Cell("–") if share is None else Cell(f"{100 * share:.1f}", 100 * share)


def _sorted(text: str) -> Cell:
    """A cell sorted by its number, or by its text; "–" comes last."""
    return Cell(text.replace("-", "−") if text[0] == "-" else text, "" if text == "–" else text)


def _score(score: Score) -> Cell:
    return Cell(str(score).replace("± ", "±\u00a0"), "" if score.mean is None else score.mean)


def _reported(line: FilledRow, metric: str) -> Cell:
    value = line.reported.get(metric)
    return Cell("–") if value is None else Cell(f"{value:.2f}", value)


def _difference(line: FilledRow, metric: str, rows: Sequence[FilledRow]) -> Cell:
    every = [own for row in rows if (own := row.differences[metric]) is not None]
    return _interval(line.differences[metric], every, 100, "+.2f")


def _interval(own: Interval | None, every: Sequence[Interval], scale: float, form: str) -> Cell:
    if own is None:
        return Cell("–")
    return Cell(
        own.text(form, scale).replace("-", "−"), own.value, _bar(own, every) if every else None
    )


def _bar(own: Interval, every: Sequence[Interval]) -> Bar:
    """On the axis that has room for all of them, and for zero."""
    low = min(0, *(each.low for each in every))
    width = max(0, *(each.high for each in every)) - low or 1
    zero, start, end, value = (
        round(100 * (place - low) / width, 1) for place in (0, own.low, own.high, own.value)
    )
    return Bar(zero, start, round(end - start, 1), value)


def _standing(line: FilledRow, verdict: Verdict) -> Cell:
    if line is verdict.leading:
        return Cell(f"{BEST} leads", 0, mark="leads")
    if line.row.name in verdict.near:
        return Cell(f"{NEAR} not separable", 1)
    return Cell("worse", 2) if line.row.name in verdict.worse else Cell("–", 3)


def _runs(tables: Sequence[Reported]) -> Grid:
    """Every finished run, and the rows that it is part of."""
    rows_of: dict[str, list[str]] = {}
    records = {}
    for own in tables:
        for name, good in own.records.items():
            for record in good:
                rows_of.setdefault(record.folder.name, []).append(f"{own.table.name} {name}")
                records[record.folder.name] = record
    lines = []
    for folder, record in sorted(records.items()):
        result, run = record.result or {}, record.run
        scores = [100 * result[metric] for metric in ("uar", "war")]
        lines.append(
            [
                Cell(folder, folder),
                Cell(", ".join(rows_of[folder]), rows_of[folder][0]),
                Cell(run.fold, run.fold),
                Cell(str(run.seed), run.seed),
                *(Cell(f"{own:.2f}", own) for own in scores),
                Cell(str(result["epoch"]), result["epoch"]),
            ]
        )
    columns = ["run", "rows", "fold", "seed", "UAR %", "WAR %", "epoch"]
    return Grid("runs", f"All {len(lines)} finished runs", columns, lines)


def _videos(leading: Leading, store: Store) -> dict[str, Any]:
    """What the browser shows of each video, the most certain first, as short as it can be.

    Probabilities and disagreement are in tenths of a per cent.
    """
    pooled = leading.pooled
    levels_NT = np.rint(LEVELS * scaled(pooled.influence_NT)).astype(int).tolist()
    truth_NT = true_intensity(store, pooled)
    shown = None if truth_NT is None else np.rint(LEVELS * truth_NT).astype(int).tolist()
    listed = np.argsort(-pooled.p_NK[:VIDEOS_MAX].max(1), kind="stable").tolist()
    entries = [
        [
            row := int(pooled.rows_N[n]),
            show(store.ids[row]),
            int(pooled.labels_N[n]),
            [int(k) for k in np.argsort(-pooled.p_NK[n], kind="stable")[:3]],
            [round(1000 * p) for p in np.sort(pooled.p_NK[n])[::-1][:3].tolist()],
            round(1000 * float(leading.disagreement_N[n])),
            "".join(DIGITS[level] for level in levels_NT[n]),
            "" if shown is None else "".join(DIGITS[level] for level in shown[n]),
        ]
        for n in listed
    ]
    frames = [int(frame) for frame in pooled.frames]
    return {
        "classes": [show(name) for name in store.classes],
        "entries": entries,
        "frames": frames,
        "total": len(pooled.rows_N),
    }
