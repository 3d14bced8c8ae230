"""tgdfer data: which data sets there are, what a copy of one holds, a list to fill in."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import RefusedError
from cache.remote import StorePath, store_path
from cli.accounting import count_table, survey_of, tally_table
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
from cli.progress import progress
from cli.show import columns, count, next_step, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.datasets.check import Report
    from pipeline.datasets.survey import Reading, Survey
    from pipeline.extract.overlaps import Overlap

FINDINGS = 3
SHOWN = 20  # missing, unreadable and changed videos, and pairs

SHALLOW = "sizes and first bytes of video files, and of each folder's first image; see --deep"

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
    if is_rendered(dataset):
        next_step("tgdfer", "extract")
    else:
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
    store: Annotated[
        StorePath | None,
        typer.Option(
            "--store",
            parser=store_path,
            metavar="PATH|URL",
            help="Store of these videos: which changed since, and which are similar by features.",
        ),
    ] = None,
    similarity: Annotated[
        float | None,
        typer.Option(
            "--similarity",
            metavar="COSINE",
            min=0,
            max=1,
            help="From which on two videos count as similar.",
            show_default="0.95",
        ),
    ] = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Decode every video, as extract does; with --store, compare all bytes.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a copy of a data set holds, and what is in both training and test.

    Exit code 3 if listed videos are missing, unreadable or not as in the store, or if the same
    bytes are in both. What contradicts itself is refused with file and line (exit code 2). Without
    --deep nothing is decoded: sizes and first bytes of video files, and of the first image of every
    folder, say what is unreadable.

    \b
    tgdfer data check --dataset dfew --root /data/DFEW
    tgdfer data check --dataset list --root /data/mine --folds 5 --json
    Videos that are only similar, from their features, and whether they are still the same:
      tgdfer data check --dataset dfew --root /data/DFEW --store data/dfew-ViT-B-32-quickgelu.zarr
    Every frame, which takes as long as the decoding in extract:
      tgdfer data check --dataset dfew --root /data/DFEW --deep
    """
    from cache.store import open_store
    from pipeline.datasets.check import check_survey
    from pipeline.extract.overlaps import SIMILAR, same_bytes, similar_features
    from pipeline.extract.readings import changed_since

    if is_rendered(dataset):
        raise RefusedError(f"--dataset {dataset}: it is rendered here; there is nothing to check")
    if store is None and similarity is not None:
        raise RefusedError("--similarity: read only with --store, whose features are compared")
    opened = None if store is None else open_store(store)
    survey = survey_of(Data(dataset, root, annotation, source, texts, folds, subjects, by))
    same, similar, changed = same_bytes(survey), None, None
    if opened is not None:
        similar = similar_features(survey, opened, SIMILAR if similarity is None else similarity)
    readings = _read(survey, deep)
    if opened is not None:
        changed = changed_since(survey, opened, readings)
    report = check_survey(survey, readings)
    if as_json:
        found = dataclasses.asdict(report) | {"decoded": deep, "changed": changed}
        for name, overlaps in (("same_bytes", same), ("similar", similar)):
            found[name] = overlaps and [dataclasses.asdict(overlap) for overlap in overlaps]
        print(json.dumps(found, indent=2))
    else:
        _print_report(report, deep)
        _print_changed(changed, deep)
        _print_overlaps("the same bytes", same)
        _print_overlaps("similar features", similar)
        print(f"\nprotocol: {show(report.protocol)}")
    if report.missing or report.unreadable or changed or same:
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


def _read(survey: "Survey", deep: bool) -> "dict[str, Reading]":
    from pipeline.extract.readings import glance, read_whole

    if not deep:
        return glance(survey)
    with progress("decode", None, "videos") as shown:
        return read_whole(survey, shown.update)


def _print_report(report: "Report", deep: bool) -> None:
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
    rows["read"] = "all frames" if deep else SHALLOW
    rows |= {"archives": report.unpack} if report.unpack else {}
    rows |= {"note": "; ".join(report.notes)} if report.notes else {}
    rows |= {f"subset {name}": f"{number} videos" for name, number in report.subsets.items()}
    print(columns([(name, show(value)) for name, value in rows.items()]))
    print("\n" + tally_table("class", report.classes + report.classes_of_part))
    print("\n" + tally_table("part", report.parts))
    print("\n" + count_table(report.counts))
    _print_videos("missing", dict.fromkeys(report.missing, ""))
    _print_videos("unreadable", report.unreadable or {})


def _print_changed(changed: "Mapping[str, str] | None", deep: bool) -> None:
    """What is not as in the store; nothing if there is none to compare with."""
    if changed is None:
        return
    what = "bytes" if deep else "numbers of frames and lists; --deep compares the bytes"
    print(f"\nnot as in the store: {len(changed) or 'none'} (compared: {what})")
    _print_videos("changed", changed)


def _print_videos(what: str, videos: "Mapping[str, str]") -> None:
    """A line for each of the first videos, with the reason if there is one."""
    for video, why in [*videos.items()][:SHOWN]:
        print(f"{what} {show(video)}{why and ': '}{show(why)}")
    if len(videos) > SHOWN:
        print(f"and {len(videos) - SHOWN} more, which --json lists")


def _print_overlaps(what: str, overlaps: "Sequence[Overlap] | None") -> None:
    """Pairs of videos on both sides of a fold; nothing if they were not looked for."""
    if overlaps is None:
        return
    found = ", ".join(f"{count(o.count, 'pair')} in fold {show(o.fold)}" for o in overlaps)
    print(f"\n{what} in training and test: {found or 'none'}")
    pairs = [(overlap.fold, pair) for overlap in overlaps for pair in overlap.pairs]
    rows = [("fold", "test video", "label", "training video", "label", "similarity")]
    for fold, p in pairs[:SHOWN]:
        labels, similarity = (show(p.test_label), show(p.train_label)), f"{p.similarity:.3f}"
        rows.append((show(fold), show(p.test), labels[0], show(p.train), labels[1], similarity))
    if pairs:
        print(columns(rows))
    if len(pairs) > SHOWN:
        print(f"and {len(pairs) - SHOWN} more, which --json lists")
