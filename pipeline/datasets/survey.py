"""What the lists name and what the tree holds -> VideoList, and an exact account of every video."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.files import sha256
from cache.outside import read_outside
from pipeline.datasets.rows import LIST_BYTES_MAX, Votes
from pipeline.datasets.tree import Found, some
from pipeline.datasets.videos import Fold, Video, VideoList, cut_folds

SHORT_FRAMES = 16  # a view shows as many; shorter videos repeat their last frame

FrameTruth = tuple[NDArray[np.int8], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Count:
    """What became of the rows of one fold, part ("train" or "test") and class.

    ``unreadable`` are found, but faulty; None if nobody looked. ``short`` have fewer than 16
    frames; None if those of some are not known, as of video files that were not decoded.
    """

    fold: str
    part: str
    label: str
    listed: int
    found: int
    missing: int
    unreadable: int | None
    short: int | None
    used: int


@dataclass(frozen=True)
class Reading:
    """What was seen of a video on disk; ``frames`` and ``sha256`` only if all of it was read."""

    fault: str = ""  # why it cannot be read, if so
    frames: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Accounting:
    """Every listed video accounted for; ``used`` is 0 throughout while anything is missing."""

    counts: tuple[Count, ...]  # of every part of every fold, or of all videos without folds
    classes: tuple[Count, ...]  # of all videos
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """A data set on disk after every check except that for missing videos."""

    name: str
    root: Path
    classes: tuple[str, ...]
    labels: Mapping[str, int]  # id -> label from 0, in the order of the videos
    folds: tuple[Fold, ...]
    found: Found
    lists: Path | None = None  # the folder or file of the lists, if there are any
    files: tuple[Path, ...] = ()  # the lists themselves
    subjects: Mapping[str, str] = field(default_factory=dict)
    subsets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    frames: Mapping[str, FrameTruth] = field(default_factory=dict)
    votes: Mapping[str, Votes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a user should know about how it was read
    texts: tuple[tuple[str, str], ...] | None = None  # name and sentence per class, if its own
    resplit: str | None = None  # how the folds were drawn, if they replace the data set's own

    def missing(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Those of ``ids`` that have no frames."""
        return tuple(video_id for video_id in ids if video_id not in self.found.places)

    def video_list(self, ids: Collection[str] | None = None) -> VideoList:
        """The videos ``ids``, or all; raises RefusedError if any of them is missing."""
        wanted = {*(self.labels if ids is None else ids)}
        kept = {video_id: label for video_id, label in self.labels.items() if video_id in wanted}
        missing = self.missing(kept)
        if missing:
            others = ", ".join(self.found.others)
            raise RefusedError(
                f"{self.root}: {len(missing)} of {len(kept)} listed videos have no frames "
                f"in {self.found.name}: {some(missing)}; "
                + (self.found.unpack or "complete the copy, or remove the ids from the lists")
                + (f"; there is also {others}: --source takes it" if others else "")
            )
        videos = tuple(self._video(video_id, label) for video_id, label in kept.items())
        subsets = {name: ids & kept.keys() for name, ids in self.subsets.items()}
        folds = cut_folds(self.folds, kept)
        name, source = self.name, self.found.name
        own = (self.texts, self.resplit, self.list_digests())
        return VideoList(name, self.classes, videos, folds, subsets, source, *own)

    def list_digests(self) -> tuple[tuple[str, str], ...]:
        """The name from the root on, and the sha256, of every list that was read."""
        what, lists = "a list of videos and their labels", self.lists or self.root
        return tuple(
            (_name_below(self.root, file, lists), sha256(read_outside(file, what, LIST_BYTES_MAX)))
            for file in sorted(self.files)
        )

    def _video(self, video_id: str, label: int) -> Video:
        labels, intensities = self.frames.get(video_id, (None, None))
        place = self.found.places[video_id]
        source = _name_below(self.root, place.path, Path(self.found.name))
        return Video(
            video_id,
            place.path,
            label,
            self.subjects.get(video_id),
            labels,
            intensities,
            self.votes.get(video_id),
            source if place.frames is None else f"{source}/",
        )

    def frame_counts(self, readings: Mapping[str, Reading] | None = None) -> dict[str, int | None]:
        """How many frames each video has that was found; None if that is not known."""
        read = {i: reading.frames for i, reading in (readings or {}).items()}
        return {i: read.get(i) or place.frames for i, place in self.found.places.items()}

    def account(self, readings: Mapping[str, Reading] | None = None) -> Accounting:
        """Count listed, found, missing, unreadable, short and used videos by fold, part, class.

        ``readings`` are what was seen of the videos that were found, if anybody looked.
        """
        missing, frames = self.missing(self.labels), self.frame_counts(readings)
        faulty = {i for i, reading in (readings or {}).items() if reading.fault}
        short = {i for i, count in frames.items() if count and count < SHORT_FRAMES}
        unknown = {i for i, count in frames.items() if count is None} - faulty

        def counted(fold: str, part: str, ids: Collection[str]) -> Iterator[Count]:
            listed, lost, bad, few, dark = (
                Counter(self.labels[i] for i in ids if i in of)
                for of in (self.labels, {*missing}, faulty, short, unknown)
            )
            for k, name in enumerate(self.classes):
                found = listed[k] - lost[k]
                unreadable = None if readings is None else bad[k]
                shorter = None if dark[k] else few[k]
                numbers = (listed[k], found, lost[k], unreadable, shorter, 0 if missing else found)
                yield Count(fold, part, name, *numbers)

        of_all = tuple(counted("", "all", self.labels))
        of_parts = tuple(
            count
            for fold in self.folds
            for part, ids in (("train", fold.train), ("test", fold.test))
            for count in counted(fold.name, part, ids)
        )
        return Accounting(of_parts or of_all, of_all, missing)


def _name_below(root: Path, path: Path, elsewhere: Path) -> str:
    """The name of a path from the root on, or from ``elsewhere`` with its name, or else its own."""
    whole = os.path.abspath(path)
    for folder in (os.path.abspath(root), os.path.dirname(os.path.abspath(elsewhere))):
        if whole.startswith(os.path.join(folder, "")):
            return os.path.relpath(whole, folder)
    return os.path.basename(whole)
