"""A list of one's own -> Survey: CSV, TSV, text or Parquet, with columns for what is known.

    path,label,split,subject
    clips/a 1.mp4,bored,train,anna
    frames/b2,Happy,test,ben

``path`` is a video file (its suffix may be left out) or a folder of images, below the root;
``label`` is a name or a number. Optional are ``split`` (train, validation, test) or ``fold`` (the
fold that tests the video), ``subject``, ``frame_labels`` (one label per frame, "-" for none) and
``votes`` (one number per class), the last two separated by spaces or semicolons. A list whose first
row names no column has rows of path and label. Text without commas or tabs is read from the right.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.outside import read_outside, read_text
from pipeline.datasets.folds import folds_of_tests
from pipeline.datasets.known import full_class_name
from pipeline.datasets.labels import class_base, votes_of
from pipeline.datasets.named import part_of, refuse_nobody, refuse_spellings, spelling, split_fold
from pipeline.datasets.rows import LINE_MAX, LIST_BYTES_MAX, SHOWN_LETTERS, Row, Votes, cell_text
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Found, Place, place_at, refuse_nested, refuse_outside
from pipeline.datasets.videos import VIDEO_SUFFIXES, Fold, natural_key

FILES = ("list.csv", "list.tsv", "list.txt", "list.parquet")
COLUMNS = ("path", "label", "split", "fold", "subject", "frame_labels", "votes")
NAME_THEM = "name the columns in the first line, such as path,label,split"
Cells = Mapping[str, str]  # of one row, by column; empty ones are left out


@dataclass(frozen=True)
class _Table:
    """The rows of a list with file:line of each, and whether its first one names the columns."""

    rows: list[tuple[str, Cells]]
    is_headed: bool


@dataclass(frozen=True)
class _Classes:
    """The classes of a list, and how its labels name them: by words, or by numbers from a base."""

    names: tuple[str, ...]
    base: int | None

    def index(self, label: str, row: Row) -> int:
        """The index of the class of a label."""
        first = self.base or 0
        if self.base is not None and re.fullmatch(r"-?[0-9]{1,9}", label):
            if 0 <= int(label) - first < len(self.names):
                return int(label) - first
            raise RefusedError(
                f"{row.where}: label {label}; expected {first} to {first + len(self.names) - 1}, "
                "as the labels of videos run; of frames, - is the label of those that show none"
            )
        for name in (label, full_class_name(label)):
            if name in self.names:
                return self.names.index(name)
        raise RefusedError(f"{row.where}: label {label!r}; expected one of {', '.join(self.names)}")


def survey_list(
    root: Path,
    annotation: Path | None = None,
    source: str = "auto",
    classes: Sequence[str] | None = None,
) -> Survey:
    """Read the list ``annotation``, or ``list.csv`` and the like in ``root``, and find its videos.

    ``classes`` are those that labels name or number; without them they are the names in the list.
    ``source`` is the folder that paths start from, if it is not the root. Raises RefusedError, with
    the line, for whatever cannot be meant.
    """
    file = annotation or _find_list(root)
    base = root if source == "auto" else _folder(root, source)
    table = _read(file)
    read = [(_row(cells, where, base), cells) for where, cells in table.rows]
    places = _locate([row for row, _ in read], base)
    refuse_nested(places, base)
    if not table.is_headed:
        _refuse_strange_labels([row for row, _ in read], places)
    _refuse_repeated([row for row, _ in read])
    read.sort(key=lambda both: natural_key(both[0].id))
    rows = {row.id: row for row, _ in read}
    cells_of = {row.id: cells for row, cells in read}
    known = _classes([*rows.values()], file, classes)
    labels = {video_id: known.index(row.label, row) for video_id, row in rows.items()}
    voted = {
        i: rows[i]._replace(votes=_votes(c["votes"], known, rows[i]))
        for i, c in cells_of.items()
        if "votes" in c
    }
    folds, subsets = _folds(cells_of, rows, file)
    subjects = {i: c["subject"] for i, c in cells_of.items() if "subject" in c}
    refuse_nobody(subjects, file)
    return Survey(
        name="list",
        root=root,
        classes=known.names,
        labels=labels,
        folds=folds,
        found=Found("." if base == root else str(base), places),
        lists=file,
        files=(file,),
        subjects=subjects,
        subsets=subsets,
        frames={
            i: (_frame_labels(c["frame_labels"], known, rows[i]), None)
            for i, c in cells_of.items()
            if "frame_labels" in c
        },
        votes=votes_of(voted, labels),
    )


def _find_list(root: Path) -> Path:
    if not root.is_dir():
        raise RefusedError(f"{root}: no such folder; --root is the folder of the list and videos")
    there = [root / name for name in FILES if os.path.lexists(root / name)]
    if len(there) != 1:
        what = " and ".join(path.name for path in there) or "no list"
        raise RefusedError(
            f"{root}: {what}; expected one of {', '.join(FILES)}, or another file named with "
            f"--annotation; tgdfer data init {root} writes one to fill in"
        )
    refuse_outside(root, there[0])
    return there[0]


def _folder(root: Path, source: str) -> Path:
    for folder in (root / source, Path(source)):
        if folder.is_dir():
            return folder
    raise RefusedError(f"--source {source}: no such folder, neither below {root} nor from here")


def _read(file: Path) -> _Table:
    if file.suffix.lower() == ".parquet":
        table = _parquet_rows(file)
    else:
        text = read_text(file, "a list of videos and their labels", LIST_BYTES_MAX)
        table = _text_rows(text, file) if file.suffix.lower() == ".txt" else csv_rows(text, file)
    lines = [(f"{file}:{line}", [cell.strip() for cell in row]) for line, row in table]
    header = _header(lines[0][1], lines[0][0]) if lines else None
    named = header or ["path", "label"]
    rows = [(where, _cells(row, where, named)) for where, row in lines[header is not None :]]
    if not rows:
        raise RefusedError(f"{file}: the list has no videos")
    return _Table(rows, header is not None)


def _cells(row: Sequence[str], where: str, header: Sequence[str]) -> Cells:
    while len(row) > len(header) and not row[-1]:  # Excel's empty columns
        row = row[:-1]
    if len(row) != len(header):
        raise RefusedError(
            f"{where}: {len(row)} cells, expected {len(header)} ({', '.join(header)}); if there "
            f"are others, {NAME_THEM}"
        )
    both = zip(header, row, strict=True)
    cells = {name: cell if name == "path" else _bare(cell) for name, cell in both}
    cells = {name: cell for name, cell in cells.items() if cell}
    if "path" not in cells or "label" not in cells:
        raise RefusedError(f"{where}: a row without a path or a label")
    return cells


def _bare(cell: str) -> str:
    """A cell without the quotes of other formats, and whole numbers without a point.

    >>> _bare("'bored'"), _bare("3.0"), _bare("2.5")
    ('bored', '3', '2.5')
    """
    cell = re.sub(r"^'(.*)'$", r"\1", cell)
    return re.sub(r"^(-?[0-9]{1,9})\.0+$", r"\1", cell)


def _header(first: Sequence[str], where: str) -> list[str] | None:
    """The columns that the first row names, or None if it names none."""
    names = [name.lower() for name in first]
    while names and not names[-1]:
        names.pop()
    if not _names_columns(names):
        return None
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or len({*names}) < len(names) or not {"path", "label"} <= {*names}:
        raise RefusedError(
            f"{where}: the columns are {', '.join(names)}; expected path, label and some of "
            f"{', '.join(COLUMNS[2:])}: rename or remove the others"
        )
    return names


def _names_columns(names: Iterable[str]) -> bool:
    return not {*COLUMNS}.isdisjoint(names)


def csv_rows(text: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty, separated by what the first line has most."""
    said = re.match(r"sep=([\t,;])\r?\n", text, re.IGNORECASE)  # as Excel writes it
    delimiter = said[1] if said else max("\t,;", key=_first_line(text).count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise RefusedError(f"{file}:{line}: {error}") from None
        if row is None:
            return
        if any(cell.strip() for cell in row) and not (said and line == 1):
            yield line, row


def _text_rows(text: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row: as in CSV, or else separated by spaces, and the path comes first.

    Refuses a row of more than two words, unless the columns are named or it has one video file.
    """
    first = _first_line(text)
    if re.search(r"[\t,;]", first):
        yield from csv_rows(text, file)
        return
    names = first.lower().split()
    columns = len(names) if _names_columns(names) else 0
    if columns and names[0] != "path":
        raise RefusedError(f"{file}: the first column is {names[0]}, expected path; or use commas")
    for line, row in enumerate(text.splitlines(), 1):
        words = row.split()
        videos = [number for number, word in enumerate(words) if _is_video(word)]
        if not columns and len(words) > 2 and videos != [len(words) - 2]:
            raise RefusedError(
                f"{file}:{line}: {row[:SHOWN_LETTERS]!r} has three columns, or a path with spaces: "
                f"{NAME_THEM}, in all lines with commas or without"
            )
        if words:
            yield line, row.rsplit(maxsplit=max(columns, 2) - 1)


def _first_line(text: str) -> str:
    return text.lstrip("\r\n ").partition("\n")[0]


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _parquet_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    data = read_outside(file, "a list of videos and their labels in Parquet", LIST_BYTES_MAX)
    import pandas as pd

    try:
        table = pd.read_parquet(io.BytesIO(data)).astype(object)
    except ImportError:
        raise RefusedError(
            f"{file}: reading Parquet needs pyarrow; install it (pip install pyarrow), or save the "
            "list as CSV"
        ) from None
    except (ValueError, OSError) as error:
        raise RefusedError(f"{file}: cannot be read as Parquet: {error}") from None
    yield 0, [str(name) for name in table.columns]
    table = table.where(table.notna(), None)
    for number, row in enumerate(table.itertuples(index=False), 1):
        yield number, list(map(cell_text, row))


def _row(cells: Cells, where: str, base: Path) -> Row:
    """A row with the id of its video: the path without the suffix of a video file."""
    path = cells["path"].replace("\\", "/")
    if path.startswith(f"{base.absolute()}/"):
        path = path[len(f"{base.absolute()}/") :]
    parts = [part for part in path.split("/") if part not in ("", ".")]
    outside = path.startswith("/") or ".." in parts or not parts or parts[0].endswith(":")
    if outside or len(path) > LINE_MAX:
        raise RefusedError(
            f"{where}: path {path[:SHOWN_LETTERS]!r} is not below {base}; paths start from the "
            "root, or from the folder that --source names"
        )
    path = "/".join(parts)
    video_id = os.path.splitext(path)[0] if _is_video(path) else path
    return Row(video_id, cells["label"], where, path=path)


def _refuse_repeated(rows: Iterable[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        same = seen.setdefault(unicodedata.normalize("NFC", row.id), row)
        if same is not row:
            how = "" if same.id == row.id else f" as {same.id!a}, here as {row.id!a}"
            raise RefusedError(
                f"{row.where}: video {row.id} is listed twice, first in {same.where}{how}"
            )


def _refuse_strange_labels(rows: Sequence[Row], places: Mapping[str, Place]) -> None:
    """Refuse columns in another order, and a first row that names them in other words."""
    for row in rows:
        if any(map(_is_video, row.label.split())):
            raise RefusedError(f"{row.where}: the label {row.label!r} is a video; {NAME_THEM}")
    first = rows[0]
    if first.id not in places and [row.label for row in rows].count(first.label) == 1 < len(rows):
        raise RefusedError(
            f"{first.where}: there is no video {first.path!r}, and no other row has the label "
            f"{first.label!r}: if these are columns, call them path and label; if not, put a line "
            "path,label before it"
        )


def _classes(rows: Sequence[Row], file: Path, given: Sequence[str] | None) -> _Classes:
    numbered, words = list[Row](), list[Row]()
    for row in rows:
        (numbered if re.fullmatch(r"-?[0-9]{1,9}", row.label) else words).append(row)
    if words and not {row.label for row in numbered} <= {*(given or ())}:
        odd, what = numbered[0], "a number, and others are words"
        if len(words) < len(numbered):
            odd, what = words[0], "no whole number, and others are"
        raise RefusedError(
            f"{odd.where}: the label {odd.label} is {what}; write all as numbers, or as the names "
            "of the classes"
        )
    numbers = not words
    if numbers and given is None:
        raise RefusedError(
            f"{file}: the labels are numbers; say which classes they are, in their order, with "
            "--texts FILE (tgdfer data init writes one to fill in)"
        )
    if given is not None:
        return _Classes(tuple(given), class_base(rows, file, given) if numbers else None)
    names = {row.id: full_class_name(row.label) for row in rows}
    refuse_spellings(names, file)
    return _Classes(tuple(sorted({*names.values()}, key=natural_key)), None)


def _frame_labels(cell: str, classes: _Classes, row: Row) -> NDArray[np.int8]:
    """Labels of the frames of a video, from 0; -1 for a frame that shows none of the classes."""
    words = map(_bare, re.split(r"[\s;]+", cell))
    return np.array([-1 if w == "-" else classes.index(w, row) for w in words], np.int8)


def _votes(cell: str, classes: _Classes, row: Row) -> Votes:
    try:
        votes = tuple(map(float, re.split(r"[\s;]+", cell)))
    except ValueError:
        votes = ()
    if len(votes) != len(classes.names) or not all(0 <= vote < 1e9 for vote in votes):
        raise RefusedError(
            f"{row.where}: votes {cell[:SHOWN_LETTERS]!r}; expected {len(classes.names)} numbers, "
            f"for {', '.join(classes.names)}; leave out votes for other classes"
        )
    return votes


def _folds(
    cells_of: Mapping[str, Cells], rows: Mapping[str, Row], file: Path
) -> tuple[tuple[Fold, ...], dict[str, frozenset[str]]]:
    """The folds, and the subsets, that the columns fold or split give; none if there is neither."""
    found = {name: {i: c[name] for i, c in cells_of.items() if name in c} for name in COLUMNS[2:4]}
    if found["split"] and found["fold"]:
        raise RefusedError(f"{file}: both a column split and a column fold; keep one")
    for name, cells in found.items():
        if cells and len(cells) < len(cells_of):
            row = rows[next(i for i in cells_of if i not in cells)]
            raise RefusedError(f"{row.where}: video {row.id} has no {name}, others have one")
    if found["fold"]:
        tested = {i: _number(fold) for i, fold in found["fold"].items()}
        _refuse_no_folds(tested, rows)
        refuse_spellings(tested, file, "fold")
        folds = folds_of_tests(tested)
        if not folds:
            raise RefusedError(
                f"{file}: all videos are tested in one fold, {min(found['fold'].values())}, so "
                "there is none to train on: use a column split, or none and --folds 5"
            )
        return folds, {}
    if not found["split"]:
        return (), {}
    parts = {video_id: part_of(cell) for video_id, cell in found["split"].items()}
    wrong = [i for i, part in parts.items() if part is None]
    if wrong:
        raise RefusedError(
            f"{rows[wrong[0]].where}: video {wrong[0]} has split {found['split'][wrong[0]]!r}; "
            "expected train, validation or test"
        )
    test = "test" if "test" in parts.values() else "validation"
    return split_fold({i: str(part) for i, part in parts.items()}, test, file)


def _refuse_no_folds(fold_of: Mapping[str, str], rows: Mapping[str, Row]) -> None:
    """Refuse parts, and words and other signs if there are folds with numbers."""
    first: dict[str, str] = {}
    for video_id, fold in fold_of.items():
        first.setdefault(fold, video_id)
    numbered = [fold for fold in first if spelling(fold).isdecimal()]
    for fold, video_id in first.items():
        if numbered and not spelling(fold).isdecimal():
            raise RefusedError(
                f"{rows[video_id].where}: fold {fold!r} has no number that is one of a fold, as "
                f"{numbered[0]!r} has: number all of them, or none"
            )
        if part_of(fold) == "train":
            raise RefusedError(
                f"{rows[video_id].where}: fold {fold!r} is a part and no fold; call the "
                "column split"
            )


def _number(fold: str) -> str:
    """Folds 1 and 01 are one, in the digits of any script."""
    plain = unicodedata.normalize("NFKC", fold)
    return str(int(plain)) if re.fullmatch(r"\d{1,9}", plain) else fold


def _locate(rows: Iterable[Row], base: Path) -> dict[str, Place]:
    """Where the videos are; every folder is scanned once."""
    names: dict[str, dict[str, list[os.DirEntry[str]]]] = {}
    places = {}
    for row in rows:
        folder, _, name = f"./{row.path}".rpartition("/")
        if folder not in names:
            names[folder] = _entries(base, folder)
        entries = names[folder].get(name, [])
        if len(entries) > 1:
            either = " and ".join(sorted(entry.name for entry in entries))
            raise RefusedError(
                f"{row.where}: {row.path} could be {either}; add the suffix, or move one away"
            )
        entry = entries[0] if entries else None
        if entry is not None and (entry.is_dir() or entry.is_file()):
            if entry.is_symlink():
                refuse_outside(base, entry.path)
            place = place_at(entry.path, entry.is_dir(), base)
            if place is not None:
                places[row.id] = place
    return places


def _entries(base: Path, folder: str) -> dict[str, list["os.DirEntry[str]"]]:
    """What a folder holds, by name; video files also by their names without the suffix."""
    where = base / folder
    if not where.is_dir():
        return {}
    refuse_outside(base, where)
    with os.scandir(where) as found:
        entries = list(found)
    stems: dict[str, list[os.DirEntry[str]]] = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() in VIDEO_SUFFIXES:
            stems.setdefault(stem, []).append(entry)
    both = {e.name: [e, *(stems.get(e.name, []) if e.is_dir() else [])] for e in entries}
    return stems | both
