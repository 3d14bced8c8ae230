"""A DFEW tree as users have it -> VideoList: official split, frame folders or videos, labels.

What is read (the names vary between copies; each part is required):

    ROOT/EmoLabel_DataSplit/train(single-labeled)/set_1.csv     video_name,label
    ROOT/EmoLabel_DataSplit/test(single-labeled)/set_1.csv      2522,6
    ROOT/Clip/clip_224x224/02522/*.jpg                          or Clip/original/02522.mp4

Beside the lists there may be ground truth that DFEW itself lacks: ``truth.json`` (``subjects``:
id -> subject, ``subsets``: name -> ids) and ``frames.csv`` (``video_name,frame,label,intensity``;
frames and labels count from 1, label 0 marks a frame that shows none of the classes, intensities
are from 0 to 1).

All these files are somebody else's: every one is text in UTF-8 of limited size, and nothing is read
through a link that leaves the folder.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from cache.errors import RefusedError
from cache.outside import MIB, read_text
from pipeline.datasets.videos import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Fold,
    Video,
    VideoList,
    cut_folds,
)

CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")

# Frame folders before videos: they are the faces that published work uses.
FRAME_SOURCES = (
    "Clip/clip_224x224",
    "Clip/jpg_256",
    "Clip/clip_jpg_256",
    "clip_224x224",
    "jpg_256",
    "clip_jpg_256",
    "DFEW_Frame_Face",
    "DFEW_Face",
    "data_affine/single_label/data",
)
VIDEO_SOURCES = ("Clip/original", "original", "Clip/clip_224x224_avi", "clip_224x224_avi")
# Sixteen frames interpolated in time: different data, so never chosen unless asked for.
INTERPOLATED_SOURCES = (
    "Clip/clip_224x224_16f",
    "Clip/clip_224x16f",
    "clip_224x224_16f",
    "clip_224x16f",
)
SHOWN = 10  # how many of many faults a message names
LIST_BYTES_MAX, TRUTH_BYTES_MAX = 16 * MIB, 64 * MIB  # DFEW's lists have 0.2 MiB
SHOWN_LETTERS = 80  # of a line that is quoted in a message
LINE_MAX = 4096  # characters of a row, as many as a path may have
FRAMES_HEADER = "video_name,frame,label,intensity"


@dataclass(frozen=True)
class Count:
    """What became of the rows of one fold, part ("train" or "test") and class."""

    fold: str
    part: str
    label: str
    listed: int
    found: int
    missing: int
    used: int


@dataclass(frozen=True)
class Accounting:
    """Every listed video accounted for; ``used`` is 0 throughout while anything is missing."""

    source: str
    counts: tuple[Count, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    id: str
    label: int  # as written
    where: str  # file:line


@dataclass(frozen=True)
class _Survey:
    """A tree after every check except that for missing videos."""

    folds: tuple[Fold, ...]
    labels: Mapping[str, int]  # id -> label from 0, in the order of the rows
    source: str
    paths: Mapping[str, Path]
    lists: Path

    def missing(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Those of ``ids`` that have no frames."""
        return tuple(video_id for video_id in ids if video_id not in self.paths)


def read_dfew(
    root: Path,
    annotation: Path | None = None,
    source: str = "auto",
    limit: int | None = None,
    classes: Sequence[str] = CLASSES,
) -> VideoList:
    """Read the official split under ``root`` and find the first ``limit`` listed videos, or all.

    ``annotation`` is the folder of the lists if it is not below ``root``. ``source`` names the
    root of frames or videos to use ("clip_224x224", "original", …); "auto" prefers frame folders.
    ``classes`` are others for another data set in this layout, in the order of its labels.
    Raises RefusedError for anything missing, duplicate or contradictory: nothing is dropped.
    """
    survey = _survey(root, annotation, source, len(classes))
    kept = dict(islice(survey.labels.items(), limit))
    missing = survey.missing(kept)
    if missing:
        raise RefusedError(
            f"{root}: {len(missing)} of {len(kept)} listed videos have no frames "
            f"in {survey.source}: {_some(missing)}; complete the copy, "
            "or remove the ids from the lists"
        )
    truth = _read_truth(survey.lists, survey.labels)
    frames = _read_frame_truth(survey.lists, survey.labels)
    videos = tuple(
        Video(
            video_id,
            survey.paths[video_id],
            label,
            truth.subjects.get(video_id),
            *frames.get(video_id, (None, None)),
        )
        for video_id, label in kept.items()
    )
    folds = cut_folds(survey.folds, kept)
    cut = {name: ids & kept.keys() for name, ids in truth.subsets.items()}
    return VideoList("dfew", tuple(classes), videos, folds, cut, survey.source)


