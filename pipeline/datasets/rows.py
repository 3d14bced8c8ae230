"""Lists as users have them -> which file is the list of which fold and part, and its rows.

Rows are parsed from the right, since paths may contain spaces and drives of other machines.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cache.errors import RefusedError
from cache.outside import MIB, read_outside, read_text
from pipeline.datasets.known import WORDS, class_of_word, full_class_name
from pipeline.datasets.tree import LIST_SUFFIXES, Tree, count_images, refuse_outside
from pipeline.datasets.videos import VIDEO_SUFFIXES, Fold

LIST_BYTES_MAX = 256 * MIB  # DFEW's lists have 0.2 MiB, but one's own may have labels of frames
SHOWN_LETTERS = 80  # of a line that is quoted in a message
LINE_MAX = 4096  # characters of a row, as many as a path may have
PARTS = ("train", "test")
# How public repositories spell the data sets in the names of lists.
NAMES = ("dfew", "ferv39k", "mafw", "mfaw", "afew", "caer", "crema", "ravdess", "enterface")

LEVELS = 6  # of folders below --annotation; MAFW's lists are in the fifth below its root

_PART = r"(?:train(?:ing)?|test(?:ing)?|val(?:id|idation)?)"
_WORD = rf"(?:(?:{'|'.join(NAMES)}|{_PART}|single)_?)*(?:set|split|fold|fd|cv)_?([0-9]{{1,2}})"
_NUMBER_OF_FOLDER = re.compile(rf"{_WORD}|.*_fold_?([0-9]{{1,2}})")
# set_1_train, single_trainset_1, fold1_test; or train_1, where train_80 is no fold but a share.
_NUMBER_IN_STEM = re.compile(
    rf"(?:^|_)(?<!data_)(?<!sub_){_WORD}(?=_|$|{_PART})|{_PART}_?(0?[0-9]|10)$"
)
# f3_train, trainlist03, part3/: perhaps, but not FERV39K_train, 22_scenes/ or dfew_16f_train.
_LIKE_A_FOLD = re.compile(
    rf"(?:.*_)?[a-z]?[0-9]{{1,2}}_{_PART}|{_PART}(?:list_?|_)[a-z]?[0-9]{{1,2}}"
)
_FOLDER_LIKE_A_FOLD = re.compile(r"(?:f|k|part|partition|round|run)[-_ ]?[0-9]{1,2}")
_FRAMES = re.compile(r"(?!(19|20)[0-9]{2}$)[0-9]{3,}")  # a folder of frames, and not of a year
_NUMBER_AT_END = re.compile(r"(?:.*[/\\])?([0-9]{1,9})(?:\.\w+)?[/\\]*", re.DOTALL)

_WHOLE = re.compile(r"(?<=[0-9])\.0+$")  # of 2.0, which is 2

Key = tuple[int, str]  # the number of a fold, and "train" or "test"
Votes = tuple[float, ...]  # one number per class


class Row(NamedTuple):
    """One row of a list; ``where`` is its file and line."""

    id: str
    label: str  # as written, but 2 for 2.0
    where: str
    votes: Votes | None = None
    path: str = ""  # as written


@dataclass(frozen=True)
class ListFormat:
    """How a data set's lists name videos and labels.

    ``id_of`` gets a path as written and gives the video's id, or None if it is none; ``label`` is
    the pattern of a label. Rows may end in one vote per class or, with ``captions``, in prose that
    is not read.
    """

    id_of: Callable[[str], str | None]
    label: re.Pattern[str]
    classes: int
    expected: str
    name: str  # of the data set
    encoding: str = ""  # of lists that are not UTF-8, if that is known
    captions: bool = False


@dataclass(frozen=True)
class Lists:
    """The lists of a data set, and the folder that they are in."""

    folder: Path
    files: Mapping[Key, Path]
    sheets: tuple[Path, ...] = ()  # of Excel, in which there may be votes
    notes: tuple[str, ...] = ()  # which lists were left out


def find_lists(
    tree: Tree,
    annotation: Path | None,
    name: str,
    prefer: Sequence[str],
    wanted: str,
    aside: str = "",
) -> Lists:
    """The lists of the data set ``name`` by fold and part, below ``annotation`` or in the tree.

    Lists in a folder called as in ``prefer`` come first; those whose path says ``aside`` are left
    out if there are others. ``wanted`` says in an error what to look for. Raises RefusedError if
    there is none, or if several are of one fold and part.
    """
    tree.refuse_links(prefer)
    root = annotation or tree.root
    if annotation is not None and not annotation.is_dir():
        raise RefusedError(f"{annotation}: no such folder; --annotation is the folder of the lists")
    paths = sorted(_files_below(annotation) if annotation is not None else tree.lists)
    if annotation is None and not any(_key(path.relative_to(root).parts) for path in paths):
        paths += _lists_in_numbers(tree)
    sheets = tuple(path for path in paths if path.suffix.lower() == ".xlsx")
    above = os.path.basename(os.path.abspath(annotation)) if annotation is not None else ""
    keyed: list[tuple[Key, Path]] = []
    for path in paths:
        parts = path.relative_to(root).parts
        key = _key(parts, above)
        if key is not None and not _is_of_another(parts, name):
            keyed.append((key, path))
    kept, notes = _leave_out(keyed, root, aside)
    ranked: dict[int, list[tuple[Key, Path]]] = {}
    for key, path in kept:
        rank = _rank(path.relative_to(root).parts, prefer)
        ranked.setdefault(rank, []).append((key, path))
    if ranked:
        found = _by_key(ranked[min(ranked)], root, name)
        for path in found.values():
            refuse_outside(root, path)
        folder = _folder(root, found.values())
        _refuse_unpaired(folder, found)
        notes += _validation_note(ranked[min(ranked)], found) + _number_note(found, root, above)
        return Lists(folder, found, sheets, notes)
    tree.refuse_links()
    more = f"; {sheets[0].name} has no split in it" if sheets else ""
    raise RefusedError(
        f"{root}: no annotation; looked in it and its folders for {wanted}{more}; put them there, "
        "or name their folder with --annotation"
    )


def read_rows(path: Path, form: ListFormat) -> list[Row]:
    """The rows of one list; a first line without a number is a header.

    Raises RefusedError, with the line, for a row that is none and for a video listed twice.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    text, name = _decode(path, form), str(path)
    # splitlines handles CRLF and a missing final newline.
    numbered = [
        (n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip(" \t,;")
    ]
    for number, line in numbered:
        row = parse_row(line, form, f"{name}:{number}")
        if row is None:
            if number == numbered[0][0] and not re.search(r"\d", line) and len(line) < LINE_MAX:
                _refuse_label_first(line, form, path)
                continue
            raise RefusedError(
                f"{path}:{number}: {line[:SHOWN_LETTERS]!r} is not a row; expected {form.expected}"
                f"{_reason(line, form)}"
            )
        _refuse_path_of_another(row, form.name)
        if row.id in lines:
            raise RefusedError(
                f"{path}:{number}: video {row.id} is listed twice, first in line {lines[row.id]}"
            )
        lines[row.id] = number
        rows.append(row)
    if not rows:
        raise RefusedError(f"{path}: the list has no videos")
    return rows


def _refuse_label_first(header: str, form: ListFormat, path: Path) -> None:
    """Two numbers may be read either way round."""
    first = re.split(r"[\s,;]", header.strip("\"' "))[0].strip('"').lower()
    if first in ("label", "labels", "class", "emotion", "expression"):
        raise RefusedError(f"{path}: the first column is {first}; expected {form.expected}")


def _refuse_path_of_another(row: Row, name: str) -> None:
    if "/" in row.path or "\\" in row.path:
        named = re.findall(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])", row.path.lower())
        own = {name, "mfaw"} if name == "mafw" else {name}
        if named and own.isdisjoint(named):
            raise RefusedError(
                f"{row.where}: {row.path[:SHOWN_LETTERS]!r} is a video of another data set, "
                f"{named[0]}, by its path; expected those of {name}"
            )


