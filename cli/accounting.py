"""What was found of a data set -> a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import Data
from cli.show import columns, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.datasets.check import Tally
    from pipeline.datasets.survey import Count, Survey


def survey_of(data: Data) -> "Survey":
    """The data set that the options name, read from its folder."""
    from pipeline.datasets.read import survey_dataset

    root = data.root or Path("data") / data.dataset
    more = (data.source, data.texts, data.folds, data.subjects, data.by)
    return survey_dataset(data.dataset, root, data.annotation, *more)


def describe_survey(survey: "Survey") -> str:
    """Where a data set was read from, and how many videos of each class were found."""
    from pipeline.datasets.check import check_survey

    report = check_survey(survey)
    lists = f"lists {show(report.lists)}, " if report.lists else ""
    head = f"{report.dataset}: {lists}source {show(report.source)}"
    return "\n".join([head, *map(show, report.notes), tally_table("class", report.classes)])


def tally_table(title: str, tallies: "Sequence[Tally]") -> str:
    """Counts by class or part, without the columns of which nothing is known."""
    table = [[title, *(tally.name for tally in tallies)]]
    unknown = {"unreadable": "-", "short": "unknown", "published": "-"}
    for name in ("listed", "found", "missing", "unreadable", "short", "published"):
        numbers = [getattr(tally, name) for tally in tallies]
        if name == "short" or {*numbers} != {None}:
            table.append([name, *(unknown[name] if n is None else str(n) for n in numbers)])
    return columns([[*map(show, row)] for row in zip(*table, strict=True)])


def count_table(counts: "Sequence[Count]") -> str:
    """Counts by part and class."""
    from pipeline.datasets.check import part_name

    rows = [["part", "class", "listed", "found", "missing", "unreadable", "short"]]
    for one in counts:
        numbers = (one.listed, one.found, one.missing, one.unreadable, one.short)
        shown = ("unknown" if number is None else str(number) for number in numbers)
        rows.append([show(part_name(one.fold, one.part)), show(one.label), *shown])
    return columns(rows)
