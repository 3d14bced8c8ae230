"""Folders of one's own: ROOT/CLASS/VIDEO, or with {train,test} above or below the class -> Survey.

A video is a video file, or a folder that holds images; it may lie deeper below the folder of its
class. Folders that spell one of the known classes ("Happy") are taken for it.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.known import WORDS, full_class_name
from pipeline.datasets.named import part_of, refuse_spellings, split_fold
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Found, Layout, find_videos, scan, some
from pipeline.datasets.videos import natural_key

LAYOUT = Layout(None, "/".join, levels=99)


Below = Mapping[str, list[str]]  # id -> its parts below the folders that all videos are in


def survey_folders(
    root: Path, source: str = "auto", classes: Collection[str] | None = None
) -> Survey:
    """All videos under ``root``; without folders for parts they have no folds.

    ``classes`` are known to be some; others are refused if they may be people or folds. Raises
    RefusedError also for a video that is in no folder, for two folders of one class, for numbers
    beside words, and for parts beside other folders.
    """
    found = find_videos(scan(root, holds="one folder for each class"), LAYOUT, source)
    ids = sorted(found.places, key=natural_key)
    below = _below_wrappers(ids)
    _refuse_both(found, root)
    _refuse_shallow(below, root)
    level = _level_of_parts(below)
    _refuse_parts_as_classes(below, level, root)
    own = {i: parts[1:] if level == 0 else parts for i, parts in below.items()}
    word = {video_id: parts[0] for video_id, parts in own.items()}
    refuse_spellings(word, root)
    names = _class_names({*word.values()}, root)
    if level != 1 and not {*names.values()} <= {*(classes or ())}:
        _refuse_people_as_classes(own, root)
    ordered = tuple(dict.fromkeys(names[w] for w in sorted(names, key=natural_key)))
    labels = {video_id: ordered.index(names[word[video_id]]) for video_id in ids}
    if level is None:
        return Survey("folders", root, ordered, labels, (), found, notes=_unread_parts(below))
    part = {video_id: str(part_of(parts[level])) for video_id, parts in below.items()}
    test = "test" if "test" in part.values() else "validation"
    folds, subsets = split_fold(part, test, root)
    return Survey("folders", root, ordered, labels, folds, found, subsets=subsets)


def _level_of_parts(below: Below) -> int | None:
    """Which folder of all videos says the part: 0 for the top, 1 for the one in that of the class.

    In the second place there must be more than one part, as ``test_1`` may also be a session.
    """
    if all(len(parts) > 2 and part_of(parts[0]) for parts in below.values()):
        return 0
    second = {part_of(parts[1]) if len(parts) > 2 else None for parts in below.values()}
    return 1 if None not in second and "train" in second and len(second) > 1 else None


def _refuse_both(found: Found, root: Path) -> None:
    """Refuse a folder that would be a video for its images and hold videos as well."""
    for video_id in found.places:
        for folder in accumulate(video_id.split("/")[:-1], "{}/{}".format):
            if folder in found.places:
                raise RefusedError(
                    f"{root}: {folder} holds images, and there is a video {video_id} in it; "
                    "move one of them away, to say which is the video"
                )


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


def _refuse_people_as_classes(own: Below, root: Path) -> None:
    """Refuse folders that may be people or folds, as what is in them may be the classes.

    It may if it has the names of known classes, which the folders have not, or if everything in
    them is in several by the same name, and not all of it is numbered as clips or sessions are.
    """
    tops = sorted({parts[0] for parts in own.values()}, key=natural_key)
    inside = Counter(name for _, name in {(parts[0], parts[1]) for parts in own.values()})
    numbered = all(re.search(r"\d", name) for name in inside)
    shared = len(inside) > 1 < min(inside.values()) and not numbered
    if (shared or all(map(_is_known, inside))) and not any(map(_is_known, tops)):
        raise RefusedError(
            f"{root}: nothing says whether {some(tops)} are the classes, or what is in them, "
            f"{some(sorted(inside))}: if it is the latter, say class and subject or fold in a list "
            f"(tgdfer data init {root} writes one to fill in), or take one of the folders with "
            "--source; if it is the former, name them in a file for --texts"
        )


def _is_known(word: str) -> bool:
    return full_class_name(word) in WORDS


def _unread_parts(below: Below) -> tuple[str, ...]:
    named = sorted({"/".join(p[:2]) for p in below.values() if len(p) > 2 and part_of(p[1])})
    return (f"{some(named)}: not read as parts, since not all videos are in one",) if named else ()


def _below_wrappers(ids: Sequence[str]) -> dict[str, list[str]]:
    """The parts of each id below the folders that all videos are in, and that say nothing."""
    parts = {video_id: video_id.split("/") for video_id in ids}
    common = os.path.commonpath(ids).split("/") if len(ids) > 1 else []
    while common and all(len(below) > 2 and below[0] == common[0] for below in parts.values()):
        parts = {video_id: below[1:] for video_id, below in parts.items()}
        common = common[1:]
    return parts


def _class_names(words: Collection[str], root: Path) -> dict[str, str]:
    """The class that each folder stands for; numbers stand for none that words name."""
    numbers = sorted(filter(str.isdecimal, words), key=natural_key)
    others = sorted({*words} - {*numbers})
    if numbers and others:
        raise RefusedError(
            f"{root}: the folders {some(numbers)} are numbers, and {some(others)} are words: call "
            "the former by the names of their classes, or move away what is no class"
        )
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
