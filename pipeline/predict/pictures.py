"""Predictions -> pictures: a strip of a window's frames, and the timeline of a video."""

import io
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.predict.prediction import VideoPrediction, WindowPrediction, scaled
from pipeline.report.curves import plain_names
from pipeline.show import show

COLOURS = matplotlib.colormaps["viridis"]  # from purple, the lowest influence, to yellow
UNUSED = (200, 200, 200)  # a frame that no network used
SIZE, BAR, LINE, GAP = 96, 14, 18, 2  # px
_SHOWN_CLASSES = 3
_TITLE_LETTERS = 160


def strip(title: str, window: WindowPrediction, pictures_THWC: NDArray[np.uint8]) -> bytes:
    """The T frames of a window as a PNG, under each its influence as a colour, and its time.

    Influence is scaled from the lowest to the highest of the window (eq. 12), as in Fig. 4 of the
    paper: purple is lowest, yellow highest.
    """
    count, step = len(window.frames), SIZE + GAP
    image = Image.new("RGB", (count * step - GAP, 2 * LINE + SIZE + BAR + LINE), "white")
    draw = ImageDraw.Draw(image)
    draw_text(draw, (0, 0), title)
    draw_text(draw, (0, LINE), _describe(window))
    shades = zip(window.frames, scaled(window).tolist(), pictures_THWC, strict=True)
    for t, (moment, share, picture_HWC) in enumerate(shades):
        left, top = t * step, 2 * LINE
        image.paste(Image.fromarray(picture_HWC).resize((SIZE, SIZE)), (left, top))
        box = (left, top + SIZE, left + SIZE - 1, top + SIZE + BAR - 1)
        draw.rectangle(box, fill=colour_of(share))
        draw_text(draw, (left, top + SIZE + BAR), f"{moment.seconds:.2f} s")
    return _png(image)


@plain_names()
def timeline(video: VideoPrediction) -> bytes:
    """The probability of each class over the windows of a video, and the doubt, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot()
    middles = [(window.start + window.end) / 2 for window in video.windows]
    for name in video.probabilities:
        shares = [window.probabilities[name] for window in video.windows]
        axes.plot(middles, shares, label=_text(name), marker=".", markersize=3)
    if video.doubt is not None:
        doubts = [float(window.doubt or 0) for window in video.windows]
        axes.plot(middles, doubts, "k:", label="doubt")
    axes.set(xlabel="seconds (middle of the window)", ylabel="probability", ylim=(0, 1))
    axes.set_title(_text(video.name), loc="left")
    figure.legend(loc="outside right upper")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


def colour_of(share: float) -> tuple[int, ...]:
    """The colour of a scaled influence, from purple, 0, to yellow, 1."""
    return UNUSED if np.isnan(share) else tuple(map(int, COLOURS(share, bytes=True)[:3]))


def likely_classes(window: WindowPrediction) -> str:
    """The classes of highest probability, in per cent."""
    likely = sorted(window.probabilities.items(), key=lambda item: -item[1])[:_SHOWN_CLASSES]
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in likely)


def draw_text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: float = 12
) -> None:
    """Write a line in black, ``size`` px high, from its upper left corner on."""
    draw.text(place, _text(text), "black", _font(size))


def _describe(window: WindowPrediction) -> str:
    doubt = "" if window.doubt is None else f"; doubt {window.doubt:.2f}"
    return f"{window.label}: {likely_classes(window)}{doubt}"


def _text(text: str) -> str:
    return show(text)[:_TITLE_LETTERS]


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, size)


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "png")
    return data.getvalue()
