"""A filled table -> in words: which row leads, from which it can be told apart, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluate.statistics import holm
from pipeline.report.ablation import FilledRow
from pipeline.report.forms import LEVEL
from pipeline.report.rules import OPTIMISTIC
from pipeline.report.tables import Table


@dataclass(frozen=True)
class Verdict:
    """The row of highest WAR, and the names of others by what is known of them in comparison."""

    leading: FilledRow
    worse: list[str]  # clearly: at 5 %, all comparisons with the leading row counted (Holm)
    near: list[str]


def judge(rows: Sequence[FilledRow]) -> Verdict | None:
    """None if no row has all of its runs, or if the rows are scored on different videos."""
    compared = [(line, line.behind) for line in rows if line.behind is not None]
    leading = next((line for line, behind in compared if behind.value == 0), None)
    if leading is None:
        return None
    tested = [(line, behind) for line, behind in compared if behind.error]
    corrected = holm([behind.p for _, behind in tested])
    worse = [line.row.name for (line, _), p in zip(tested, corrected, strict=True) if p < LEVEL]
    others = [line.row.name for line, _ in compared if line is not leading]
    return Verdict(leading, worse, [name for name in others if name not in worse])


def answer(table: Table, rows: Sequence[FilledRow]) -> list[str]:
    """What a table answers to "which setting recognises the expressions best?", as sentences."""
    lacking, verdict = missing(rows), judge(rows)
    diverged = [line for line in lacking if line.done + line.diverged == line.expected]
    waiting = len(diverged) < len(lacking)
    lack = "lacks" if len(lacking) == 1 else "lack"
    unknown = [f"No answer yet: {len(lacking)} of {len(rows)} rows {lack} runs."] * waiting
    if verdict is None:
        apart = "The rows are scored on different videos, so that none leads: see the differences."
        return [*unknown, *_not_ranked(diverged), *[apart] * table.by_subset]
    leading = verdict.leading
    spread = " (mean ± standard deviation over its runs)" if leading.done > 1 else ""
    verb = "leads the rows that have all of theirs" if lacking else "leads"
    return [
        *unknown,
        f"{describe(leading)} {verb}: WAR {leading.war} %, UAR {leading.uar} %{spread}.",
        *_not_ranked(diverged),
        *_otherwise(leading, rows),
        *_selected(leading, rows),
        *_lead(table, rows, leading),
        *_told_apart(verdict),
    ]


def missing(rows: Sequence[FilledRow]) -> list[FilledRow]:
    """The rows that lack runs: not trained, unfinished, diverged or damaged."""
    return [line for line in rows if line.done < line.expected]


def describe(line: FilledRow) -> str:
    """A row by its name and what it changes."""
    return f"{line.name} ({', '.join(line.row.cells)})" if line.row.cells else line.name


def _lead(table: Table, rows: Sequence[FilledRow], leading: FilledRow) -> list[str]:
    reference, lead = table.reference(leading.row), leading.differences.get("WAR")
    if lead is None or not lead.error:
        return []
    if lead.value < 0:  # a reference that is a row leads itself
        return [
            f"But it is behind {reference.name}, which is no row of this table: "
            f"{lead.text('+.2f', 100)} WAR (95 % interval)."
        ]
    over, text = _named(table, rows, leading), lead.text("+.2f", 100)
    return [f"Its lead over {over}: {text} WAR (95 % interval of this one difference)."]


def _named(table: Table, rows: Sequence[FilledRow], leading: FilledRow) -> str:
    """What the leading row is compared with, and which row that is, if it has another name."""
    reference = table.reference(leading.row)
    same = [
        line.row.name
        for line in rows
        if table.reference(line.row) == reference
        and (own := line.differences.get("WAR")) is not None
        and not own.error
        and not own.value
    ]
    if not same or reference.name in same:
        return f"row {reference.name}" if reference.name.isdigit() else reference.name
    return f"the {reference.name} (row {', '.join(same)})"


def _not_ranked(diverged: Sequence[FilledRow]) -> list[str]:
    names = ", ".join(line.row.name for line in diverged)
    return [f"Not ranked, since some of their runs diverged: {names}."] * bool(diverged)


def _otherwise(leading: FilledRow, rows: Sequence[FilledRow]) -> list[str]:
    """A note where the mean over runs, as in the table, puts another row first."""
    compared = [line for line in rows if line.behind is not None]
    first = max(compared, key=lambda line: line.war.mean or 0)
    if (first.war.mean or 0) <= (leading.war.mean or 0):
        return []
    return [
        f"Rows are ranked by the WAR over all videos together; by the mean over runs, in which a "
        f"small fold counts as much as a large one, {first.name} is first."
    ]


def _selected(leading: FilledRow, rows: Sequence[FilledRow]) -> list[str]:
    """A warning where its epochs alone were selected on the test videos."""
    rules = {line.selection.rule for line in rows}
    if leading.selection.rule != OPTIMISTIC or rules == {OPTIMISTIC}:
        return []
    return [
        "Its epochs were selected on the test videos, those of other rows were not: optimistic."
    ]


def _told_apart(verdict: Verdict) -> list[str]:
    others = len(verdict.worse) + len(verdict.near)
    if not others:
        return []
    counted = f"with all {others} comparisons counted (Holm, 5 %)" if others > 1 else "at 5 %"
    best = (
        f"It was found as the best of {others + 1} on these very videos, so its own score is "
        "somewhat optimistic."
    )
    if not verdict.near:
        return [f"It is separable from every other row, {counted}.", best]
    near = ", ".join(verdict.near)
    if not verdict.worse:
        return [f"It is not separable from any other row, {counted}: the order may be chance."]
    rows = f"{len(verdict.worse)} row{'s' * (len(verdict.worse) > 1)}"
    return [f"It is separable from {rows}, {counted}, but not from {near}.", best]
