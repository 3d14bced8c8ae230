"""CREMA-D as it is distributed: ROOT/VideoFlash/1019_DFA_ANG_XX.flv; actor, sentence, class, level.

Converted videos and folders of frames of the same names are found too. No split is official: five
folds, disjoint by actor, are made here.
"""

import re
from pathlib import Path

from pipeline.datasets.named import survey_actors
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
    tree = scan(root, LAYOUT.video, LAYOUT.unpack)
    word_of, subject_of = (lambda i: i.split("_")[2]), (lambda i: i.split("_")[0])
    return survey_actors(
        "crema-d", tree, source, LAYOUT, word_of, subject_of, lambda n: n % FOLDS + 1
    )