def parse_row(line: str, form: ListFormat, where: str) -> Row | None:
    """``2522,6``, ``02522 5``, ``D:/my faces/02522 66 5``, or one of these and votes; else None."""
    if len(line) > LINE_MAX:
        return None
    if line.count('"') % 2 and not _is_quote_in_prose(line, form):
        raise RefusedError(f"{where}: a quote is not closed in {line[:SHOWN_LETTERS]!r}")
    for cells, is_spaced in _splits(line):
        votes = _votes(cells, form)
        read = _path_and_count if is_spaced else _path_and_captions
        path, label = read(cells[: len(cells) - len(votes or ())], form)
        label = _WHOLE.sub("", label)
        video_id = form.id_of(path) if form.label.fullmatch(label) else None
        if video_id is not None:
            return Row(video_id, label, where, votes, path)
    return None


def make_folds(rows: Mapping[Key, Sequence[Row]]) -> tuple[Fold, ...]:
    """The folds of lists, in the order of their numbers; refuses a video on both sides of one."""
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


def first_rows(rows: Mapping[Key, Sequence[Row]]) -> dict[str, Row]:
    """The first row of every video, with votes if any row has them, in the order of the ids.

    Refuses labels and votes that disagree.
    """
    first: dict[str, Row] = {}
    for row in (row for part in rows.values() for row in part):
        known = first.setdefault(row.id, row)
        if known.label != row.label:
            raise RefusedError(
                f"{row.where}: video {row.id} has label {row.label}, "
                f"but label {known.label} in {known.where}"
            )
        if row.votes not in (None, known.votes):
            if known.votes is not None:
                raise RefusedError(f"{row.where}: video {row.id} has other votes in {known.where}")
            first[row.id] = row
    return {video_id: first[video_id] for video_id in sorted(first)}


