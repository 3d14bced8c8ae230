"""What was found of a data set -> a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import Data
from cli.show import columns, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.datasets.check import Tally
    from pipeline.datasets.survey import Survey


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
    """Counts by class or part; what is published only if anything is."""
    rows = [[title, "listed", "found", "missing", "short", "published"]]
    for tally in tallies:
        counts = (tally.listed, tally.found, tally.missing, tally.short)
        published = "-" if tally.published is None else str(tally.published)
        rows.append([show(tally.name), *map(str, counts), published])
    if all(tally.published is None for tally in tallies):
        rows = [row[:-1] for row in rows]
    return columns(rows)
