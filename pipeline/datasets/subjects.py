"""A list of who is seen in each video -> subjects by id, for data sets whose own lists do not say.

video,subject
02522,anna
"""

from collections.abc import Collection
from pathlib import Path

from cache.errors import RefusedError
from cache.outside import read_text
from pipeline.datasets.list import csv_rows
from pipeline.datasets.named import refuse_spellings
from pipeline.datasets.rows import LIST_BYTES_MAX, SHOWN_LETTERS, number_of

HEADER = ["video", "subject"]


def read_subjects(file: Path, ids: Collection[str]) -> dict[str, str]:
    """Id -> subject; a video is named by its id, or by the number that is one.

    Raises RefusedError, with the line, for a video that is not in ``ids`` or is listed twice, and
    for a subject in two spellings.
    """
    subjects: dict[str, str] = {}
    text = read_text(file, "rows of video,subject", LIST_BYTES_MAX)
    for line, row in csv_rows(text, file):
        cells = [cell.strip() for cell in row]
        if [*map(str.lower, cells)] == HEADER and not subjects:
            continue
        if len(cells) != 2 or not all(cells):
            raise RefusedError(f"{file}:{line}: {row!r:.{SHOWN_LETTERS}}; expected video,subject")
        named, subject = cells
        video_id = named if named in ids else number_of(named) or named
        if video_id not in ids or video_id in subjects:
            why = "is listed twice" if video_id in subjects else "is in no list of the data set"
            raise RefusedError(f"{file}:{line}: video {named[:SHOWN_LETTERS]} {why}; remove it")
        subjects[video_id] = subject
    refuse_spellings(subjects, file, "subject")
    return subjects
