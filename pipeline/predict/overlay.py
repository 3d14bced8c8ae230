"""A video and what was predicted for it -> the same video with that drawn under its picture."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.evaluate.influence import Influence
from pipeline.predict.features import Encoded, read_again
from pipeline.predict.pictures import colour_of, draw_text, likely_classes
from pipeline.predict.prediction import VideoPrediction, WindowPrediction, scaled
from pipeline.predict.windows import Windows
from pipeline.video.crops import Crop

WIDTH_MIN = 480  # px; a smaller picture is enlarged, so that the text can be read
NOW, LINE, FACE = (220, 30, 30), (150, 150, 150), (60, 180, 75)
_LETTERS = 40  # of the text's height in the width of the picture
_TICKS = 60_000  # per second; MPEG-4 knows no more than 65,535
_CODECS = {"libx264": {"crf": "20", "preset": "veryfast", "bf": "0"}, "mpeg4": {"qscale": "3"}}
_ROUNDING = 1e-6  # seconds


def overlay(
    path: Path, video: VideoPrediction, encoded: Encoded, influence: Influence = "logit"
) -> None:
    """Write a predicted video to ``path`` (mp4, without sound), with a panel under each frame.

    Every frame is shown as long as in the source. The panel has the label and the most likely
    classes of the window whose middle is nearest, the influence of its frames, scaled as in a
    strip, and where in the window the frame is; of several windows, also where in the video.
    Of a person who was cropped out, it has the frames in which that person is, and a box around
    the face. Raises BadVideoError if the source is no longer as it was read.
    """
    windows = encoded.windows
    assert windows is not None
    first, count = encoded.crop.track.span if encoded.crop else (0, windows.count)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        movie = _Movie(container, windows, encoded.crop, _Panels(video, influence))
        # Headers may promise other frames.
        read_again(
            encoded,
            lambda all: range(first, first + count) if all == len(windows.times_F) else (),
            movie.add,
        )
        movie.end()


class _Movie:
    """Frames -> a video stream; the first frame decides about its size."""

    def __init__(
        self, container: Any, windows: Windows, crop: Crop | None, panels: "_Panels"
    ) -> None:
        self._container, self._panels = container, panels
        self._times_F, self._track = windows.times_F, crop.track if crop else None
        self._first = self._track.first if self._track else 0
        begin = windows.start_N[0]
        shown_F = windows.times_F[self._first : self._first + windows.count] - begin
        ticks = np.round(np.append(shown_F, windows.duration) * _TICKS).astype(int)
        order = np.arange(len(ticks))  # time stamps have to grow, if only by one tick
        self._pts = np.maximum.accumulate(ticks - order) + order
        self._stream: Any = None
        self._size = 0, 0

    def add(self, index: int, image: NDArray[np.uint8]) -> None:
        """Encode one frame, uint8 [H, W, 3], with what belongs under it."""
        self._stream = self._stream or self._begin(*image.shape[:2])
        panel = self._panels.at(float(self._times_F[index]), self._size[0])
        shown = np.concatenate([self._picture(index, image), panel])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
        frame.time_base = Fraction(1, _TICKS)
        pts, until = self._pts[index - self._first :][:2].tolist()
        frame.pts, frame.duration = pts, until - pts
        self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Encode what the encoder still holds."""
        self._container.mux(self._stream.encode(None))

    def _begin(self, height: int, width: int) -> Any:
        scale = max(1.0, WIDTH_MIN / width)
        self._size = _even(width * scale), _even(height * scale)
        codec = next(name for name in _CODECS if name in av.codecs_available)
        # The rate is nominal: each frame says when it is shown.
        stream = self._container.add_stream(codec, rate=25, options=_CODECS[codec])
        stream.width = self._size[0]
        stream.height = self._size[1] + panel_height(stream.width)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        return stream

    def _picture(self, index: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame in the size of the stream, with a box around the face if that was cropped."""
        picture: NDArray[np.uint8] = np.asarray(cv2.resize(image, self._size), np.uint8)
        if self._track:
            scale = np.divide(self._size, image.shape[1::-1])
            box = self._track.faces_F[index - self._first, :4].reshape(2, 2) * scale
            rectangle = box.round().astype(int).ravel().tolist()
            cv2.rectangle(picture, rectangle, FACE, max(2, self._size[0] // 160))
        return picture


def panel_height(width: int) -> int:
    """Pixels under a picture of ``width``."""
    return _even(9 * width / _LETTERS)


@dataclass(frozen=True)
class _Panel:
    """What is under the picture while one window is the present one."""

    image: Image.Image
    marks: tuple[tuple[int, int, Callable[[float], float]], ...]  # top, bottom, seconds -> x


class _Panels:
    """The panels of a video."""

    def __init__(self, video: VideoPrediction, influence: Influence) -> None:
        self._video, self._influence = video, influence
        middle_N = np.array([(own.start + own.end) / 2 for own in video.windows])
        self._border_N = (middle_N[1:] + middle_N[:-1]) / 2 - _ROUNDING
        self._drawn = lru_cache(maxsize=1)(self._draw)

    def at(self, seconds: float, width: int) -> NDArray[np.uint8]:
        """The panel at a moment of the video, uint8 [H, width, 3]."""
        panel = self._drawn(int(np.searchsorted(self._border_N, seconds, "right")), width)
        image, letter = panel.image.copy(), width // _LETTERS
        draw = ImageDraw.Draw(image)
        for top, bottom, place in panel.marks:
            x = place(seconds)
            draw.line((x, top, x, bottom), NOW, max(3, letter // 5))
        draw_text(draw, (width - 5 * letter, letter // 2), f"{seconds:.2f} s", letter)
        shown: NDArray[np.uint8] = np.asarray(image)
        return shown

    def _draw(self, number: int, width: int) -> _Panel:
        letter, height = width // _LETTERS, panel_height(width)
        window = self._video.windows[number]
        image = Image.new("RGB", (width, height), "white")
        draw, pad = ImageDraw.Draw(image), letter // 2
        doubt = "" if window.doubt is None else f", doubt {window.doubt:.2f}"
        title = f"{window.label}{doubt}; influence: {self._influence}"
        draw_text(draw, (pad, pad), title, letter)
        draw_text(draw, (pad, 2 * letter), likely_classes(window), letter)
        within = _places(window.start, window.end, width, pad)
        top, bottom = 4 * letter, height - 2 * letter
        _draw_curve(draw, window, within, top, bottom, letter)
        marks = [(top - pad, bottom + pad, within)]
        if len(self._video.windows) > 1:
            begin = self._video.windows[0].start
            end = begin + self._video.seconds
            whole = _places(begin, end, width, pad)
            top, bottom = height - letter, height - pad
            draw.rectangle((whole(begin), top, whole(end), bottom), LINE)
            draw.rectangle((whole(window.start), top, whole(window.end), bottom), "black")
            marks.append((top - pad // 2, height - 1, whole))
        return _Panel(image, tuple(marks))


def _draw_curve(
    draw: ImageDraw.ImageDraw,
    window: WindowPrediction,
    place: Callable[[float], float],
    top: int,
    bottom: int,
    letter: int,
) -> None:
    """The influence of the window's frames, in the colours of a strip."""
    shares = scaled(window)
    used = [
        (place(moment.seconds), bottom - share * (bottom - top), share)
        for moment, share in zip(window.frames, shares.tolist(), strict=True)
        if not np.isnan(share)
    ]
    draw.line([(x, y) for x, y, _ in used], LINE, 2)
    radius = letter / 3
    for x, y, share in used:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour_of(share))


def _places(start: float, end: float, width: int, pad: int) -> Callable[[float], float]:
    """Seconds -> the x of their place between two margins."""
    scale = (width - 2 * pad) / (end - start)
    return lambda seconds: pad + min(max(seconds - start, 0), end - start) * scale


def _even(pixels: float) -> int:
    return max(2, 2 * round(pixels / 2))
