"""The name of a data set and its folder -> Survey: the one place that knows every adapter."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.afew import survey_afew
from pipeline.datasets.caer import survey_caer
from pipeline.datasets.crema_d import survey_crema_d
from pipeline.datasets.dfew import survey_dfew
from pipeline.datasets.enterface import survey_enterface
from pipeline.datasets.ferv39k import survey_ferv39k
from pipeline.datasets.folders import survey_folders
from pipeline.datasets.folds import draw_folds
from pipeline.datasets.list import survey_list
from pipeline.datasets.mafw import survey_mafw
from pipeline.datasets.ravdess import survey_ravdess
from pipeline.datasets.survey import Survey
from pipeline.datasets.texts import read_texts, texts_of
from pipeline.datasets.videos import VideoList

WITH_LISTS: dict[str, Callable[[Path, Path | None, str], Survey]] = {
    "dfew": survey_dfew,
    "ferv39k": survey_ferv39k,
    "mafw": survey_mafw,
}
WITH_NAMES: dict[str, Callable[[Path, str], Survey]] = {
    "caer": survey_caer,
    "crema-d": survey_crema_d,
    "ravdess": survey_ravdess,
    "afew": survey_afew,
    "enterface": survey_enterface,
    "folders": survey_folders,
}


def survey_dataset(
    name: str,
    root: Path,
    annotation: Path | None = None,
    source: str = "auto",
    texts: Path | None = None,
    folds: int | None = None,
) -> Survey:
    """Read a data set under ``root``, with class texts of its own and folds if it has none.

    ``annotation`` is where the lists are if not in the root, ``source`` which copy of the pixels to
    take, ``texts`` a file as ``read_texts`` expects, ``folds`` how many folds to draw. Raises
    RefusedError for anything contradictory, and for what the data set does not read.
    """
    own = None if texts is None else read_texts(texts)
    if annotation is not None and name in WITH_NAMES:
        raise RefusedError(f"--annotation: not read with --dataset {name}, which has no lists")
    if name == "list":
        survey = survey_list(root, annotation, source, None if own is None else tuple(own))
    elif name in WITH_LISTS:
        survey = WITH_LISTS[name](root, annotation, source)
    else:
        survey = WITH_NAMES[name](root, source)
    return _with_folds(replace(survey, texts=texts_of(survey.classes, own)), folds)


def videos_of(survey: Survey, limit: int | None = None) -> VideoList:
    """The first videos of a survey, or all; refuses missing ones, and a set without a split."""
    if not survey.folds:
        raise RefusedError(
            f"{survey.root}: nothing says which videos are for training and which for testing; add "
            "--folds 5 to draw folds"
            + (", or a column split or fold to the list" if survey.name == "list" else "")
        )
    return survey.video_list(limit)


def _with_folds(survey: Survey, folds: int | None) -> Survey:
    if folds is None:
        return survey
    if survey.folds:
        raise RefusedError(
            f"--folds {folds}: {survey.name} has a split already ({len(survey.folds)} folds)"
        )
    return replace(survey, folds=draw_folds(survey.labels, survey.subjects, folds))
