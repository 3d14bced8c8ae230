"""The faces of a video's frames -> one track per person, without gaps and smooth in time.

Every third frame is looked at; in between, faces are interpolated::

    frame    0  1  2  3  4  5  6  7  8  9 10 11 12
    look     a        a  b     .  b     a  b     a
    person a ------------------------------------        missed once: bridged
    person b          ---------------------              later and shorter
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import linear_sum_assignment

from pipeline.video.detector import SCORE, Faces, check_detector, find_faces, overlap
from pipeline.video.frames import Choose, Found, Take
from pipeline.video.images import BadVideoError, decoder_errors

EVERY = 3  # frames from one look to the next
OVERLAP = 0.3  # intersection over union of boxes that are the same person
GAP = 5  # looks in a row that may miss a person
SEEN_MIN, SCORE_MIN = 3, 0.7  # a person is seen in so many looks, with this mean score
SMOOTH = 3.0  # frames, standard deviation of the Gaussian
MARGIN = 1.5  # side of the square around a face, in longer sides of its box
FILLS = 0.6  # of the longer side of a frame: such a square is all of it, more or less

Read = Callable[[Path, Choose, Take], Found]


@dataclass(frozen=True)
class Track:
    """One person in a row of frames, of which ``first`` is the first.

    ``faces_F`` are the faces, [frame, FIELDS] as ``find_faces`` describes them; ``seen`` are the
    frames in which they were found, and not interpolated.
    """

    first: int
    faces_F: Faces = field(repr=False)
    seen: frozenset[int] = field(repr=False)

    @property
    def span(self) -> tuple[int, int]:
        """(the first frame, number of frames)."""
        return self.first, len(self.faces_F)

    @cached_property
    def sides_F(self) -> NDArray[np.float64]:
        """The side of the square around the face in each frame, in pixels."""
        return MARGIN * self.faces_F[:, 2:4].max(1)

    @property
    def side_px(self) -> int:
        """The side of the square pictures of this person."""
        return max(1, round(float(np.median(self.sides_F))))


@dataclass(frozen=True)
class People:
    """The persons in a video, first the one who is shown largest and longest.

    ``dropped`` counts tracks that were too short or too weak to be a face; ``size_px`` is width and
    height of the last frame, and ``sizes`` counts how many different ones there are.
    """

    tracks: tuple[Track, ...]
    dropped: int
    found: Found
    size_px: tuple[int, int]
    sizes: int = 1

    @property
    def already_cropped(self) -> str:
        """Why the frames are taken to be face crops, as data sets have them; empty if they are not.

        Faces that are hidden or dark are not found, so square frames count without one.
        """
        width, height = self.size_px
        if not self.tracks:
            return "no face found in square frames" if width == height else ""
        fills = self.tracks[0].side_px >= FILLS * max(width, height)
        return "a face fills the frames" if fills else ""

    @property
    def main(self) -> Track:
        """The person who is shown largest and longest; raises BadVideoError if ``nobody``."""
        if self.nobody:
            raise BadVideoError(self.nobody)
        return self.tracks[0]

    @property
    def nobody(self) -> str:
        """Why nobody can be cropped out of the frames; empty if somebody can."""
        if self.sizes > 1:
            return f"frames of {self.sizes} sizes, through which no face can be followed"
        return "" if self.tracks else "no face found" + "".join(f" ({own})" for own in self.flags)

    @property
    def flags(self) -> tuple[str, ...]:
        """What was dropped, if anything."""
        return (f"short or weak tracks dropped: {self.dropped}",) * bool(self.dropped)

    @property
    def main_flags(self) -> tuple[str, ...]:
        """What of the video the main person's crops do not show, if anything."""
        others = len(self.tracks) - 1
        return (*self.flags, *(f"more people: {others}",) * (others > 0))

    def check_same(self, found: Found) -> None:
        """Raise BadVideoError unless the same bytes were read again."""
        if found.sha256 != self.found.sha256:
            raise BadVideoError("changed while it was read")


def find_people(path: Path, read: Read) -> People:
    """Look for faces in every third frame of a video, and follow them.

    ``read`` is ``read_frames`` or decodes as it does, and raises what it raises. Raises
    RefusedError if the detector is not installed.
    """
    check_detector()
    looks: dict[int, Faces] = {}
    sizes_px: dict[int, tuple[int, int]] = {}

    def choose(count: int) -> set[int]:
        looks.clear()
        sizes_px.clear()
        return {*range(0, count, EVERY), count - 1}

    def take(index: int, image: NDArray[np.uint8]) -> None:
        with decoder_errors():
            looks[index] = find_faces(image)
        sizes_px[index] = image.shape[1], image.shape[0]

    found = read(path, choose, take)
    tracks, dropped = follow(looks)
    last_px = sizes_px[max(sizes_px)]
    return People(tuple(tracks), dropped, found, last_px, len(set(sizes_px.values())))


def follow(looks: dict[int, Faces]) -> tuple[list[Track], int]:
    """(tracks, number of those dropped) of the faces found in some frames.

    Faces of successive looks are the same person if their boxes overlap, paired so that the sum of
    overlaps is largest. The first track has the largest sum of sides.
    """
    paths: list[dict[int, NDArray[np.float64]]] = []
    open_paths: list[tuple[int, dict[int, NDArray[np.float64]]]] = []  # with the last look
    for look, (frame, faces) in enumerate(sorted(looks.items())):
        open_paths = [(last, path) for last, path in open_paths if look - last <= GAP + 1]
        before = np.array([path[max(path)] for _, path in open_paths]).reshape(-1, faces.shape[1])
        overlaps = overlap(before, faces)
        pairs = zip(*linear_sum_assignment(-overlaps), strict=True)
        same = {int(new): int(old) for old, new in pairs if overlaps[old, new] >= OVERLAP}
        for new, face in enumerate(faces):
            if new in same:
                path = open_paths[same[new]][1]
                open_paths[same[new]] = (look, path)
            else:
                path = {}
                paths.append(path)
                open_paths.append((look, path))
            path[frame] = face
    kept = [path for path in paths if _is_person(path, len(looks))]
    tracks = sorted(map(_track, kept), key=lambda track: -track.sides_F.sum())
    return tracks, len(paths) - len(kept)


def _is_person(path: dict[int, NDArray[np.float64]], looks: int) -> bool:
    score = np.mean([face[SCORE] for face in path.values()])
    return len(path) >= min(SEEN_MIN, looks) and bool(score >= SCORE_MIN)


def _track(path: dict[int, NDArray[np.float64]]) -> Track:
    seen, faces = list(path), np.stack(list(path.values()))
    frames = np.arange(seen[0], seen[-1] + 1)
    whole_F = np.stack([np.interp(frames, seen, values) for values in faces.T], axis=1)
    return Track(seen[0], gaussian_filter1d(whole_F, SMOOTH, 0, mode="nearest"), frozenset(seen))
