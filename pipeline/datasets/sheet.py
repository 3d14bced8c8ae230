"""An Excel sheet beside the lists -> what annotators said of each video, as DFEW ships it.

How such a sheet is laid out is not documented, so its columns must say it themselves: one names the
video, and one is called after each class, "1happy" or "Happiness".
"""

import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cache.outside import MIB, read_outside
from pipeline.datasets.known import class_of_word
from pipeline.datasets.labels import votes_for_others
from pipeline.datasets.rows import Votes, cell_text

SHEET_BYTES_MAX = 64 * MIB
UNPACKED_BYTES_MAX = 512 * MIB
ID_COLUMNS = ("order", "video_name", "video", "name", "id", "clip")


def read_sheet(
    path: Path,
    classes: Sequence[str],
    id_of: Callable[[str], str | None],
    labels: Mapping[str, int],
) -> tuple[dict[str, Votes], str]:
    """(votes by id of the videos that have a label, what a user should know about the sheet).

    There are none if the sheet cannot be read, or does not fit the labels: a split can be used
    without votes, so this is said and not refused. Raises RefusedError if it is no regular file.
    """
    data = read_outside(path, "an Excel sheet of votes", SHEET_BYTES_MAX)
    try:
        rows = _cells(data)
        columns = _columns(rows[0] if rows else [], classes)
    except ValueError as error:
        return {}, f"{path.name} is not read: {error}"
    found: dict[str, Votes] = {}
    strange = []
    for number, row in enumerate(rows[1:], 2):
        video_id, own = id_of(row[columns[0]]), _votes([row[column] for column in columns[1:]])
        if video_id is None or own is None or video_id in found:
            strange.append(number)
        else:
            found[video_id] = own
    votes = {video_id: found[video_id] for video_id in labels if video_id in found}
    if not votes or votes_for_others(votes, labels):
        return {}, f"{path.name} is not read: its votes are for other labels than the lists'"
    note = f"{path.name}: votes of {len(votes)} of {len(labels)} videos"
    more = f"; rows without votes: {len(strange)}, such as row {strange[0]}" if strange else ""
    return votes, note + more


def _cells(data: bytes) -> list[list[str]]:
    """The first sheet as text; raises ValueError if it cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    if size > UNPACKED_BYTES_MAX:
        raise ValueError(f"{size} bytes unpacked, more than {UNPACKED_BYTES_MAX}")
    try:
        from python_calamine import CalamineError, load_workbook
    except ImportError:
        raise ValueError("it needs python-calamine (pip install python-calamine)") from None
    try:
        rows = load_workbook(io.BytesIO(data)).get_sheet_by_index(0).to_python()
    except CalamineError as error:
        raise ValueError(str(error)) from None
    return [[cell_text(cell).strip() for cell in row] for row in rows]


def _columns(header: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The columns of the id and of every class; raises ValueError unless each is there once."""
    names = [class_of_word(re.sub(r"[^a-z]", "", name.lower())) for name in header]
    ids = [n for n, name in enumerate(header) if name.lower().replace(" ", "_") in ID_COLUMNS]
    if len(ids) != 1 or any(names.count(name) != 1 for name in classes):
        raise ValueError(
            f"its columns are {', '.join(header)[:200]}; expected one of {', '.join(ID_COLUMNS)}, "
            f"and one named after each of {', '.join(classes)}"
        )
    return ids + [names.index(name) for name in classes]


def _votes(cells: Sequence[str]) -> Votes | None:
    if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?", cell) for cell in cells):
        return None
    votes = tuple(map(float, cells))
    return votes if any(votes) else None
