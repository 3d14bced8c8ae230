"""tgdfer data: which data sets there are, what a copy of one holds, a list to fill in."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import RefusedError
from cli.accounting import survey_of, tally_table
from cli.options import (
    AnnotationOption,
    ByOption,
    Data,
    FoldsOption,
    NamedDatasetOption,
    RootOption,
    SourceOption,
    SubjectsOption,
    TextsOption,
    is_rendered,
)
from cli.show import columns, next_step, show

if TYPE_CHECKING:
    from pipeline.datasets.check import Report

FINDINGS = 3
SHOWN = 20  # missing videos

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List the data sets, check a copy of one, and begin a list of your own.",
)


@data_app.command(name="list")
def list_(
    dataset: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show all that is known of one.")
    ] = None,
) -> None:
    """Show the data sets that can be read, and how to get each.

    \b
    tgdfer data list
    tgdfer data list dfew
    """
    from cli.options import expect
    from pipeline.datasets.known import known_datasets

    known = known_datasets()
    if dataset is None:
        rows = [("name", "classes", "videos", "folds", "licence", "where")]
        for name, one in known.items():
            videos, folds = str(one.videos or "-"), str(len(one.folds) or "-")
            rows.append(
                (name, str(len(one.classes) or "-"), videos, folds, one.licence, one.obtain)
            )
        print(columns(rows))
        next_step("tgdfer", "data", "list", "dfew")
        return
    expect("data set", dataset, list(known))
    one = known[dataset]
    print(
        columns(
            [
                ("title", one.title),
                ("classes", ", ".join(one.classes) or "your own"),
                ("videos", str(one.videos or "unknown")),
                ("protocol", one.protocol),
                ("licence", one.licence),
                ("where", one.obtain),
                *(("tree", f"ROOT/{line}") for line in one.tree),
            ]
        )
    )
    next_step("tgdfer", "data", "check", "--dataset", dataset, "--root", "ROOT")


@data_app.command()
def check(
    dataset: NamedDatasetOption,
    root: RootOption = None,
    annotation: AnnotationOption = None,
    source: SourceOption = "auto",
    texts: TextsOption = None,
    folds: FoldsOption = None,
    subjects: SubjectsOption = None,
    by: ByOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a copy of a data set holds; exit code 3 if listed videos are missing.

    No video is opened.  What contradicts itself is refused with file and line (exit code 2).

    \b
    tgdfer data check --dataset dfew --root /data/DFEW
    tgdfer data check --dataset list --root /data/mine --folds 5 --json
    """
    from pipeline.datasets.check import check_survey

    if is_rendered(dataset):
        raise RefusedError(f"--dataset {dataset}: it is rendered here; there is nothing to check")
    report = check_survey(
        survey_of(Data(dataset, root, annotation, source, texts, folds, subjects, by))
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _print_report(report)
    if report.missing:
        raise typer.Exit(FINDINGS)


@data_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of videos.")],
) -> None:
    """Write DIR/list.csv with every video below DIR, and DIR/texts.toml, both to be filled in.

    \b
    tgdfer data init /data/mine
    """
    from pipeline.datasets.template import write_templates

    found, files = write_templates(folder)
    print(f"{found} videos: fill in {' and '.join(show(file) for file in files)}")
    next_step("tgdfer", "data", "check", "--dataset", "list", "--root", folder, "--folds", 5)


def _print_report(report: "Report") -> None:
    rows = {"data set": report.dataset, "root": report.root, "lists": report.lists or "none"}
    rows["source"] = report.source
    if report.other_sources:
        rows["other sources"] = ", ".join(report.other_sources)
    if report.ignored:
        first = report.ignored[0]
        rows["ignored"] = f"{len(report.ignored)} video files of other names, such as {first}"
    if report.frames:
        fewest, mean, most = report.frames
        rows["frames"] = f"{fewest} to {most} a video, mean {mean:.1f}; short: fewer than 16"
    if report.subjects:
        shared = [f"{number} in fold {fold}" for fold, number in report.shared_subjects.items()]
        rows["subjects"] = f"{report.subjects}; in training and test: {', '.join(shared) or 'none'}"
    rows |= {f"subset {name}": f"{number} videos" for name, number in report.subsets.items()}
    print(columns([(name, show(value)) for name, value in rows.items()]))
    print("\n" + tally_table("class", report.classes))
    print("\n" + tally_table("part", report.parts))
    for video in report.missing[:SHOWN]:
        print(f"missing {show(video)}")
    if len(report.missing) > SHOWN:
        print(f"and {len(report.missing) - SHOWN} more")
    print(f"\nprotocol: {show(report.protocol)}")
