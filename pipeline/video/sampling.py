"""Number of frames of a video -> which T of them a view shows.

The n frames are cut into T segments of equal *real* length, and each segment gives one frame.
With n = 10 and T = 4 a segment is 2.5 frames long::

    frame     0   1   2   3   4   5   6   7   8   9
    segment   |---------|---------|---------|--------|
    middle        1         3         6         8          the frame at the middle
    uniform     0 1 2     2 3 4      5 6 7    7 8 9        any moment, equally likely

(Segments of whole frames, here of 2, would never show frames 8 and 9.)  A video of fewer than T
frames shows every frame once and repeats the last.
"""

import numpy as np
from numpy.typing import NDArray

EVALUATION_RULE = "middle_of_segments"
TRAINING_RULE = "uniform_in_segments"


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
    if length < 1:
        raise ValueError(f"a video of {length} frames shows nothing, expected 1 or more")
    frames = len(moments)
    if length < frames:
        return np.minimum(np.arange(frames), length - 1).astype(np.int32)
    index = np.floor((np.arange(frames) + moments) * length / frames)
    return np.minimum(index, length - 1).astype(np.int32)
