"""Folders of one's own: ROOT/CLASS/VIDEO or ROOT/{train,test}/CLASS/VIDEO -> Survey.

A video is a video file, or a folder that holds images; it may lie deeper below the folder of its
class. Folders that spell one of the known classes ("Happy") are taken for it.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.known import full_class_name
from pipeline.datasets.named import part_of, refuse_spellings, split_fold
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, find_videos, scan
from pipeline.datasets.videos import natural_key

LAYOUT = Layout(None, "/".join, levels=99)


def survey_folders(root: Path, source: str = "auto") -> Survey:
    """All videos under ``root``; without folders for parts they have no folds.

    Raises RefusedError for a video that is in no folder, and for two folders of one class.
    """
    found = find_videos(scan(root, holds="one folder for each class"), LAYOUT, source)
    ids = sorted(found.places, key=natural_key)
    parts = _below_wrappers(ids)
    is_split = all(len(below) > 2 and part_of(below[0]) for below in parts.values())
    word = {video_id: below[1 if is_split else 0] for video_id, below in parts.items()}
    shallow = [video_id for video_id, below in parts.items() if len(below) < 2]
    if shallow:
        raise RefusedError(f"{root}: {shallow[0]} is in no folder that says its class")
    refuse_spellings(word, root)
    names = _class_names({*word.values()}, root)
    classes = tuple(dict.fromkeys(names[w] for w in sorted(names, key=natural_key)))
    labels = {video_id: classes.index(names[word[video_id]]) for video_id in ids}
    if not is_split:
        return Survey("folders", root, classes, labels, (), found)
    part = {video_id: str(part_of(below[0])) for video_id, below in parts.items()}
    test = "test" if "test" in part.values() else "validation"
    folds, subsets = split_fold(part, test, root)
    return Survey("folders", root, classes, labels, folds, found, subsets=subsets)


def _below_wrappers(ids: Sequence[str]) -> dict[str, list[str]]:
    """The parts of each id below the folders that all videos are in, and that say nothing."""
    parts = {video_id: video_id.split("/") for video_id in ids}
    common = os.path.commonpath(ids).split("/") if len(ids) > 1 else []
    while common and all(len(below) > 2 and below[0] == common[0] for below in parts.values()):
        parts = {video_id: below[1:] for video_id, below in parts.items()}
        common = common[1:]
    return parts


def _class_names(words: Iterable[str], root: Path) -> dict[str, str]:
    """The class that each folder stands for."""
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
