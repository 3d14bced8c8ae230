"""AFEW as users have it: ROOT/{train,validation}/Angry/000046280.avi, or folders of faces."""

from pathlib import Path

from pipeline.datasets.known import known_datasets
from pipeline.datasets.named import survey_classes
from pipeline.datasets.survey import Survey


def survey_afew(root: Path, source: str = "auto") -> Survey:
    """Train on train, test on validation: the labels of AFEW's own test part are not public."""
    return survey_classes("afew", root, source, known_datasets()["afew"].classes, "validation")
