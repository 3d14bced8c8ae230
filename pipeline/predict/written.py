"""Predictions -> files in a folder, each complete or absent; docs/predict.md describes them."""

import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cache.files import (
    csv_bytes,
    make_directories,
    storage_errors,
    sweep,
    sync_directory,
    write_files,
)
from cache.identity import FrozenModel, Identity
from pipeline.evaluate.influence import Influence
from pipeline.predict.features import Encoded
from pipeline.predict.overlay import overlay
from pipeline.predict.pictures import strip, timeline
from pipeline.predict.prediction import VideoPrediction, best_window
from pipeline.show import show

CSV, JSON = "predictions.csv", "predictions.json"
STRIPS, TIMELINES, OVERLAYS, SCRATCH = "strips", "timelines", "overlays", ".tmp"
_NAME_LETTERS = 80


class PredictionFile(FrozenModel):
    """The content of predictions.json."""

    schema_version: Literal[1] = 1
    networks: tuple[str, ...]
    classes: tuple[str, ...]
    influence: Influence = "logit"  # its measure, see influence_by
    features: Identity  # how the encoder made the features of the networks' training videos
    videos: tuple[VideoPrediction, ...]


def write_predictions(
    out: Path, content: PredictionFile, pictures: Collection[Path] | None = ()
) -> list[Path]:
    """Write predictions.csv and predictions.json; returns their paths.

    Of what other predictions left in the folders of pictures, only ``pictures`` stay, or all if
    that is None.
    """
    classes = content.classes
    head = ["name", "status", "reason", "faces", "label", *(f"p_{name}" for name in classes)]
    rows = [
        [show(own.name), own.status, show(own.reason), own.faces or "", own.label or ""]
        + [own.probabilities.get(name, "") for name in classes]
        + [_known(own.doubt), own.frames, own.seconds, len(own.windows), "; ".join(own.flags)]
        for own in content.videos
    ]
    table = csv_bytes([*head, "doubt", "frames", "seconds", "windows", "flags"], rows)
    files = {out / CSV: table, out / JSON: content.model_dump_json(indent=1).encode() + b"\n"}
    _write(out, files)
    with storage_errors(out):
        others = () if pictures is None else set(_pictures_in(out)).difference(pictures)
        for path in others:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        sweep(out / SCRATCH)
        (out / SCRATCH).rmdir()
    return list(files)


def pictures_of(out: Path, number: int, video: VideoPrediction, overlay: bool) -> list[Path]:
    """Where the functions below write what can be seen of a prediction."""
    strip, plot, movie = (
        out / folder / f"{_file_name(number, video.name)}{end}"
        for folder, end in ((STRIPS, ".png"), (TIMELINES, ".png"), (OVERLAYS, ".mp4"))
    )
    plots = [plot.with_suffix(".csv"), plot] if len(video.windows) > 1 else []
    return [strip, *plots, *([movie] if overlay else [])]


def write_strip(
    out: Path,
    number: int,
    video: VideoPrediction,
    pictures_THWC: NDArray[np.uint8],
    influence: Influence = "logit",
) -> None:
    """Write the strip of the window that speaks most for the label of the video."""
    window = best_window(video)
    of_many = f", {window.start:.1f} to {window.end:.1f} s" if len(video.windows) > 1 else ""
    data = strip(f"{video.name}{of_many}; influence: {influence}", window, pictures_THWC)
    _write(out, {out / STRIPS / f"{_file_name(number, video.name)}.png": data})


def write_timeline(out: Path, number: int, video: VideoPrediction) -> None:
    """Write the windows of a video, one line each, and a plot of their probabilities."""
    classes = list(video.probabilities)
    rows = [
        [own.start, own.end, own.label, *own.probabilities.values(), _known(own.doubt)]
        for own in video.windows
    ]
    table = csv_bytes(["start", "end", "label", *(f"p_{name}" for name in classes), "doubt"], rows)
    place = out / TIMELINES / _file_name(number, video.name)
    files = {".csv": table, ".png": timeline(video)}
    _write(out, {place.with_name(f"{place.name}{end}"): data for end, data in files.items()})


def write_overlay(
    out: Path,
    number: int,
    video: VideoPrediction,
    encoded: Encoded,
    influence: Influence = "logit",
) -> None:
    """Write the video once more, with what was predicted under its picture.

    Raises BadVideoError if it is no longer as it was read.
    """
    target = out / OVERLAYS / f"{_file_name(number, video.name)}.mp4"
    scratch = out / SCRATCH / uuid.uuid4().hex
    make_directories(target.parent, scratch.parent)
    with storage_errors(out):
        try:
            overlay(scratch, video, encoded, influence)
            with scratch.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(scratch, target)
            sync_directory(target.parent)
        finally:
            scratch.unlink(missing_ok=True)


def _file_name(number: int, name: str) -> str:
    """Unique by its number, and no path: ``0003-clips-day-1-a``."""
    return f"{number + 1:04d}-{re.sub(r'[^A-Za-z0-9._]+', '-', name)[-_NAME_LETTERS:]}"


def _pictures_in(out: Path) -> Iterator[Path]:
    """What these functions wrote, now or earlier."""
    for folder in (STRIPS, TIMELINES, OVERLAYS):
        yield from (out / folder).glob("[0-9][0-9][0-9][0-9]*-*")


def _known(value: float | None) -> float | str:
    return "" if value is None else value


def _write(out: Path, files: dict[Path, bytes]) -> None:
    make_directories(*{path.parent for path in files}, out / SCRATCH)
    write_files(files, out / SCRATCH)
