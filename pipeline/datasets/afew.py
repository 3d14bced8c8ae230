"""AFEW as users have it: ROOT/{train,validation}/Angry/000046280.avi, or folders of faces."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.known import known_datasets
from pipeline.datasets.named import survey_classes
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import some


def survey_afew(root: Path, source: str = "auto") -> Survey:
    """Train on train, test on validation: the labels of AFEW's own test part are not public."""
    classes = known_datasets()["afew"].classes
    survey = survey_classes("afew", root, source, classes, "validation")
    return replace(survey, notes=_repeated_note(survey.labels))


def _repeated_note(ids: Iterable[str]) -> tuple[str, ...]:
    """Clips of one number, also as ``000000100 (1)``: one may be a copy in a wrong place."""
    first: dict[str, str] = {}
    again = []
    for video_id in ids:
        number = re.sub(r" *(\(\d+\)|- copy)$", "", video_id.split("/")[-1], flags=re.IGNORECASE)
        other = first.setdefault(number, video_id)
        again += [f"{other} and {video_id}"] if other != video_id else []
    return (
        f"clips with the number of another: {some(again)}; see whether they are copies",
    ) * bool(again)
