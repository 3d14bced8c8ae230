"""RAVDESS as it is distributed: ROOT/Actor_05/01-01-03-01-01-01-05.mp4.

The fields are modality (01 with sound, 02 video, 03 sound), channel (01 speech, 02 song), class,
intensity, statement, repetition and actor. Speech alone is read, and each performance once: with
sound if it is there. No split is official: six folds of four actors are made here, in the order of
their numbers.
"""

import re
from dataclasses import replace
from pathlib import Path

from pipeline.datasets.named import survey_actors
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, scan
from pipeline.datasets.videos import cut_folds

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


LAYOUT = Layout(
    lambda parts: _NAME.fullmatch(parts[-1]) is not None,
    lambda parts: parts[-1],
    levels=1,
    unpack="Actor_01 to Actor_24",
)


def survey_ravdess(root: Path, source: str = "auto") -> Survey:
    """The speech videos under ``root``, each performance once; a note counts those left out."""
    tree = scan(root, LAYOUT.video, LAYOUT.unpack)
    word_of, subject_of = (lambda i: CODES[i.split("-")[2]]), (lambda i: i.split("-")[6])
    survey = survey_actors(
        "ravdess", tree, source, LAYOUT, word_of, subject_of, lambda n: n // ACTORS_PER_FOLD + 1
    )
    silent = [i for i in survey.labels if i.startswith("02")]
    twice = {i for i in silent if f"01{i[2:]}" in survey.found.places}
    kept = {i: label for i, label in survey.labels.items() if i not in twice}
    found = replace(
        survey.found, places={i: at for i, at in survey.found.places.items() if i not in twice}
    )
    return replace(
        survey,
        labels=kept,
        subjects={i: survey.subjects[i] for i in kept},
        folds=cut_folds(survey.folds, kept),
        found=replace(found, ids=tuple(i for i in found.ids if i not in twice)),
        notes=_notes(len(kept), len(silent) - len(twice), len(twice)),
    )


def _notes(kept: int, silent: int, twice: int) -> tuple[str, ...]:
    left_out = [f"{twice} videos without sound are left out: they are there with sound too"]
    mixed = [f"{silent} of {kept} performances are there without sound only"]
    return (*(left_out if twice else ()), *(mixed if 0 < silent < kept else ()))
