"""eNTERFACE'05 as it is distributed: ROOT/subject 1/anger/sentence 1/s1_an_1.avi.

The names of files say subject, class and sentence; folders may be any, but must not say another
class. No split is official: five folds, disjoint by subject, are made here.
"""

import re
from pathlib import Path

from pipeline.datasets.named import survey_actors
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Layout, Parts, scan

FOLDS = 5
_NAME = re.compile(r"s_?(\d{1,2})_(an|di|fe|ha|sa|su)_(\d)", re.IGNORECASE)


def id_of(parts: Parts) -> str | None:
    """``s1_an_1`` from a name such as ``s_1_an_1``; None for other files."""
    found = _NAME.fullmatch(parts[-1])
    return found and f"s{int(found[1])}_{found[2].lower()}_{found[3]}"


LAYOUT = Layout(
    lambda parts: id_of(parts) is not None, id_of, levels=3, unpack="subject 1, subject 2, …"
)


def survey_enterface(root: Path, source: str = "auto") -> Survey:
    """All videos under ``root``, in five folds; the n-th subject is tested in fold n mod 5."""
    tree = scan(root, LAYOUT.video, LAYOUT.unpack)
    word_of, subject_of = (lambda i: i.split("_")[1]), (lambda i: i.split("_")[0])
    return survey_actors(
        "enterface", tree, source, LAYOUT, word_of, subject_of, lambda n: n % FOLDS + 1
    )
