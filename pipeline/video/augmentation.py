"""(seed, video id, view) -> when each frame of a view is taken, and how it is augmented.

View 0 is the evaluation view: the middle frames, resized and cropped as open_clip does, nothing
else.  Views 1, 2, ... are training views.  Each is a pure function of (seed, video id, view), and
its parameters are the same for all its frames.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.video.sampling import at_moments, at_moments_of_whole_segments

# What the augmented views of a store show, by the name of the rule, for the store's identity.
VIEW_RULES = {
    # Version 1 resized and rotated in turn.
    "standard": "2: crop(0.6..1, 3/4..4/3) rotate(10) flip(0.5) "
    "brightness, contrast, saturation(0.3)",
    "dfer-clip": "dfer-clip 1: crop(0.08..1, 3/4..4/3) flip(0.5)",
}

_MIN_AREA = {"standard": 0.6, "dfer-clip": 0.08}
_MAX_LOG_ASPECT = math.log(4 / 3)
_MAX_ANGLE_DEGREES = 10.0
_JITTER = 0.3


@dataclass(frozen=True)
class Augmentation:
    """One training view's parameters.  Area, left and top are fractions of the frame."""

    area: float
    aspect: float
    left: float
    top: float
    angle_degrees: float
    flip: bool
    brightness: float
    contrast: float
    saturation: float


@dataclass(frozen=True)
class ViewNames:
    """How training views are made: the names of rules, keys of TRAINING_RULES and VIEW_RULES."""

    sampling: str = "segments"
    augmentation: str = "standard"


@dataclass(frozen=True)
class ViewRule:
    """The moment in [0, 1) shown of each of T segments, and how; no augmentation in view 0."""

    moments: NDArray[np.float64]
    augmentation: Augmentation | None
    whole_segments: bool = False

    def choose(self, length: int) -> NDArray[np.int32]:
        """The frames, of a video of ``length`` frames, that the view shows, [frame]."""
        sample = at_moments_of_whole_segments if self.whole_segments else at_moments
        return sample(length, self.moments)


STANDARD = ViewNames()


def view_rule(
    seed: int, video_id: str, view: int, frames: int, names: ViewNames = STANDARD
) -> ViewRule:
    """The rule of one view of a video; depends only on its arguments."""
    if view == 0:
        return ViewRule(np.full(frames, 0.5), None)
    name = int.from_bytes(hashlib.sha256(video_id.encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, name, view])))
    moments = rng.random(frames)
    area, aspect, left, top, angle, flip, *jitter = rng.random(9)
    is_plain = names.augmentation == "dfer-clip"
    turn, strength = (0.0, 0.0) if is_plain else (_MAX_ANGLE_DEGREES, _JITTER)
    brightness, contrast, saturation = (1 + strength * (2 * u - 1) for u in jitter)
    smallest = _MIN_AREA[names.augmentation]
    return ViewRule(
        moments,
        Augmentation(
            area=smallest + (1 - smallest) * area,
            aspect=math.exp(_MAX_LOG_ASPECT * (2 * aspect - 1)),
            left=left,
            top=top,
            angle_degrees=turn * (2 * angle - 1),
            flip=bool(flip < 0.5),
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
        ),
        whole_segments=names.sampling == "dfer-clip",
    )


def crop_box(height: int, width: int, augmentation: Augmentation) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of the part of a frame that a view shows."""
    area_px = augmentation.area * height * width
    crop_width = min(width, max(1, round(math.sqrt(area_px * augmentation.aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area_px / augmentation.aspect))))
    top = round(augmentation.top * (height - crop_height))
    left = round(augmentation.left * (width - crop_width))
    return top, left, crop_height, crop_width
