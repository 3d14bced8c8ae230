"""DFEW as users have it: the official split or a public copy of it, frame folders or videos.

What is read (the names vary between copies; each part is required):

    ROOT/EmoLabel_DataSplit/train(single-labeled)/set_1.csv     video_name,label
    ROOT/EmoLabel_DataSplit/test(single-labeled)/set_1.csv      2522,6
    ROOT/Clip/clip_224x224/02522/*.jpg                          or Clip/original/02522.mp4

Beside the lists there may be ground truth that DFEW itself lacks; see ``truth.py``.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.known import known_datasets
from pipeline.datasets.labels import order_note, read_labels, votes_of
from pipeline.datasets.rows import (
    ListFormat,
    find_lists,
    first_rows,
    make_folds,
    number_of,
    read_rows,
)
from pipeline.datasets.sheet import read_sheet
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, find_videos, refuse_outside, scan
from pipeline.datasets.truth import read_frame_truth, read_truth
from pipeline.datasets.videos import VideoList

CLASSES = known_datasets()["dfew"].classes
LAYOUT = Layout(
    video=lambda parts: number_of(parts[-1]) is not None,
    id_of=lambda parts: number_of(parts[-1]),
    # Frame folders before videos: they are the faces that published work uses.
    prefer=(
        *("clip_224x224", "jpg_256", "clip_jpg_256", "DFEW_Frame_Face", "DFEW_Face", "data"),
        *("original", "clip_224x224_avi"),
    ),
    above=("Clip",),
    unpack="Clip/original or Clip/clip_224x224",
)


def survey_dfew(
    root: Path,
    annotation: Path | None = None,
    source: str = "auto",
    classes: Sequence[str] = CLASSES,
) -> Survey:
    """Read the split under ``root`` or ``annotation``, and find its videos.

    ``classes`` are others for another data set in this layout, in the order of its labels.
    Raises RefusedError for anything contradictory: nothing is dropped.
    """
    tree = scan(root, LAYOUT.video, "EmoLabel_DataSplit and Clip")
    files = "train(single-labeled)/set_1.csv and similar files"
    lists = find_lists(tree, annotation, "dfew", ("EmoLabel_DataSplit",), files)
    form = ListFormat(
        number_of,
        re.compile(r"[A-Za-z]+|-?[0-9]{1,9}"),
        len(classes),
        "'video_name,label' or 'path/to/02522 frames label'",
        "dfew",
    )
    rows = {key: read_rows(path, form) for key, path in lists.files.items()}
    first = first_rows(rows)
    known = known_datasets()["dfew"]
    if tuple(classes) != known.classes:
        known = known.model_copy(update={"classes": tuple(classes), "counts": {}})
    labels = read_labels(rows, first, lists.folder, known)
    votes = votes_of(first, labels)
    folds = make_folds(rows)
    truth = read_truth(lists.folder, labels)
    read, notes = tuple(lists.files.values()), lists.notes
    if not votes and lists.sheets:
        refuse_outside(annotation or root, lists.sheets[0])
        votes, note = read_sheet(lists.sheets[0], classes, number_of, labels)
        read, notes = read + lists.sheets[:1] * bool(votes), (*notes, note)
    return Survey(
        name="dfew",
        root=root,
        classes=tuple(classes),
        labels=labels,
        folds=folds,
        found=find_videos(tree, LAYOUT, source, labels),
        lists=lists.folder,
        files=read,
        subjects=truth.subjects,
        subsets=truth.subsets,
        frames=read_frame_truth(lists.folder, labels, len(classes)),
        votes=votes,
        notes=notes + order_note(first, labels, known),
    )


def read_dfew(
    root: Path,
    annotation: Path | None = None,
    source: str = "auto",
    limit: int | None = None,
    classes: Sequence[str] = CLASSES,
) -> VideoList:
    """The first ``limit`` listed videos, or all, as in ``survey_dfew``; none may be missing."""
    survey = survey_dfew(root, annotation, source, classes)
    return survey.video_list([*survey.labels][:limit])
