"""A list of who is seen in each video -> subjects by id, for data sets whose own lists do not say.

video,subject
02522,anna
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from cache.errors import RefusedError
from cache.outside import read_text
from pipeline.datasets.list import csv_rows
from pipeline.datasets.named import refuse_nobody
from pipeline.datasets.rows import LIST_BYTES_MAX, SHOWN_LETTERS, number_of
from pipeline.datasets.videos import VIDEO_SUFFIXES

HEADER = ["video", "subject"]


def read_subjects(file: Path, ids: Collection[str]) -> dict[str, str]:
    """Id -> subject; a video is named by its id, its file, or the number that is its id.

    Of a video without a subject, or that is left out, nothing is known.
    Raises RefusedError, with the line, for a video that is not in ``ids`` or is listed twice, and
    for a subject in two spellings.
    """
    subjects, listed = dict[str, str](), set[str]()
    text = read_text(file, "rows of video,subject", LIST_BYTES_MAX)
    for line, row in csv_rows(text, file):
        cells = [cell.strip() for cell in row]
        if [*map(str.lower, cells)] == HEADER and not listed:
            continue
        if len(cells) != 2 or not cells[0]:
            raise RefusedError(f"{file}:{line}: {row!r:.{SHOWN_LETTERS}}; expected video,subject")
        named, subject = cells
        named = re.sub(r"^(\./)+", "", named.replace("\\", "/"))
        stem, suffix = os.path.splitext(named)
        bare = stem if suffix.lower() in VIDEO_SUFFIXES else named
        video_id = next((i for i in (named, bare, number_of(named)) if i in ids), None) or named
        if video_id not in ids or video_id in listed:
            why = "is listed twice" if video_id in listed else "is in no list of the data set"
            raise RefusedError(f"{file}:{line}: video {named[:SHOWN_LETTERS]} {why}; remove it")
        listed.add(video_id)
        if subject:
            subjects[video_id] = subject
    refuse_nobody(subjects, file)
    return subjects
