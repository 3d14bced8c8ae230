"""Times of the frames of a video -> windows, and the T frames that each of them shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from pipeline.video.images import BadVideoError
from pipeline.video.sampling import middle_of_segments

WINDOWS_MAX = 100_000  # of one video
USUAL_FPS = 25.0
_ROUNDING = 1e-6  # seconds by which time stamps may be rounded


@dataclass(frozen=True)
class Sliding:
    """Windows of ``window`` seconds, one every ``stride`` seconds."""

    window: float
    stride: float

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("stride", self.stride)):
            if not 0.01 <= value <= 86_400:
                raise RefusedError(f"{name} is {value:g} seconds, expected 0.01 to 86400")
        if self.stride > self.window:
            raise RefusedError(
                f"stride {self.stride:g} is longer than window {self.window:g}, so frames between "
                "the windows would never be seen"
            )

    @classmethod
    def of(cls, window: float | None, stride: float | None = None) -> "Sliding | None":
        """Half of ``window`` is the usual stride; raises RefusedError for a stride alone."""
        if window is None:
            if stride is not None:
                raise RefusedError("stride is not read without window; give both")
            return None
        return cls(window, window / 2 if stride is None else stride)


@dataclass(frozen=True)
class Windows:
    """N windows of a video, or of the part with one person, and the T frames that each shows."""

    start_N: NDArray[np.float64]  # seconds
    end_N: NDArray[np.float64]  # seconds
    frame_NT: NDArray[np.int32]  # index in the video
    times_F: NDArray[np.float64]  # when each frame of the video is shown, in seconds
    duration: float  # of the video or the part, in seconds
    count: int  # frames of the video or the part


def place_windows(times_F: NDArray[np.float64], frames: int, sliding: Sliding | None) -> Windows:
    """Windows over a video whose frames are shown at ``times_F``; without ``sliding``, one.

    Window n begins at n x stride. Of a rest at the end that no window reaches, a last window shows
    the last seconds; a video shorter than a window has one. Each window is cut into T equal
    segments of frames, and shows the middle of each, as in extraction. A frame is shown until the
    next one is. Raises BadVideoError for more than 100,000 windows.
    """
    step = float(np.median(np.diff(times_F))) if len(times_F) > 1 else 1 / USUAL_FPS
    duration = float(times_F[-1]) + step
    if sliding is None or duration <= sliding.window + _ROUNDING:
        start_N, end_N = np.zeros(1), np.full(1, duration)
    else:
        start_N = _starts(duration, sliding)
        end_N = start_N + sliding.window
    first_N = np.searchsorted(times_F, start_N + _ROUNDING, "right") - 1
    after_N = np.searchsorted(times_F, end_N - _ROUNDING, "left")
    shown = [
        first + middle_of_segments(max(1, after - first), frames)
        for first, after in zip(first_N.tolist(), after_N.tolist(), strict=True)
    ]
    frame_NT = np.stack(shown).astype(np.int32)
    return Windows(start_N, end_N, frame_NT, times_F, duration, len(times_F))


def place_windows_within(
    times_F: NDArray[np.float64], span: tuple[int, int], frames: int, sliding: Sliding | None
) -> Windows:
    """As ``place_windows``, over the frames of ``span`` (the first, how many) as if alone.

    Times and frames are counted from the beginning of the video.
    """
    first, count = span
    begin = times_F[first]
    part = place_windows(times_F[first : first + count] - begin, frames, sliding)
    return replace(
        part,
        start_N=begin + part.start_N,
        end_N=begin + part.end_N,
        frame_NT=first + part.frame_NT,
        times_F=times_F,
    )


def _starts(duration: float, sliding: Sliding) -> NDArray[np.float64]:
    last = duration - sliding.window
    count = math.floor(last / sliding.stride + _ROUNDING) + 1
    if count >= WINDOWS_MAX:
        raise BadVideoError(
            f"{duration:.0f} seconds have {count} windows, expected at most {WINDOWS_MAX}"
        )
    starts = np.arange(count, dtype=np.float64) * np.float64(sliding.stride)
    return np.append(starts, last) if last - starts[-1] > sliding.stride / 100 else starts


def times_of(
    count: int, told: Sequence[NDArray[np.float64]], fps: float | None
) -> NDArray[np.float64]:
    """Times of ``count`` frames, of which a file may have ``told`` the times.

    If it told those of another number of frames, or nothing, they are evenly spaced, at the rate of
    what it told, or at ``fps``.
    """
    times = told[-1] if told else np.empty(0)
    if len(times) == count:
        return times
    if len(times) > 1 and times[-1] > 0:
        return np.arange(count) * (times[-1] / (len(times) - 1))
    return np.arange(count) / (fps or USUAL_FPS)