def number_of(path: str) -> str | None:
    """The five-digit id at the end of a path, ``D:/faces/2522.mp4`` -> ``02522``."""
    digits = _NUMBER_AT_END.fullmatch(path)
    return None if digits is None else f"{int(digits[1]):05d}"


def _files_below(folder: Path, levels: int = LEVELS) -> list[Path]:
    """What is called like a list, but nothing in the numbered folders of frames."""
    found: list[Path] = []
    for path in folder.iterdir():
        if path.suffix.lower() in LIST_SUFFIXES:
            found.append(path)
        elif levels > 1 and not _FRAMES.fullmatch(path.name) and path.is_dir():
            found += _files_below(path, levels - 1)
    return found


def _lists_in_numbers(tree: Tree) -> list[Path]:
    """Lists in folders such as ``3/``, which were taken for videos and no longer are."""
    found: list[Path] = []
    for entry in [*tree.videos]:
        if entry.is_folder and re.fullmatch(r"[0-9]{1,2}", entry.parts[-1]):
            refuse_outside(tree.root, entry.path)
            lists = [p for p in Path(entry.path).iterdir() if p.suffix.lower() in LIST_SUFFIXES]
            if lists and not count_images(entry.path, tree.root):
                tree.videos.remove(entry)
                found += sorted(lists)
    return found


def _leave_out(
    keyed: Sequence[tuple[Key, Path]], root: Path, word: str
) -> tuple[list[tuple[Key, Path]], tuple[str, ...]]:
    """The lists without those whose path says ``word``, and a note of these; all if all do."""
    named = [path for _, path in keyed if word and word in str(path.relative_to(root)).lower()]
    rest = [(key, path) for key, path in keyed if path not in named]
    if not named or not rest:
        return [*keyed], ()
    shown = named[0].relative_to(root)
    return rest, (f"{len(named)} {word} lists were left out, such as {shown}",)


def _key(parts: Sequence[str], above: str = "") -> Key | None:
    """Which fold and part a list is of, from its name and those of its folders.

    Without a number it is the only fold's, if its own name says which part it is. The number may
    also be that of the folder ``above`` them all.
    """
    *folders, name = (part.lower() for part in parts)
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("csv", "txt") or name.startswith("."):
        return None
    own_part = re.search(r"train|test|val", stem)
    said = [{*re.findall(r"train|test", folder)} for folder in folders[::-1]]
    part = own_part[0] if own_part else next((min(s) for s in said if len(s) == 1), None)
    number = _fold_number(stem, [above.lower(), *folders], bool(own_part))
    if part is None or (number is None and not re.match(r"\W*(\w+_)?(train|test|val)", stem)):
        return None
    return 1 if number is None else number, part


def _fold_number(stem: str, folders: Sequence[str], is_split: bool) -> int | None:
    """``train_3``, ``set-3``, ``fold 3/`` or ``3/train`` -> 3; ``data_set_3/``, ``2023/`` -> None.

    The name of the list goes before those of its folders, and these from the inside out.
    """
    plain, *outer = (re.sub(r"[\W_]+", "_", text).strip("_") for text in (stem, *folders[::-1]))
    found = _NUMBER_IN_STEM.search(plain)
    if not found and is_split and outer:
        found = re.fullmatch(r"([0-9]{1,2})", outer[0])
    found = found or next(filter(None, map(_NUMBER_OF_FOLDER.fullmatch, outer)), None)
    return int(next(filter(None, found.groups()))) if found else None


