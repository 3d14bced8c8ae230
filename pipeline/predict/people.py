"""A video -> a table of who is cropped out of it where, and a sheet of pictures that show it."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cache.files import csv_bytes
from pipeline.predict.windows import times_of
from pipeline.video.crops import Crop, Cropping
from pipeline.video.frames import Choose, Found, Take
from pipeline.video.isolated import Decoder
from pipeline.video.sampling import middle_of_segments
from pipeline.video.tracks import People, Track, find_people

CSV, SHEET = "faces.csv", "faces.png"
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
_FRAMES, _FRAME_PX = 8, 320  # in two rows
_CROPS, _CROP_PX, _LINE_PX = 16, 80, 14
_PEOPLE_MAX = 20  # on a sheet
HEAD = (
    *("person", "frame", "seconds", "found", "x", "y", "width", "height", "score"),
    *("crop_x", "crop_y", "crop_side"),
)


@dataclass(frozen=True)
class Shown:
    """Who is in a video, when its frames are shown, and the bytes of CSV and SHEET."""

    people: People
    times_F: NDArray[np.float64]
    csv: bytes
    sheet: bytes


def show_people(path: Path, cropping: Cropping = "crop", seconds_max: float = 3600.0) -> Shown:
    """Follow the faces of a video and draw what is cropped; BadVideoError as in prediction.

    The table has one line per person and frame: the box, whether it was found there or
    interpolated, and the square around it, all in pixels of the frame.
    """
    told: list[NDArray[np.float64]] = []
    with Decoder() as decoder:

        def read(path: Path, choose: Choose, take: Take) -> Found:
            tell = None if path.is_dir() else told.append
            return decoder.read_frames(path, choose, take, seconds_max, tell)

        people = find_people(path, read)
        sheet = _Sheet(people, cropping)
        people.check_same(read(path, sheet.choose, sheet.take))
    times_F = times_of(people.found.frames, told, None)
    rows = [row for n, track in enumerate(people.tracks) for row in _rows(n + 1, track, times_F)]
    return Shown(people, times_F, csv_bytes(HEAD, rows), sheet.png())


def _rows(person: int, track: Track, times_F: NDArray[np.float64]) -> Iterator[list[object]]:
    for number, face in enumerate(track.faces_F.round(2).tolist()):
        frame, side = track.first + number, round(float(track.sides_F[number]), 2)
        x, y, width, height = face[:4]
        corner = [round(x + (width - side) / 2, 2), round(y + (height - side) / 2, 2)]
        found = int(frame in track.seen)
        seconds = round(float(times_F[frame]), 3)
        yield [person, frame, seconds, found, x, y, width, height, face[14], *corner, side]


class _Sheet:
    """Some frames with the boxes of all persons, and below some crops of each person."""

    def __init__(self, people: People, cropping: Cropping) -> None:
        self._crops = [Crop(track, cropping) for track in people.tracks[:_PEOPLE_MAX]]
        self._shown = [
            (track.first + middle_of_segments(track.span[1], _CROPS)).tolist()
            for track in people.tracks[:_PEOPLE_MAX]
        ]
        self._frames: list[int] = []
        columns, (width, height) = _FRAMES // 2, people.size_px
        self._frame_size = (
            _FRAME_PX,
            min(max(1, round(_FRAME_PX * height / width)), 4 * _FRAME_PX),
        )
        self._top = 2 * self._frame_size[1]
        size = (columns * _FRAME_PX, self._top + len(self._crops) * (_CROP_PX + _LINE_PX))
        self._image = Image.new("RGB", size, "white")

    def choose(self, count: int) -> set[int]:
        """The frames that the sheet shows, of ``count``."""
        self._frames = middle_of_segments(count, _FRAMES).tolist()
        return {*self._frames, *(frame for shown in self._shown for frame in shown)}

    def take(self, index: int, image_HWC: NDArray[np.uint8]) -> None:
        """Draw a frame wherever it is shown."""
        for place in (place for place, frame in enumerate(self._frames) if frame == index):
            row, column = divmod(place, _FRAMES // 2)
            picture = Image.fromarray(image_HWC)
            self._draw_boxes(picture, index)
            corner = (column * _FRAME_PX, row * self._frame_size[1])
            self._image.paste(picture.resize(self._frame_size), corner)
        for person, (crop, shown) in enumerate(zip(self._crops, self._shown, strict=True)):
            for place in (place for place, frame in enumerate(shown) if frame == index):
                picture = Image.fromarray(crop(index, image_HWC)).resize((_CROP_PX, _CROP_PX))
                top = self._top + person * (_CROP_PX + _LINE_PX) + _LINE_PX
                self._image.paste(picture, (place * _CROP_PX, top))

    def png(self) -> bytes:
        """The sheet."""
        draw = ImageDraw.Draw(self._image)
        for person, crop in enumerate(self._crops):
            first, count = crop.track.span
            text = f"#{person + 1}: frames {first} to {first + count - 1}, {crop.track.side_px} px"
            top = self._top + person * (_CROP_PX + _LINE_PX)
            draw.text((0, top), text, COLOURS[person % len(COLOURS)])
        data = io.BytesIO()
        self._image.save(data, "png")
        return data.getvalue()

    def _draw_boxes(self, picture: Image.Image, index: int) -> None:
        draw, line = ImageDraw.Draw(picture), max(1, picture.width // 160)
        for person, crop in enumerate(self._crops):
            first, count = crop.track.span
            if first <= index < first + count:
                x, y, width, height = crop.track.faces_F[index - first, :4].tolist()
                colour = COLOURS[person % len(COLOURS)]
                draw.rectangle((x, y, x + width, y + height), outline=colour, width=line)
                draw.text((x + line + 1, y + line), f"#{person + 1}", colour)
