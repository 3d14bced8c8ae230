"""RAVDESS as it is distributed: ROOT/Actor_05/02-01-03-01-01-01-05.mp4.

The fields are modality (01 with sound, 02 video, 03 sound), channel (01 speech, 02 song), class,
intensity, statement, repetition and actor. Speech alone is read, and each performance once. No
split is official: six folds of four actors are made here, in the order of their numbers.
"""

import re
from pathlib import Path

from pipeline.datasets.named import survey_actors
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, scan

ACTORS_PER_FOLD = 4
CODES = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
_NAME = re.compile(r"0[12]-01-0[1-8]-0[12]-0[12]-0[12]-\d{2}")


def survey_ravdess(root: Path, source: str = "auto") -> Survey:
    """The speech videos under ``root``: those without sound or, if there are none, with sound."""
    tree = scan(root, lambda parts: _NAME.fullmatch(parts[-1]) is not None, "Actor_01 to Actor_24")
    modality = "02" if any(entry.parts[-1].startswith("02") for entry in tree.videos) else "01"
    layout = Layout(
        lambda parts: _NAME.fullmatch(parts[-1]) is not None,
        lambda parts: parts[-1] if parts[-1].startswith(modality) else None,
        levels=1,
        unpack="Actor_01 to Actor_24",
    )
    word_of, subject_of = (lambda i: CODES[i.split("-")[2]]), (lambda i: i.split("-")[6])
    return survey_actors(
        "ravdess", tree, source, layout, word_of, subject_of, lambda n: n // ACTORS_PER_FOLD + 1
    )
