"""Annotation files -> VideoList: the videos of a data set with their labels and folds."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".flv", ".gif"),
        *(".mpg", ".mpeg", ".vob", ".m1v", ".m2v", ".ts", ".mts", ".wmv", ".asf", ".ogv"),
    }
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class Video:
    """One labelled sample: a video file, or a folder of frames.

    ``votes`` has what annotators said, one number per class, if the data set keeps it.
    ``frame_labels`` and ``frame_intensities`` (one entry per source frame) exist only if the data
    set has ground truth for every frame; -1 marks a frame that shows none of the classes.
    """

    id: str
    path: Path
    label: int
    subject: str | None = None
    frame_labels: NDArray[np.int8] | None = field(default=None, compare=False)
    frame_intensities: NDArray[np.float32] | None = field(default=None, compare=False)
    votes: tuple[float, ...] | None = None
    # ``path`` from the data set's root on, a folder with a slash at its end; empty if not known.
    source: str = ""


@dataclass(frozen=True)
class Fold:
    """One split of a data set: ids to train on and ids to test on, disjoint."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class VideoList:
    """A data set as the pipeline sees it; its order is the order of the rows in the store."""

    name: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    folds: tuple[Fold, ...]
    # Name of a subset, such as "occluded" -> the ids in it.
    subsets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # Which of several copies of the pixels was used, such as "Clip/clip_224x224".
    source: str = ""
    # A name and a sentence per class, if they are not those of texts.toml.
    texts: tuple[tuple[str, str], ...] | None = None
    # How the folds were drawn, such as "by subject", if they replace the data set's own.
    resplit: str | None = None
    # Name from the data set's root on, and sha256, of every list that was read.
    lists: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_ids([video.id for video in self.videos], self.name)
        known = {video.id for video in self.videos}
        for video in self.videos:
            if not 0 <= video.label < len(self.classes):
                raise RefusedError(
                    f"{self.name}: video {video.id} has label {video.label}, "
                    f"expected 0 to {len(self.classes) - 1} ({', '.join(self.classes)})"
                )
        for fold in self.folds:
            _check_fold(fold, known, self.name)

    def first(self, count: int | None) -> "VideoList":
        """The first ``count`` videos, or all, with folds and subsets cut to match."""
        return self.only({video.id for video in self.videos[:count]})

    def only(self, ids: Collection[str]) -> "VideoList":
        """Those of ``ids``, with folds and subsets cut to match."""
        videos = tuple(video for video in self.videos if video.id in ids)
        subsets = {name: found & {*ids} for name, found in self.subsets.items()}
        return replace(self, videos=videos, folds=cut_folds(self.folds, ids), subsets=subsets)


def absent_classes(videos: VideoList) -> list[str]:
    """What to warn of: the classes that a fold does not train on, or is not tested on."""
    labels = {video.id: video.label for video in videos.videos}
    lines = []
    for fold in videos.folds:
        for verb, ids in (("train on", fold.train), ("test", fold.test)):
            shown = {labels[video_id] for video_id in ids}
            absent = [name for k, name in enumerate(videos.classes) if k not in shown]
            if absent:
                lines.append(f"fold {fold.name} has no videos to {verb} of {', '.join(absent)}")
    return lines


def cut_folds(folds: Iterable[Fold], ids: Collection[str]) -> tuple[Fold, ...]:
    """The folds limited to ``ids``; one left without training or test videos is dropped."""
    cut = (
        Fold(fold.name, *(tuple(i for i in part if i in ids) for part in (fold.train, fold.test)))
        for fold in folds
    )
    return tuple(fold for fold in cut if fold.train and fold.test)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which ``2.jpg`` comes before ``10.jpg``.

    >>> sorted(["10.jpg", "1.jpg", "2.jpg"], key=natural_key)
    ['1.jpg', '2.jpg', '10.jpg']
    """
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _check_ids(ids: list[str], name: str) -> None:
    """Refuse ids that are not unique, or that would lead out of a folder as names of files."""
    seen: dict[str, str] = {}
    for number, video_id in enumerate(ids):
        parts = re.split(r"[/\\]", video_id)
        if not video_id.isprintable() or {"", ".", ".."} & {*parts} or parts[0].endswith(":"):
            raise RefusedError(
                f"{name}: the id {video_id!r} is empty, a path of its own or not printable"
            )
        same = seen.setdefault(unicodedata.normalize("NFC", video_id), video_id)
        if len(seen) <= number:
            how = "" if same == video_id else f", as {same!a} and {video_id!a}"
            raise RefusedError(f"{name}: video {video_id} is listed twice{how}; ids must be unique")


def _check_fold(fold: Fold, known: set[str], name: str) -> None:
    where = f"{name}, fold {fold.name}"
    if not fold.train or not fold.test:
        raise RefusedError(f"{where}: {len(fold.train)} training and {len(fold.test)} test videos")
    both = set(fold.train) & set(fold.test)
    if both:
        raise RefusedError(f"{where}: video {min(both)} is in both training and test")
    unknown = (set(fold.train) | set(fold.test)) - known
    if unknown:
        raise RefusedError(f"{where}: names video {min(unknown)}, which is not in the list")
