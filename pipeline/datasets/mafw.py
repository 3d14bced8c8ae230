"""MAFW as users have it: the five folds of single expressions, frame folders or videos.

    ROOT/no_caption/set_1/{train,test}.txt     03747.mp4 anger
    ROOT/Train & Test Set/single/no_caption/set_1/{train,test}.txt
    ROOT/data/faces/03747/*.png                or clips/03747.mp4

Lists with captions behind tabs or commas are read too (often in GBK). Public lists number the
classes in three orders, which only the counts of the classes tell apart.
"""

import re
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
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, find_videos, scan

LAYOUT = Layout(
    video=lambda parts: number_of(parts[-1]) is not None,
    id_of=lambda parts: number_of(parts[-1]),
    prefer=("faces", "clips_faces", "frames", "clips"),
    unpack="data/faces or clips",
)


def survey_mafw(root: Path, annotation: Path | None = None, source: str = "auto") -> Survey:
    """Read the folds under ``root`` or ``annotation``, and find their videos."""
    known = known_datasets()["mafw"]
    tree = scan(root, LAYOUT.video, "no_caption and data/faces")
    files = "set_1/train.txt and similar files"
    lists = find_lists(tree, annotation, "mafw", ("no_caption",), files, aside="compound")
    form = ListFormat(
        number_of,
        re.compile(r"[A-Za-z_]+|[0-9]{1,9}"),
        len(known.classes),
        "'03747.mp4 anger', 'path/to/03747 frames label' or '03747.mp4,anger,a caption of words'",
        "mafw",
        "gb18030",
        captions=True,
    )
    rows = {key: read_rows(path, form) for key, path in lists.files.items()}
    first = first_rows(rows)
    labels = read_labels(rows, first, lists.folder, known)
    votes = votes_of(first, labels)
    return Survey(
        name="mafw",
        root=root,
        classes=known.classes,
        labels=labels,
        folds=make_folds(rows),
        found=find_videos(tree, LAYOUT, source, labels),
        lists=lists.folder,
        files=tuple(lists.files.values()),
        votes=votes,
        notes=lists.notes + order_note(first, labels, known),
    )
