"""Folders of one's own: ROOT/CLASS/VIDEO, or with {train,test} above or below the class -> Survey.

A video is a video file, or a folder that holds images; it may lie deeper below the folder of its
class. Folders that spell one of the known classes ("Happy") are taken for it; folders in those of
several classes, by the same names, are taken for people.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.known import WORDS, full_class_name
from pipeline.datasets.labels import class_base
from pipeline.datasets.named import (
    FOLD,
    PART,
    part_of,
    refuse_spellings,
    spelling,
    split_fold,
)
from pipeline.datasets.rows import Row
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import (
    Layout,
    find_videos,
    refuse_nested,
    scan,
    some,
    without_thumbnails,
)
from pipeline.datasets.videos import Fold, natural_key

LAYOUT = Layout(None, "/".join, levels=99)
GUESSED = "--subjects says otherwise"
_FOLD = re.compile(rf"{FOLD}[-_ ]?\d+|fold[-_ ]?[a-z]", re.IGNORECASE)
_NO_LETTERS = r"[\W\d_]*"
_PART = re.compile(
    rf"{_NO_LETTERS}{PART}{_NO_LETTERS}(set|split|data|videos?)?{_NO_LETTERS}", re.IGNORECASE
)
_PEOPLE_MIN = 3  # two folders may be front and side


Below = Mapping[str, list[str]]  # id -> its parts below the folders that all videos are in


def survey_folders(
    root: Path, source: str = "auto", classes: Sequence[str] | None = None
) -> Survey:
    """All videos under ``root``; without folders for parts they have no folds.

    ``classes`` are known to be some, or those that folders number from 0 or 1; what they do not
    name is refused if it may be people or folds. Raises RefusedError also for a video that is in no
    folder, for two folders of one class, for numbers without ``classes`` or beside words, for parts
    beside other folders, and for folds or parts in a place where they are not read.
    """
    tree = scan(root, holds="one folder for each class")
    found, aside = without_thumbnails(find_videos(tree, LAYOUT, source))
    ids = sorted(found.places, key=natural_key)
    below = _below_wrappers(ids)
    refuse_nested(found.places, root)
    _refuse_shallow(below, root)
    level = _level_of_parts(below)
    _refuse_parts_as_classes(below, level, root)
    own = {i: _without_parts(parts, level) for i, parts in below.items()}
    start = 1 if level is None else 2  # of what is in the folder of the class
    word = {video_id: parts[0] for video_id, parts in own.items()}
    refuse_spellings(word, root)
    if not {*map(full_class_name, word.values())} <= {*(classes or ())}:
        _refuse_people_as_classes(own, _folders_of_several(below, start), classes, root)
    names = _class_names(word, root, classes)
    ordered = tuple(dict.fromkeys(names[w] for w in sorted(names, key=natural_key)))
    labels = {video_id: ordered.index(names[word[video_id]]) for video_id in ids}
    notes = aside + _unread_splits(below, level, root)
    seen = _seen_in_several(below, start, word, root)
    people = sorted({*seen.values()}, key=natural_key)
    subjects = seen if len(people) >= _PEOPLE_MIN else {}
    if seen:
        taken = "taken for people" if subjects else "not taken for people, as they are too few"
        notes += (f"{some(people)}: {taken}, in folders of classes; {GUESSED}",)
    folds, subsets = _split(below, level, root)
    return Survey(
        name="folders",
        root=root,
        classes=ordered,
        labels=labels,
        folds=folds,
        found=found,
        subjects=subjects,
        subsets=subsets,
        notes=notes,
    )


def _split(
    below: Below, level: int | None, root: Path
) -> tuple[tuple[Fold, ...], dict[str, frozenset[str]]]:
    if level is None:
        return (), {}
    part = {video_id: str(part_of(parts[level])) for video_id, parts in below.items()}
    return split_fold(part, "test" if "test" in part.values() else "validation", root)


def _seen_in_several(
    below: Below, start: int, word: Mapping[str, str], root: Path
) -> dict[str, str]:
    """Who may be seen in each video: the folder in that of its class, if several classes have it.

    Folders that all videos are in, and those called like a part or fold, say nothing; nor do
    numbers of clips, each of which is in a folder of its own. ``word`` is the class's folder by id.
    """
    inside = {
        i: [name for name in parts[start:-1] if not _kind_of_split(name)]
        for i, parts in below.items()
    }
    while len({spelling(names[0]) if names else "" for names in inside.values()}) == 1:
        if not any(inside.values()):
            return {}
        inside = {i: names[1:] for i, names in inside.items()}
    who = {i: names[0] for i, names in inside.items() if names}
    folders = Counter((*below[i][:start], name) for i, name in who.items())
    are_clips = max(folders.values()) == 1 and all(map(str.isdecimal, who.values()))
    classes = Counter(name for name, _ in {(spelling(name), word[i]) for i, name in who.items()})
    if are_clips or max(classes.values()) == 1:
        return {}
    refuse_spellings(who, root, "person")
    return who


def _folders_of_several(below: Below, start: int) -> set[str]:
    """The folders in those of the classes, without the numbered ones if each holds one video."""
    folders = Counter(tuple(parts[: start + 1]) for parts in below.values() if parts[start:-1])
    numbered = {folder: count for folder, count in folders.items() if re.search(r"\d", folder[-1])}
    if max(numbered.values(), default=0) == 1:
        folders = Counter({own: count for own, count in folders.items() if own not in numbered})
    return {folder[-1] for folder in folders}


def _level_of_parts(below: Below) -> int | None:
    """Which folder of all videos says the part: 0 for the top, 1 for the one in that of the class.

    In the second place there must be more than one part, as ``test_1`` may also be a session.
    """
    if all(len(parts) > 2 and part_of(parts[0]) for parts in below.values()):
        return 0
    second = {part_of(parts[1]) if len(parts) > 2 else None for parts in below.values()}
    return 1 if None not in second and "train" in second and len(second) > 1 else None


def _without_parts(parts: list[str], level: int | None) -> list[str]:
    """The parts of an id but that of a split, nor the video if that is below the class."""
    if level is None:
        return parts
    return parts[1:] if level == 0 else [parts[0], *parts[2:-1]]


def _refuse_shallow(below: Below, root: Path) -> None:
    split = all(part_of(parts[0]) for parts in below.values())
    for video_id, parts in below.items():
        if len(parts) < (3 if split else 2):
            raise RefusedError(f"{root}: {video_id} is in no folder that says its class")


def _refuse_parts_as_classes(below: Below, level: int | None, root: Path) -> None:
    tops = sorted({parts[0] for parts in below.values()}, key=natural_key)
    named = [top for top in tops if part_of(top)]
    if level != 0 and named:
        others = some([top for top in tops if top not in named])
        raise RefusedError(
            f"{root}: {some(named)} are parts of a split, but beside them there are {others}: move "
            "these into a part, or away; if all are classes, rename the former"
        )


def _refuse_people_as_classes(
    own: Below, inner: Collection[str], classes: Sequence[str] | None, root: Path
) -> None:
    """Refuse folders that are folds by their names, or that hold what may be the classes."""
    tops = sorted({parts[0] for parts in own.values()}, key=natural_key)
    inside = _named_inside(own, classes) if classes else _likely_classes(own, tops, inner)
    if inside or any(map(_FOLD.fullmatch, tops)):
        what = f", {some(inside)}" if inside else ""
        raise RefusedError(
            f"{root}: nothing says whether {some(tops)} are the classes, or what is in them{what}: "
            f"if it is the latter, {_in_a_list(root)}, or take one of the folders with --source; "
            "if it is the former, name them in a file for --texts"
        )


def _in_a_list(root: Path) -> str:
    return (
        f"say class and subject or fold in a list (tgdfer data init {root} writes one to fill in)"
    )


def _named_inside(own: Below, classes: Sequence[str]) -> list[str]:
    """What is in the folders, at most two levels below, and names one of the known ``classes``."""
    within = {name for parts in own.values() for name in parts[1:3]}
    return sorted(name for name in within if full_class_name(name) in classes)


def _likely_classes(own: Below, tops: Sequence[str], inner: Collection[str]) -> list[str]:
    """What is in the folders and may be the classes.

    Names of known classes may, at most two levels below a folder that has no such name. So may
    what is in the folders, unless one is a known class, if most of it is in several by the same
    name. Names with numbers do not count, as clips and sessions have them, but those of folders
    (``inner``) that are numbers do, and all of these if the folders above have numbers too.
    """
    known = {n for p in own.values() if not _is_known(p[0]) for n in p[1:3] if _is_known(n)}
    if known or any(map(_is_known, tops)):
        return sorted(known)
    numbered = all(re.search(r"\d", top) for top in tops)
    inside = Counter(p[1] for p in {tuple(parts[:2]) for parts in own.values()} if len(p) > 1)
    counts = [
        count
        for name, count in inside.items()
        if not re.search(r"\d", name) or (name in inner and (numbered or name.isdecimal()))
    ]
    shared = len(counts) > 1 and 2 * sum(count > 1 for count in counts) > len(counts)
    return sorted(inside, key=natural_key) if shared else []


def _is_known(word: str) -> bool:
    return full_class_name(word) in WORDS


def _unread_splits(below: Below, level: int | None, root: Path) -> tuple[str, ...]:
    """A note of the folders that are called like parts or folds, and are not read as such.

    Refused if they split all videos, and nothing else does.
    """
    start = 1 if level is None else 2
    named: dict[str, str] = {}
    kinds = dict.fromkeys(below, "")
    for video_id, parts in below.items():
        for n, name in enumerate(parts[start:-1], start):
            kind = _kind_of_split(name)
            if kind:
                named["/".join(parts[: n + 1])] = kinds[video_id] = kind
                break
    if not named:
        return ()
    shown = some(sorted(named, key=natural_key))
    if level is None and len({*kinds.values()}) > 1 and all(kinds.values()):
        raise RefusedError(
            f"{root}: {shown} say how the videos are split, where it is not read: move train and "
            f"test above or into the folders of the classes, or {_in_a_list(root)}"
        )
    return (f"{shown}: not read as a split, since not all videos are in one, or all in the same",)


def _kind_of_split(name: str) -> str | None:
    """The part or the fold that a folder is called after."""
    part = part_of(name) if _PART.fullmatch(name) else None
    return part or (name if _FOLD.fullmatch(name) else None)


def _below_wrappers(ids: Sequence[str]) -> dict[str, list[str]]:
    """The parts of each id below the folders that all videos are in, and that say nothing."""
    parts = {video_id: video_id.split("/") for video_id in ids}
    common = os.path.commonpath(ids).split("/") if len(ids) > 1 else []
    while common and all(len(below) > 2 and below[0] == common[0] for below in parts.values()):
        parts = {video_id: below[1:] for video_id, below in parts.items()}
        common = common[1:]
    return parts


def _class_names(
    word: Mapping[str, str], root: Path, classes: Sequence[str] | None
) -> dict[str, str]:
    """The class that each folder stands for: a number for the one of ``classes`` in its place.

    ``word`` is the folder by id. Numbers beside words are refused.
    """
    words = {*word.values()}
    numbers = sorted(filter(str.isdecimal, words), key=natural_key)
    others = sorted(words - {*numbers})
    if numbers and others:
        raise RefusedError(
            f"{root}: the folders {some(numbers)} are numbers, and {some(others)} are words: call "
            "the former by the names of their classes, or move away what is no class"
        )
    if numbers and not classes:
        raise RefusedError(
            f"{root}: the folders {some(numbers)} are numbers; say which classes they are, in "
            f"their order, with --texts FILE; if they are no classes, {_in_a_list(root)}"
        )
    if classes and numbers and not {*classes} <= words:
        base = class_base([Row(i, n, f"{root}/{i}") for i, n in word.items()], root, classes)
        return {number: classes[int(number) - base] for number in numbers}
    return _class_of_words(words, root)


def _class_of_words(words: Collection[str], root: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for word in sorted(words):
        name = full_class_name(word)
        same = [other for other, known in names.items() if known == name]
        if same:
            raise RefusedError(
                f"{root}: the folders {same[0]} and {word} are one class, {name}: put their videos "
                "into one, or rename one"
            )
        names[word] = name
    return names
