"""People of no fold of the embedded set -> their videos, what networks say of them, one page."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from cache.errors import RefusedError
from cache.files import make_directories
from cache.identity import WHOLE_FRAMES
from pipeline.datasets.dfew import CLASSES
from pipeline.demo.faces import (
    FacesSpec,
    PlannedVideo,
    plan_videos,
    render_video,
    write_mp4,
)
from pipeline.predict.pictures import strip
from pipeline.predict.prediction import VideoPrediction, best_window
from pipeline.predict.predictor import Predictor
from pipeline.predict.sources import find_sources
from pipeline.show import show

COUNT = 3
PAGE = "index.html"
_DRAWN = 5  # the stream of random numbers, of which faces.py uses others

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>tgdfer: three new faces</title>
<style>
body {{ font-family: sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }}
</style>
<h1>Three new faces</h1>
<p>{right} of {count} labels are right. The faces are rendered, of people who are in no fold of the
embedded set; {count} videos say nothing about how good a network is, and nothing about real
faces.</p>
<p>Under each frame is how much it speaks for the predicted label, from purple (least) to yellow
(most), and its time. Networks: {networks}.</p>
{videos}
</html>
"""
_VIDEO = """<h2>{name}: shows {label}, predicted {predicted} ({verdict})</h2>
<p><img alt="the frames of {name}" src="data:image/png;base64,{strip}"></p>
"""


@dataclass(frozen=True)
class Newcomer:
    """A video of a new person, the expression that it shows, and what was predicted."""

    path: Path
    label: str
    video: VideoPrediction
    strip: bytes  # PNG

    @property
    def is_right(self) -> bool:
        """Whether the label was predicted."""
        return self.video.label == self.label


def plan_newcomers() -> list[PlannedVideo]:
    """Three expressions drawn once, shown by people that no fold of the embedded set has."""
    spec = FacesSpec()
    labels = np.random.default_rng([spec.seed, _DRAWN]).choice(len(CLASSES), COUNT, replace=False)
    first = 1 + max(video.subject for video in plan_videos(spec))
    return [
        PlannedVideo(spec.videos + n, label, -1, first + n, ())
        for n, label in enumerate(labels.tolist())
    ]


def meet(predictor: Predictor, folder: Path) -> list[Newcomer]:
    """Render the newcomers as mp4 files in ``folder``, and predict them.

    Raises RefusedError if the networks know other classes.
    """
    if missing := set(CLASSES) - set(predictor.classes):
        raise RefusedError(
            f"the networks do not know {', '.join(sorted(missing))}, which the faces may show; "
            "use networks that were trained on the embedded set: make demo"
        )
    planned = plan_newcomers()
    paths = [_write(folder, video) for video in planned]
    found, settings = {}, predictor.settings(faces=WHOLE_FRAMES)
    for number, rows in predictor.stream(find_sources(paths), settings):
        ((video, _),), (shown,) = rows, predictor.pictures(rows)
        picture = strip(paths[number].name, best_window(video), shown)
        label = CLASSES[planned[number].label]
        found[number] = Newcomer(paths[number], label, video, picture)
    return [found[number] for number in range(COUNT)]


def page(newcomers: Sequence[Newcomer], networks: Sequence[str]) -> str:
    """What was predicted as one HTML page, which needs no other file."""
    videos = [
        _VIDEO.format(
            name=escape(show(own.path.name)),
            label=own.label,
            predicted=own.video.label,
            verdict="right" if own.is_right else "wrong",
            strip=base64.b64encode(own.strip).decode(),
        )
        for own in newcomers
    ]
    return _PAGE.format(
        right=sum(own.is_right for own in newcomers),
        count=len(newcomers),
        networks=escape(show(", ".join(networks))),
        videos="".join(videos),
    )


def _write(folder: Path, video: PlannedVideo) -> Path:
    make_directories(folder)
    path = folder / f"{video.id}.mp4"
    unfinished = path.with_name(f".{path.name}")
    write_mp4(unfinished, render_video(FacesSpec(), video))
    os.replace(unfinished, path)
    return path
