"""CAER as it is distributed: ROOT/{train,validation,test}/Anger/0001.avi, or folders of frames."""

from pathlib import Path

from pipeline.datasets.known import known_datasets
from pipeline.datasets.named import survey_classes
from pipeline.datasets.survey import Survey


def survey_caer(root: Path, source: str = "auto") -> Survey:
    """Train on train, test on test; the validation part is the subset "validation"."""
    return survey_classes("caer", root, source, known_datasets()["caer"].classes, "test")
