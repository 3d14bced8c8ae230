"""CREMA-D as it is distributed: ROOT/VideoFlash/1019_DFA_ANG_XX.flv; actor, sentence, class, level.

Converted videos and folders of frames of the same names are found too. No split is official: five
folds, disjoint by actor, are made here.
"""

import re
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.folds import folds_of_subjects
from pipeline.datasets.known import known_datasets
from pipeline.datasets.named import survey_named
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, Parts, scan

FOLDS = 5
_NAME = re.compile(r"(\d{4})_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_[A-Z]{1,2}")


def id_of(parts: Parts) -> str | None:
    """The name of a video without its suffix; None for other files."""
    return parts[-1] if _NAME.fullmatch(parts[-1]) else None


LAYOUT = Layout(lambda parts: id_of(parts) is not None, id_of, unpack="VideoFlash")


def survey_crema_d(root: Path, source: str = "auto") -> Survey:
    """All videos under ``root``, in five folds; the n-th actor is tested in fold n mod 5."""
    classes = known_datasets()["crema-d"].classes
    tree = scan(root, LAYOUT.video, LAYOUT.unpack)
    survey = survey_named("crema-d", tree, source, LAYOUT, classes, lambda i: i.split("_")[2])
    subjects = {video_id: video_id.split("_")[0] for video_id in survey.labels}
    folds = folds_of_subjects(subjects, lambda n: n % FOLDS + 1)
    return replace(survey, subjects=subjects, folds=folds)
