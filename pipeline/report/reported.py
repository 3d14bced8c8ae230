"""What the paper reports, and which of its figures do not follow from its own recalls."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from pipeline.datasets.known import known_datasets
from pipeline.markdown import paragraph, table
from pipeline.report.tables import Table

DIFFERENT = 0.3  # points; rounding of recalls and other counts explain less
MARK = "≠"


def reported_in(name: str) -> dict[str, Any]:
    """The figures of a table by the names of its rows, in per cent; {} for one of ours."""
    found: dict[str, Any] = _figures().get(name, {})
    return found


def scores_of_recalls(recalls: list[float], dataset: str) -> tuple[float, float]:
    """UAR and WAR that follow from the recalls of all classes and a data set's known counts.

    >>> scores = scores_of_recalls([90.92, 74.92, 71.41, 73.36, 59.43, 13.10, 38.03], "dfew")
    >>> tuple(round(own, 2) for own in scores)
    (60.17, 71.62)
    """
    known = known_datasets()[dataset]
    counts = [known.counts[name] for name in known.classes]
    weighted = sum(own * count for own, count in zip(recalls, counts, strict=True))
    return sum(recalls) / len(recalls), weighted / sum(counts)


def reported_systems(own: Table) -> str:
    """Markdown: every system that the paper lists in such a table, as reported."""
    rows, strange = [], False
    for name, found in reported_in(own.name).items():
        scores = (found["uar"], found["war"])
        follows = scores_of_recalls(found["recalls"], own.counts) if "recalls" in found else scores
        marks = [
            MARK if abs(a - b) > DIFFERENT else "" for a, b in zip(scores, follows, strict=True)
        ]
        strange |= any(marks)
        shown = [f"{score:.2f} {mark}".rstrip() for score, mark in zip(scores, marks, strict=True)]
        recalls = [f"{own:.2f}" for own in found.get("recalls", [])]
        rows.append([name, found.get("encoder", "–"), *shown, *recalls])
    classes = own.recalls if any(len(row) > 4 for row in rows) else ()
    head = ["in the paper", "encoder", "UAR", "WAR", *classes]
    lines = [[*row, *["–"] * (len(head) - len(row))] for row in rows]
    title = known_datasets()[own.counts].title
    legend = f"As reported in the paper for {title}; nothing of that was measured here."
    if classes:
        legend += " Below the names of classes are their recalls."
    if strange:
        legend += (
            f" {MARK}: more than {DIFFERENT} points from what follows from these recalls, and for "
            f"the WAR from the counts of {title}."
        )
    return "\n\n".join([paragraph(legend), "\n".join(table(head, lines))])


@cache
def _figures() -> dict[str, Any]:
    return tomllib.loads(files("pipeline.report").joinpath("reported.toml").read_text())