def _is_of_another(parts: Sequence[str], name: str) -> bool:
    """Whether the path of a list names another data set, and not this one."""
    text = "/".join(parts).lower().replace("-", "").replace("_", "")
    named = {other for other in NAMES if other in text}
    own = {other for other in NAMES if other in name.replace("-", "")}
    return bool(named) and not named & (own | ({"mfaw"} if name == "mafw" else set()))


def _rank(parts: Sequence[str], prefer: Sequence[str]) -> int:
    """Small is good: the place in ``prefer``, and less deep below the root."""
    for n, wanted in enumerate(prefer):
        if wanted in parts[:-1]:
            return 10 * n + min(9, parts.index(wanted))
    return 10 * len(prefer)


def _by_key(paths: Iterable[tuple[Key, Path]], root: Path, name: str) -> dict[Key, Path]:
    """The only list of every fold and part; one that says the data set's name beats the others."""
    files: dict[Key, Path] = {}
    for key, path in paths:
        other = files.setdefault(key, path)
        if other is not path and not (path.exists() and other.exists() and path.samefile(other)):
            named = [p for p in (other, path) if name in str(p.relative_to(root)).lower()]
            if len(named) != 1:
                raise RefusedError(
                    f"{other} and {path}: both are the {key[1]} list of set {key[0]}; "
                    "keep one, or name its folder with --annotation; if they are of two sets, name "
                    "them such as train_3.csv, set_3_train.csv or set_3/train.csv"
                )
            files[key] = named[0]
    # Some repositories call the test list a validation list.
    checked = {(n, "test"): path for (n, part), path in files.items() if part == "val"}
    return checked | {key: path for key, path in files.items() if key[1] != "val"}


def _validation_note(
    keyed: Iterable[tuple[Key, Path]], files: Mapping[Key, Path]
) -> tuple[str, ...]:
    left_out = [p for (_, part), p in keyed if part == "val" and p not in files.values()]
    what = f"{len(left_out)} validation lists beside test lists are not read"
    return (f"{what}, nor what only they name: such as {left_out[0]}",) if left_out else ()


def _number_note(files: Mapping[Key, Path], root: Path, above: str) -> tuple[str, ...]:
    """The first list that may be called after a fold, in a way that is not read."""
    for path in files.values():
        *folders, name = (part.lower() for part in (above, *path.relative_to(root).parts))
        stem = name.rpartition(".")[0]
        may_be = _LIKE_A_FOLD.fullmatch(stem) or _FOLDER_LIKE_A_FOLD.fullmatch(folders[-1])
        if may_be and _fold_number(stem, folders, True) is None:
            return (f"{path}: no number in its name is read as that of a fold; it is fold 1",)
    return ()


def _folder(root: Path, paths: Iterable[Path]) -> Path:
    """The folder that holds all lists, perhaps in folders for the parts."""
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    while folder != root and re.search(r"train|test", folder.name):
        folder = folder.parent
    return folder


def _refuse_unpaired(folder: Path, files: Iterable[Key]) -> None:
    keys = set(files)
    for number, part in sorted(keys):
        other = "test" if part == "train" else "train"
        if (number, other) not in keys:
            raise RefusedError(f"{folder}: set {number} has a {part} list but no {other} list")


def _decode(path: Path, form: ListFormat) -> str:
    what = "a list of videos and their labels"
    try:
        return read_text(path, what, LIST_BYTES_MAX)
    except RefusedError:
        if not form.encoding:
            raise
        text = read_outside(path, what, LIST_BYTES_MAX).decode(form.encoding, "replace")
        if "\ufffd" in text or "\0" in text:
            raise
        return text