def account_dfew(root: Path, annotation: Path | None = None, source: str = "auto") -> Accounting:
    """Count listed, found, missing and used videos per fold, part and class.

    Unlike ``read_dfew`` it does not refuse a tree with missing videos: it shows them.
    """
    survey = _survey(root, annotation, source, len(CLASSES))
    missing = set(survey.missing(survey.labels))
    counts = []
    for fold in survey.folds:
        for part, ids in (("train", fold.train), ("test", fold.test)):
            listed = Counter(survey.labels[i] for i in ids)
            lost = Counter(survey.labels[i] for i in ids if i in missing)
            for k, name in enumerate(CLASSES):
                found = listed[k] - lost[k]
                used = 0 if missing else found
                counts.append(Count(fold.name, part, name, listed[k], found, lost[k], used))
    return Accounting(survey.source, tuple(counts), survey.missing(survey.labels))


def _survey(root: Path, annotation: Path | None, source: str, classes: int) -> _Survey:
    _refuse_empty(root)
    lists, files = _find_lists(root, annotation)
    rows = {key: _read_rows(path) for key, path in files.items()}
    base = _label_base([row for part in rows.values() for row in part], lists, classes)
    labels = _merge_labels(rows, base)
    folds = _make_folds(rows)
    name, paths = _find_videos(root, source, labels)
    return _Survey(folds, labels, name, paths, lists)


def _refuse_empty(root: Path) -> None:
    if not root.is_dir():
        raise RefusedError(
            f"{root}: no such folder; --root is the folder that holds EmoLabel_DataSplit and Clip"
        )
    if not any(root.iterdir()):
        raise RefusedError(
            f"{root}: the folder is empty; unpack EmoLabel_DataSplit and Clip into it"
        )


def _find_lists(root: Path, annotation: Path | None) -> tuple[Path, dict[tuple[int, str], Path]]:
    """The folder of the lists and its files by (fold, part)."""
    if annotation is not None:
        candidates = [annotation]
    else:
        below = sorted(path for path in root.iterdir() if path.is_dir())
        candidates = [root / "EmoLabel_DataSplit", *(p / "EmoLabel_DataSplit" for p in below), root]
    for candidate in candidates:
        files = _list_files(candidate)
        if files:
            for path in files.values():
                _refuse_outside(annotation or root, path)
            _refuse_unpaired(candidate, files)
            return candidate, files
    raise RefusedError(
        f"{root}: no annotation; looked in {', '.join(str(c) for c in candidates[:SHOWN])} for "
        "train(single-labeled)/set_1.csv and similar files; unpack EmoLabel_DataSplit there, "
        "or name its folder with --annotation"
    )


def _list_files(folder: Path) -> dict[tuple[int, str], Path]:
    """Files whose own name, or their folder's, says which part and which set they are."""
    files: dict[tuple[int, str], Path] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix.lower() not in (".csv", ".txt") or path.name.startswith("."):
            continue
        number = re.search(r"set_?(\d+)", path.stem.lower())
        own_part = re.search(r"train|test", path.stem.lower())
        part = own_part or re.search(r"train|test", path.parent.name.lower())
        if number is None or part is None or (own_part is None and path.parent == folder):
            continue
        key = (int(number[1]), part[0])
        if key in files:
            raise RefusedError(
                f"{files[key]} and {path}: both are the {key[1]} list of set {key[0]}; "
                "keep one, or name its folder with --annotation"
            )
        files[key] = path
    return files


def _refuse_unpaired(folder: Path, files: Iterable[tuple[int, str]]) -> None:
    keys = set(files)
    for number, part in sorted(keys):
        other = "test" if part == "train" else "train"
        if (number, other) not in keys:
            raise RefusedError(f"{folder}: set {number} has a {part} list but no {other} list")


