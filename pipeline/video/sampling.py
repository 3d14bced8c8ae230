"""Number of frames of a video -> which T of them a view shows.

The n frames are cut into T segments of equal *real* length, and each segment gives one frame.
With n = 10 and T = 4 a segment is 2.5 frames long::

    frame     0   1   2   3   4   5   6   7   8   9
    segment   |---------|---------|---------|--------|
    middle        1         3         6         8          the frame at the middle
    uniform     0 1 2     2 3 4      5 6 7    7 8 9        any moment, equally likely

Segments of whole frames, here of 2, never show the rest, here frames 8 and 9; other implementations
train so, DFER-CLIP among them.  A video of fewer than T frames shows every frame once and repeats
the last.
"""

import numpy as np
from numpy.typing import NDArray

EVALUATION_RULE = "middle_of_segments"
# Which frames training views show, by the name of the rule; for the identity of a store.
TRAINING_RULES = {"segments": "uniform_in_segments", "dfer-clip": "uniform_in_whole_segments"}


def middle_of_segments(length: int, frames: int) -> NDArray[np.int32]:
    """The frame at the middle of each of ``frames`` equal segments, [frame].

    >>> middle_of_segments(10, 4).tolist(), middle_of_segments(3, 5).tolist()
    ([1, 3, 6, 8], [0, 1, 2, 2, 2])
    """
    return at_moments(length, np.full(frames, 0.5))


def uniform_in_segments(length: int, frames: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """A frame at a uniformly drawn moment of each of ``frames`` equal segments, [frame]."""
    return at_moments(length, rng.random(frames))


def at_moments(length: int, moments: NDArray[np.float64]) -> NDArray[np.int32]:
    """The frame shown at a moment in [0, 1) of each segment, sorted; raises ValueError for n < 1.

    ``moments`` has one entry per segment, so its length is T.
    """
    frames = len(moments)
    if length < frames:
        return _every_frame(length, frames)
    index = np.floor((np.arange(frames) + moments) * length / frames)
    return np.minimum(index, length - 1).astype(np.int32)


def at_moments_of_whole_segments(length: int, moments: NDArray[np.float64]) -> NDArray[np.int32]:
    """As ``at_moments``, but segments have floor(n / T) frames each, and the rest is never shown.

    >>> at_moments_of_whole_segments(10, np.array([0.0, 0.6, 0.4, 0.9])).tolist()
    [0, 3, 4, 7]
    """
    frames = len(moments)
    if length < frames:
        return _every_frame(length, frames)
    whole = length // frames
    return (np.arange(frames) * whole + np.floor(moments * whole)).astype(np.int32)


def _every_frame(length: int, frames: int) -> NDArray[np.int32]:
    """Every frame of a short video once, then the last one again."""
    if length < 1:
        raise ValueError(f"a video of {length} frames shows nothing, expected 1 or more")
    return np.minimum(np.arange(frames), length - 1).astype(np.int32)