def _splits(line: str) -> Iterable[tuple[list[str], bool]]:
    """The cells of a line at tabs, at commas or semicolons, or at spaces; the first that fit count.

    The flag says that only spaces are between them. Of commas and semicolons the first counts,
    since the others are in prose. Empty cells at the end are Excel's.
    """
    first = re.search(r"[,;]", line)
    for separator in ("\t", first[0] if first else ""):
        if separator and separator in line:
            cells = [cell.strip().strip('"') for cell in line.split(separator)]
            while not cells[-1] and len(cells) > 1:
                cells.pop()
            yield cells, False
    if "," not in line:
        yield line.split(), "\t" not in line


def _is_quote_in_prose(line: str, form: ListFormat) -> bool:
    """Whether a quote opens nothing, as in ``a 5" screen`` behind path and label."""
    cells = re.split(r"[\t,;]", line)
    opens = any(cell.lstrip().startswith('"') for cell in cells)
    return form.captions and not opens and not any('"' in cell for cell in cells[:2])


def _reason(line: str, form: ListFormat) -> str:
    """What else to say of a line that is no row, if it is clear."""
    if len(line) > LINE_MAX:
        return ""
    if re.fullmatch(r'"?[0-9.]+"?\s+[0-9]+\s+[^\s,;]+', line):
        return (
            "; the first two numbers may be an index and an id, or an id and a count of frames: "
            "remove the one that is no id"
        )
    cells, is_spaced = next(iter(_splits(line)))
    if len(cells) < 3 or is_spaced:
        return ""
    if form.captions:
        return (
            "; between commas come path and label, and then a caption, which is a sentence: remove "
            "the other columns"
        )
    return "; between commas only path and label are read: remove the other columns"


def _votes(cells: Sequence[str], form: ListFormat) -> Votes | None:
    """One number per class at the end of a row, if a path and a label come before them."""
    if len(cells) < form.classes + 2:
        return None
    ends = cells[-form.classes :]
    if not all(re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,20})?(e-?[0-9]{1,2})?", end) for end in ends):
        return None
    label = _WHOLE.sub("", cells[-form.classes - 1])
    return tuple(map(float, ends)) if form.label.fullmatch(label) else None


def _path_and_captions(cells: Sequence[str], form: ListFormat) -> tuple[str, str]:
    """The path and the label of a row without votes; captions may follow them."""
    path, label, *more = [*cells, "", ""][: max(2, len(cells))]
    return ("" if more and not _are_captions(more, form) else path), label


def _path_and_count(cells: Sequence[str], form: ListFormat) -> tuple[str, str]:
    """The path and the label of a row without votes.

    A count of frames may come between them, but not behind a number, which may be an index.
    """
    *rest, label = cells
    is_path = re.search(r"[/\\]|\.[A-Za-z]", " ".join(rest))
    if is_path and len(rest) > 1 and re.fullmatch(r"[0-9]+", rest[-1]):
        rest = rest[:-1]
    return " ".join(rest), label


def _are_captions(cells: Sequence[str], form: ListFormat) -> bool:
    """Whether cells behind a label are prose: no code comes first, and none is a path.

    A comma in a sentence may leave a number as a cell of its own.
    """
    filled = [cell for cell in cells if cell]
    is_path = any(form.id_of(cell) is not None and _looks_like_path(cell) for cell in filled)
    is_code = bool(filled) and _is_code(filled[0], len(filled) == 1)
    return form.captions and not is_code and not is_path


def _looks_like_path(cell: str) -> bool:
    """``03747.mp4`` or ``faces/03747``, but not ``works 24/7`` or ``80.5``."""
    suffix = os.path.splitext(cell)[1].lower()
    is_word = re.search(r"[A-Za-z]", cell) and not re.search(r"\s", cell)
    return suffix in VIDEO_SUFFIXES or bool(is_word and re.search(r"[/\\]", cell))


def _is_code(cell: str, is_alone: bool) -> bool:
    """Whether a cell is made of numbers, classes, their codes and parts: a column, and no prose.

    ``An`` may begin a sentence, unless no other cell is filled.
    """
    words = re.findall(r"[^\W_]+", cell)
    return bool(words) and all(
        word.isdecimal()
        or full_class_name(word) in WORDS
        or word.lower() in ("train", "test", "val", "validation", "single", "compound")
        or re.fullmatch(r"[A-Z]{2,3}", word)
        or (class_of_word(word) and (is_alone or not word.istitle()))
        for word in words
    )


def cell_text(value: Any) -> str:
    """As in CSV: nothing for what is missing, numbers apart, whole numbers without a point."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return " ".join(map(cell_text, value))
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