def _read_rows(path: Path) -> list[_Row]:
    """Rows of one list, parsed from the right; a first line without a number is a header."""
    rows: list[_Row] = []
    lines: dict[str, int] = {}
    text = read_text(path, "a list of videos and their labels", LIST_BYTES_MAX)
    # splitlines handles CRLF and a missing final newline.
    numbered = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in numbered:
        row = _parse_row(line, f"{path}:{number}")
        if row is None:
            if number == numbered[0][0] and not re.search(r"\d", line) and len(line) < LINE_MAX:
                continue
            raise RefusedError(
                f"{path}:{number}: {line[:SHOWN_LETTERS]!r} is not a row; expected "
                "'video_name,label' or 'path/to/02522 frames label'"
            )
        if row.id in lines:
            raise RefusedError(
                f"{path}:{number}: video {row.id} is listed twice, first in line {lines[row.id]}"
            )
        lines[row.id] = number
        rows.append(row)
    if not rows:
        raise RefusedError(f"{path}: the list has no videos")
    return rows


def _parse_row(line: str, where: str) -> _Row | None:
    """``2522,6``, ``02522 5`` or ``D:/my faces/02522 66 5``; None if it is none of these.

    Nothing of the path is used but the number at its end.
    """
    if len(line) > LINE_MAX:
        return None
    if line.count('"') % 2:
        raise RefusedError(f"{where}: a quote is not closed in {line[:SHOWN_LETTERS]!r}")
    if "," in line:
        name, _, label = (part.strip().strip('"') for part in line.rpartition(","))
    else:
        # A frame count may precede the label; the path may contain spaces.
        match = re.fullmatch(r"(.*?\S)(?:\s+\d+)?\s+(-?\d+)", line)
        if match is None:
            return None
        name, label = match[1], match[2]
    stem = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    digits = re.fullmatch(r"([0-9]{1,9})(\.\w+)?", stem)
    if digits is None or not re.fullmatch(r"-?[0-9]{1,9}", label):
        return None
    return _Row(f"{int(digits[1]):05d}", int(label), where)


def _label_base(rows: list[_Row], lists: Path, classes: int) -> int:
    """1 for the official files, 0 for copies that count from 0; both ends must occur to tell."""
    low = min(rows, key=lambda row: row.label)
    high = max(rows, key=lambda row: row.label)
    last = classes - 1
    if (low.label, high.label) == (0, last):
        return 0
    if (low.label, high.label) == (1, last + 1):
        return 1
    raise RefusedError(
        f"{lists}: labels run from {low.label} ({low.where}) to {high.label} ({high.where}); "
        f"expected 1 to {last + 1} (official) or 0 to {last}, to be certain which class is which"
    )


def _merge_labels(rows: Mapping[tuple[int, str], list[_Row]], base: int) -> dict[str, int]:
    """One label per video, from 0, in the order of the ids; contradictions are refused."""
    first: dict[str, _Row] = {}
    for row in (row for part in rows.values() for row in part):
        known = first.setdefault(row.id, row)
        if known.label != row.label:
            raise RefusedError(
                f"{row.where}: video {row.id} has label {row.label}, "
                f"but label {known.label} in {known.where}"
            )
    return {video_id: first[video_id].label - base for video_id in sorted(first)}


def _make_folds(rows: Mapping[tuple[int, str], list[_Row]]) -> tuple[Fold, ...]:
    folds = []
    for number in sorted({number for number, _ in rows}):
        train = {row.id: row for row in rows[number, "train"]}
        for row in rows[number, "test"]:
            if row.id in train:
                raise RefusedError(
                    f"{row.where}: test video {row.id} is also a training video, "
                    f"{train[row.id].where}"
                )
        test = tuple(row.id for row in rows[number, "test"])
        folds.append(Fold(str(number), tuple(train), test))
    return tuple(folds)


def _find_videos(root: Path, source: str, labels: Iterable[str]) -> tuple[str, dict[str, Path]]:
    """The source's name and the path of every listed video that it holds."""
    known = [*FRAME_SOURCES, *VIDEO_SOURCES, *INTERPOLATED_SOURCES]
    if source == "auto":
        wanted = [*FRAME_SOURCES, *VIDEO_SOURCES]
    else:
        wanted = [name for name in known if source in (name, Path(name).name)] or [source]
    present = [name for name in wanted if (root / name).is_dir() and any((root / name).iterdir())]
    if not present:
        there = [name for name in known if (root / name).is_dir()]
        raise RefusedError(
            f"{root}: no frames or videos for source {source!r}; looked for {', '.join(wanted)}; "
            + (
                f"{', '.join(there)} holds interpolated frames, which are other data; unpack "
                "Clip/original or Clip/clip_224x224"
                if there
                else "unpack Clip"
            )
        )
    name = present[0]
    folder = root / name
    doubled = folder / folder.name
    if doubled.is_dir():
        folder = doubled
    _refuse_outside(root, folder)
    index = _index_folder(folder, root)
    return name, {video_id: index[video_id] for video_id in labels if video_id in index}


