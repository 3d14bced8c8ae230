"""A list of one's own -> Survey: CSV, TSV, text or Parquet, with columns for what is known.

    path,label,split,subject
    clips/a 1.mp4,bored,train,anna
    frames/b2,Happy,test,ben

``path`` is a video file (its suffix may be left out) or a folder of images, below the root;
``label`` is a name or a number. Optional are ``split`` (train, validation, test) or ``fold`` (the
fold that tests the video), ``subject``, ``frame_labels`` (one label per frame, "-" for none) and
``votes`` (one number per class), the last two separated by spaces or semicolons. A list without a
header has rows of path and label, parsed from the right.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.outside import read_outside, read_text
from pipeline.datasets.folds import folds_of_tests
from pipeline.datasets.known import full_class_name
from pipeline.datasets.labels import check_votes, label_base
from pipeline.datasets.named import part_of, split_fold
from pipeline.datasets.rows import LINE_MAX, SHOWN_LETTERS, Row, cell_text
from pipeline.datasets.survey import LIST_BYTES_MAX, Survey
from pipeline.datasets.tree import Found, Place, place_at, refuse_outside
from pipeline.datasets.videos import VIDEO_SUFFIXES, Fold, natural_key

FILES = ("list.csv", "list.tsv", "list.txt", "list.parquet")
COLUMNS = ("path", "label", "split", "fold", "subject", "frame_labels", "votes")
Cells = Mapping[str, str]  # of one row, by column; empty ones are left out


@dataclass(frozen=True)
class _Classes:
    """The classes of a list, and how its labels name them: by words, or by numbers from a base."""

    names: tuple[str, ...]
    base: int | None

    def index(self, label: str, row: Row) -> int:
        """The index of the class of a label."""
        if self.base is not None and re.fullmatch(r"-?[0-9]{1,9}", label):
            return int(label) - self.base
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
    read = [(_row(cells, where, base), cells) for where, cells in _read(file)]
    _refuse_repeated([row for row, _ in read])
    read.sort(key=lambda both: natural_key(both[0].id))
    rows = {row.id: row for row, _ in read}
    cells_of = {row.id: cells for row, cells in read}
    known = _classes([*rows.values()], file, classes)
    labels = {video_id: known.index(row.label, row) for video_id, row in rows.items()}
    votes = {i: _votes(c["votes"], known, rows[i]) for i, c in cells_of.items() if "votes" in c}
    check_votes({i: Row(i, "", rows[i].where, votes.get(i)) for i in rows}, labels)
    folds, subsets = _folds(cells_of, file)
    return Survey(
        name="list",
        root=root,
        classes=known.names,
        labels=labels,
        folds=folds,
        found=Found("." if base == root else str(base), _locate(rows, base)),
        lists=file,
        files=(file,),
        subjects={i: c["subject"] for i, c in cells_of.items() if "subject" in c},
        subsets=subsets,
        frames={
            i: (_frame_labels(c["frame_labels"], known, rows[i]), None)
            for i, c in cells_of.items()
            if "frame_labels" in c
        },
        votes=votes,
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


def _read(file: Path) -> Iterator[tuple[str, Cells]]:
    """(file:line, cells) of every row."""
    if file.suffix.lower() == ".parquet":
        table = _parquet_rows(file)
    else:
        text = read_text(file, "a list of videos and their labels", LIST_BYTES_MAX)
        table = _text_rows(text, file) if file.suffix.lower() == ".txt" else csv_rows(text, file)
    header: list[str] = []
    for line, row in table:
        if not header:
            header = _header(row)
            if [name.strip().lower() for name in row] == header:
                continue
        if len(row) != len(header):
            raise RefusedError(
                f"{file}:{line}: {len(row)} cells, expected {len(header)} ({', '.join(header)})"
            )
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True) if cell.strip()}
        if "path" not in cells or "label" not in cells:
            raise RefusedError(f"{file}:{line}: a row without a path or a label")
        yield f"{file}:{line}", cells
    if not header:
        raise RefusedError(f"{file}: the list has no videos")


def _header(first: Sequence[str]) -> list[str]:
    """The columns of a list; path and label if its first row names none."""
    names = [name.strip().lower() for name in first]
    if "path" not in names and "label" not in names:
        return ["path", "label"]
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or len({*names}) < len(names) or not {"path", "label"} <= {*names}:
        raise RefusedError(
            f"the columns are {', '.join(names)}; expected path, label and some of "
            f"{', '.join(COLUMNS[2:])}"
        )
    return names


def csv_rows(text: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty, separated by what the first line has most."""
    first = text.partition("\n")[0]
    delimiter = max("\t,;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise RefusedError(f"{file}:{line}: {error}") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield line, row


def _text_rows(text: str, file: Path) -> Iterator[tuple[int, list[str]]]:
    for line, row in enumerate(text.splitlines(), 1):
        if row.strip():
            yield line, ["", *row.strip().rsplit(maxsplit=1)][-2:]


def _parquet_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    data = read_outside(file, "a list of videos and their labels in Parquet", LIST_BYTES_MAX)
    import pandas as pd

    try:
        table = pd.read_parquet(io.BytesIO(data))
    except ImportError:
        raise RefusedError(
            f"{file}: reading Parquet needs pyarrow; install it (pip install pyarrow), or save the "
            "list as CSV"
        ) from None
    except (ValueError, OSError) as error:
        raise RefusedError(f"{file}: cannot be read as Parquet: {error}") from None
    yield 0, [str(name) for name in table.columns]
    for number, row in enumerate(table.itertuples(index=False), 1):
        yield number, list(map(cell_text, row))


def _row(cells: Cells, where: str, base: Path) -> Row:
    """A row with the id of its video: the path without the suffix of a video file."""
    path = cells["path"].replace("\\", "/")
    if path.startswith(f"{base.absolute()}/"):
        path = path[len(f"{base.absolute()}/") :]
    parts = path.rstrip("/").split("/")
    if {"", ".", ".."} & {*parts} or parts[0].endswith(":") or len(path) > LINE_MAX:
        raise RefusedError(
            f"{where}: path {path[:SHOWN_LETTERS]!r} is not below {base}; paths start from the "
            "root, or from the folder that --source names"
        )
    stem, suffix = os.path.splitext("/".join(parts))
    video_id = stem if suffix.lower() in VIDEO_SUFFIXES else "/".join(parts)
    return Row(video_id, cells["label"], where, path="/".join(parts))


def _refuse_repeated(rows: Iterable[Row]) -> None:
    seen: dict[str, Row] = {}
    for row in rows:
        same = seen.setdefault(row.id, row)
        if same is not row:
            raise RefusedError(
                f"{row.where}: video {row.id} is listed twice, first in {same.where}"
            )


def _classes(rows: Sequence[Row], file: Path, given: Sequence[str] | None) -> _Classes:
    numbers = all(re.fullmatch(r"-?[0-9]{1,9}", row.label) for row in rows)
    if numbers and given is None:
        raise RefusedError(
            f"{file}: the labels are numbers; say which classes they are, in their order, with "
            "--texts FILE (tgdfer data init writes one to fill in)"
        )
    if given is not None:
        return _Classes(tuple(given), label_base(rows, file, len(given)) if numbers else None)
    names = {full_class_name(row.label) for row in rows}
    return _Classes(tuple(sorted(names, key=natural_key)), None)


def _frame_labels(cell: str, classes: _Classes, row: Row) -> NDArray[np.int8]:
    """Labels of the frames of a video, from 0; -1 for a frame that shows none of the classes."""
    last = len(classes.names) - 1
    labels = [-1 if c == "-" else classes.index(c, row) for c in re.split(r"[\s;]+", cell)]
    if not -1 <= min(labels) <= max(labels) <= last:
        raise RefusedError(f"{row.where}: a frame label is none of the {last + 1} classes")
    return np.array(labels, np.int8)


def _votes(cell: str, classes: _Classes, row: Row) -> tuple[float, ...]:
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
    cells_of: Mapping[str, Cells], file: Path
) -> tuple[tuple[Fold, ...], dict[str, frozenset[str]]]:
    """The folds, and the subsets, that the columns fold or split give; none if there is neither."""
    found = {name: {i: c[name] for i, c in cells_of.items() if name in c} for name in COLUMNS[2:4]}
    if found["split"] and found["fold"]:
        raise RefusedError(f"{file}: both a column split and a column fold; keep one")
    for name, cells in found.items():
        if cells and len(cells) < len(cells_of):
            video_id = next(i for i in cells_of if i not in cells)
            raise RefusedError(f"{file}: video {video_id} has no {name}, others have one")
    if found["fold"]:
        return folds_of_tests(found["fold"]), {}
    if not found["split"]:
        return (), {}
    parts = {video_id: part_of(cell) for video_id, cell in found["split"].items()}
    wrong = [i for i, part in parts.items() if part is None]
    if wrong:
        raise RefusedError(
            f"{file}: video {wrong[0]} has split {found['split'][wrong[0]]!r}; expected train, "
            "validation or test"
        )
    test = "test" if "test" in parts.values() else "validation"
    return split_fold({i: str(part) for i, part in parts.items()}, test, file)


def _locate(rows: Mapping[str, Row], base: Path) -> dict[str, Place]:
    """Where the videos are; every folder is scanned once."""
    names: dict[str, dict[str, list[os.DirEntry[str]]]] = {}
    places = {}
    for video_id, row in rows.items():
        folder, _, name = f"./{row.path}".rpartition("/")
        if folder not in names:
            names[folder] = _entries(base, folder)
        entries = names[folder].get(name, [])
        if len(entries) > 1:
            either = " and ".join(sorted(entry.name for entry in entries))
            raise RefusedError(f"{row.where}: {row.path} could be {either}; add the suffix")
        entry = entries[0] if entries else None
        if entry is not None and (entry.is_dir() or entry.is_file()):
            if entry.is_symlink():
                refuse_outside(base, entry.path)
            place = place_at(entry.path, entry.is_dir(), base)
            if place is not None:
                places[video_id] = place
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
    return stems | {entry.name: [entry] for entry in entries}
