"""FERV39k as users have it: the split over all scenes or a public copy of it, frame folders.

    ROOT/4_setups/All_scenes/{train,test}_All.csv            Crime/Angry/0063 Angry, no header
    ROOT/2_ClipsforFaceCrop/Crime/Angry/0063/*.jpg

Numbers repeat in every folder, so an id is Crime/Angry/0063, in the case in which the lists spell
it. Public lists number the classes in two orders; the word in the path decides, and every label
must agree with it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.known import class_of_word, known_datasets
from pipeline.datasets.labels import read_against_paths, votes_of
from pipeline.datasets.named import refuse_spellings
from pipeline.datasets.rows import ListFormat, find_lists, first_rows, make_folds, read_rows
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Found, Layout, Parts, find_videos, scan


def id_of(parts: Parts) -> str | None:
    """``Crime/Angry/0063`` from the end of a path; None if it does not end like this."""
    if len(parts) < 3 or class_of_word(parts[-2]) is None:
        return None
    number = re.fullmatch(r"([0-9]{1,9})(\.\w+)?", parts[-1])
    return number and f"{parts[-3]}/{parts[-2]}/{int(number[1]):04d}"


LAYOUT = Layout(
    video=lambda parts: id_of(parts) is not None,
    id_of=id_of,
    levels=2,
    prefer=("2_ClipsforFaceCrop",),
    unpack="2_ClipsforFaceCrop",
)


def survey_ferv39k(root: Path, annotation: Path | None = None, source: str = "auto") -> Survey:
    """Read the split under ``root`` or ``annotation``, and find its videos.

    Folders may be spelled in another case than in the lists, which a note says.
    """
    classes = known_datasets()["ferv39k"].classes
    tree = scan(root, LAYOUT.video, "4_setups and 2_ClipsforFaceCrop")
    files = "All_scenes/train_All.csv and similar files"
    lists = find_lists(tree, annotation, "ferv39k", ("All_scenes",), files)
    form = ListFormat(
        lambda path: id_of(tuple(re.split(r"[/\\]", path.rstrip("/\\")))),
        re.compile(r"[A-Za-z]+|[0-9]{1,9}"),
        len(classes),
        "'Crime/Angry/0063 Angry' or 'path/to/Crime/Angry/0063 frames label'",
        "ferv39k",
    )
    rows = {key: read_rows(path, form) for key, path in lists.files.items()}
    first = first_rows(rows)
    labels = read_against_paths(first, classes, lambda row: row.id.split("/")[1])
    votes = votes_of(first, labels)
    refuse_spellings({video_id: video_id for video_id in labels}, lists.folder, "video")
    found = find_videos(tree, replace(LAYOUT, id_of=_listed_id(labels)), source, labels)
    return Survey(
        name="ferv39k",
        root=root,
        classes=classes,
        labels=labels,
        folds=make_folds(rows),
        found=found,
        lists=lists.folder,
        files=tuple(lists.files.values()),
        votes=votes,
        notes=lists.notes + _other_case(found),
    )


def _listed_id(ids: Iterable[str]) -> Callable[[Parts], str | None]:
    """``id_of``, in the case of ``ids``."""
    listed = {video_id.casefold(): video_id for video_id in ids}

    def listed_id(parts: Parts) -> str | None:
        video_id = id_of(parts)
        return video_id and listed.get(video_id.casefold(), video_id)

    return listed_id


def _other_case(found: Found) -> tuple[str, ...]:
    there = {video_id: id_of(place.path.parts) for video_id, place in found.places.items()}
    other = [f"{own} for {video_id}" for video_id, own in there.items() if own != video_id]
    note = f"{len(other)} videos are spelled in another case than in the lists, such as "
    return (note + other[0],) if other else ()