def _index_folder(folder: Path, root: Path) -> dict[str, Path]:
    """Five-digit id -> video file, or folder that holds at least one frame."""
    index: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if not re.fullmatch(r"[0-9]{1,9}", stem):
                continue
            if entry.is_symlink():
                _refuse_outside(root, Path(entry.path))
            is_video = suffix.lower() in VIDEO_SUFFIXES and entry.is_file()
            if not is_video and not (entry.is_dir() and _holds_frames(entry.path, root)):
                continue
            video_id = f"{int(stem):05d}"
            if video_id in index:
                raise RefusedError(f"{folder}: {index[video_id].name} and {entry.name} share an id")
            index[video_id] = Path(entry.path)
    return index


def _holds_frames(folder: str, root: Path) -> bool:
    with os.scandir(folder) as entries:
        frames = [e for e in entries if os.path.splitext(e.name)[1].lower() in IMAGE_SUFFIXES]
    for frame in frames:
        if frame.is_symlink():
            _refuse_outside(root, Path(frame.path))
    return bool(frames)


def _refuse_outside(root: Path, path: Path) -> None:
    """Refuse a path that links lead out of ``root``, which may be a link itself."""
    real = os.path.realpath(path)
    if os.path.commonpath([real, os.path.realpath(root)]) != os.path.realpath(root):
        raise RefusedError(
            f"{path}: a link to {real}, which is not in {root}; copy the files there, or name the "
            "folder that they are in with --root, and that of the lists with --annotation"
        )


class _Truth(BaseModel):
    """``truth.json``."""

    subjects: dict[str, str] = {}
    subsets: dict[str, frozenset[str]] = {}


def _read_truth(lists: Path, labels: Mapping[str, int]) -> _Truth:
    path = lists / "truth.json"
    if not os.path.lexists(path):
        return _Truth()
    _refuse_outside(lists, path)
    text = read_text(path, "ground truth in JSON", TRUTH_BYTES_MAX)
    try:
        truth = _Truth.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(f"{path}: {where or 'not JSON'}: {first['msg']}") from None
    unknown = set(truth.subjects).union(*truth.subsets.values()) - set(labels)
    if unknown:
        raise RefusedError(f"{path}: names videos in no list: {_some(sorted(unknown))}")
    return truth


def _read_frame_truth(
    lists: Path, labels: Mapping[str, int]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels (int8, from 0, -1 for none) and intensities (float32) of every video's frames."""
    path = lists / "frames.csv"
    if not os.path.lexists(path):
        return {}
    _refuse_outside(lists, path)
    rows: dict[str, list[tuple[int, float]]] = {}
    lines = StringIO(read_text(path, f"rows of {FRAMES_HEADER}", TRUTH_BYTES_MAX), None)
    if next(lines, "").strip() != FRAMES_HEADER:
        raise RefusedError(f"{path}:1: expected the header {FRAMES_HEADER}")
    for number, line in enumerate(lines, start=2):
        if line.strip():
            try:
                video_id, frame, label, intensity = _parse_frame(line.strip())
                frames = rows.setdefault(video_id, [])
                if video_id not in labels or frame != len(frames) + 1:
                    raise ValueError(
                        f"video {video_id} is in no list, or its frames are not 1, 2, 3, …"
                    )
            except ValueError as error:
                raise RefusedError(f"{path}:{number}: {error}") from None
            frames.append((label, intensity))
    return {
        video_id: (
            np.array([label - 1 for label, _ in frames], np.int8),
            np.array([intensity for _, intensity in frames], np.float32),
        )
        for video_id, frames in rows.items()
    }


def _parse_frame(line: str) -> tuple[str, int, int, float]:
    """``00001,12,3,0.5``: video, frame, label, intensity; raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9.eE+-]{1,32})", line)
    if found is None:
        raise ValueError(f"{line[:SHOWN_LETTERS]!r} is not a row; expected {FRAMES_HEADER}")
    label, intensity = int(found[3]), float(found[4])
    if label > len(CLASSES) or not 0 <= intensity <= 1:
        raise ValueError(
            f"label {label}, intensity {intensity:g}; expected labels from 0 to {len(CLASSES)} and "
            "intensities from 0 to 1"
        )
    return found[1], int(found[2]), label, intensity


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
