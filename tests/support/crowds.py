"""Videos of several rendered people who move in larger frames, and where their faces are."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.face import face_mask, render_face
from pipeline.demo.faces import FacesSpec, Script, plan_videos, write_script

WIDTH, HEIGHT = 480, 320


@dataclass(frozen=True)
class Walk:
    """The way of a picture through the frames: its left upper corner sways around a place."""

    x: float
    y: float
    size_px: int
    sway_px: float = 12.0
    first: int = 0

    def corner(self, frame: int) -> tuple[int, int]:
        """(x, y) in whole pixels."""
        angle = 2 * np.pi * frame / 50
        x, y = self.x + self.sway_px * np.sin(angle), self.y + self.sway_px * np.cos(angle) / 2
        return round(float(x)), round(float(y))


@dataclass(frozen=True)
class Crowd:
    """uint8 [frame, HEIGHT, WIDTH, 3], and x, y, width, height of each face: [person][frame]."""

    frames: NDArray[np.uint8]
    boxes: list[dict[int, list[float]]]


def scripts(count: int, seed: int = 0, frames_min: int = 30) -> list[Script]:
    """Courses of rendered videos in which the faces can be seen."""
    spec = FacesSpec(videos=70, seed=seed)
    plan = [video for video in plan_videos(spec) if not video.subsets]
    written = (write_script(spec, video) for video in plan)
    long = (script for script in written if len(script.scenes) >= frames_min)
    return [next(long) for _ in range(count)]


def compose(cast: list[tuple[Script, Walk]], frames: int, seed: int = 0) -> Crowd:
    """Paste people into ``frames`` frames of a lit wall; each is there from ``Walk.first`` on."""
    canvas_THWC = np.stack([wall(seed)] * frames)
    boxes: list[dict[int, list[float]]] = [{} for _ in cast]
    for person, (script, walk) in enumerate(cast):
        last = min(frames, walk.first + len(script.scenes))
        for frame in range(walk.first, last):
            step = frame - walk.first
            picture, box = _picture(script, step, walk.size_px)
            x, y = walk.corner(frame)
            canvas_THWC[frame, y : y + walk.size_px, x : x + walk.size_px] = picture
            boxes[person][frame] = [x + box[0], y + box[1], box[2], box[3]]
    return Crowd(canvas_THWC, boxes)


def _picture(
    script: Script, step: int, size_px: int
) -> tuple[NDArray[np.uint8], tuple[float, ...]]:
    """A frame of a course, and the box of the face in it."""
    person, units_U, scene = script.person, script.units_TU[step], script.scenes[step]
    picture = render_face(person, units_U, scene, size_px)
    mask = face_mask(person, units_U, replace(scene, occluder=None), size_px)
    return picture, tuple(map(float, cv2.boundingRect((mask > 0.5).astype(np.uint8))))


def wall(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(70, 150, (4, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)
