"""The name of a data set and its folder -> Survey: the one place that knows every adapter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cache.errors import RefusedError
from pipeline.datasets.afew import survey_afew
from pipeline.datasets.caer import survey_caer
from pipeline.datasets.crema_d import survey_crema_d
from pipeline.datasets.dfew import survey_dfew
from pipeline.datasets.enterface import survey_enterface
from pipeline.datasets.ferv39k import survey_ferv39k
from pipeline.datasets.folders import GUESSED, survey_folders
from pipeline.datasets.folds import choose_few, draw_folds
from pipeline.datasets.list import survey_list
from pipeline.datasets.mafw import survey_mafw
from pipeline.datasets.ravdess import survey_ravdess
from pipeline.datasets.subjects import read_subjects
from pipeline.datasets.survey import Survey
from pipeline.datasets.texts import read_texts, texts_of
from pipeline.datasets.tree import some
from pipeline.datasets.videos import Fold, VideoList

BY_SUBJECT = "subject"
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
}


def survey_dataset(
    name: str,
    root: Path,
    annotation: Path | None = None,
    source: str = "auto",
    texts: Path | None = None,
    folds: int | None = None,
    subjects: Path | None = None,
    by: str | None = None,
) -> Survey:
    """Read a data set under ``root``, with class texts of its own and folds if it has none.

    ``annotation`` is where the lists are if not in the root, ``source`` which copy of the pixels to
    take, ``texts`` a file as ``read_texts`` expects, ``folds`` how many folds to draw, ``subjects``
    a file as ``read_subjects`` expects. With ``by="subject"`` the drawn folds replace the data
    set's own, and everybody is known. Raises RefusedError for anything contradictory, and for what
    the data set does not read.
    """
    own = None if texts is None else read_texts(texts)
    if name == "list":
        survey = survey_list(root, annotation, source, None if own is None else tuple(own))
    elif name in WITH_LISTS:
        survey = WITH_LISTS[name](root, annotation, source)
    elif annotation is not None:
        raise RefusedError(f"--annotation: not read with --dataset {name}, which has no lists")
    elif name == "folders":
        survey = survey_folders(root, source, None if own is None else tuple(own))
    else:
        survey = WITH_NAMES[name](root, source)
    unknown = [cls for cls in own or () if cls not in survey.classes]
    if unknown:
        raise RefusedError(
            f"{texts}: [{unknown[0]}] is no class of {name}, whose classes are "
            f"{', '.join(survey.classes)}; rename or remove it"
        )
    survey = replace(survey, texts=texts_of(survey.classes, own))
    return _with_folds(_with_subjects(survey, subjects), folds, by)


def videos_of(survey: Survey, limit: int | None = None) -> VideoList:
    """The videos of a survey, or ``limit`` of them as ``choose_few`` does.

    Raises RefusedError for missing ones, and for a set without a split.
    """
    if not survey.folds:
        raise RefusedError(
            f"{survey.root}: nothing says which videos are for training and which for testing; add "
            "--folds 5 to draw folds"
            + (", or a column split or fold to the list" if survey.name == "list" else "")
            + "".join(f"; {note}" for note in survey.notes)
        )
    few = None if limit is None else choose_few(survey.labels, survey.folds, limit)
    return survey.video_list(few)


def _with_subjects(survey: Survey, file: Path | None) -> Survey:
    if file is None:
        return survey
    if survey.subjects and survey.name != "folders":  # whose folders are only taken for people
        raise RefusedError(f"--subjects {file}: {survey.name} says itself who is seen in a video")
    notes = tuple(note for note in survey.notes if GUESSED not in note)
    return replace(survey, subjects=read_subjects(file, survey.labels.keys()), notes=notes)


def _with_folds(survey: Survey, folds: int | None, by: str | None) -> Survey:
    if by not in (None, BY_SUBJECT):
        raise RefusedError(f"--by {by}: expected {BY_SUBJECT}")
    if folds is None:
        if by is not None:
            raise RefusedError(f"--by {by}: how many folds? Add --folds 5")
        return survey
    if by is not None:
        _refuse_unknown_people(survey)
    elif survey.folds:
        raise RefusedError(
            f"--folds {folds}: {survey.name} has a split already ({len(survey.folds)} folds); "
            f"--by {BY_SUBJECT} replaces it by one in which nobody is on both sides"
        )
    try:
        drawn = draw_folds(survey.labels, survey.subjects, folds, classes=survey.classes)
    except RefusedError as error:
        raise RefusedError("; ".join((str(error), *survey.notes))) from error
    resplit = f"by {by}" if by and survey.folds else None
    notes = survey.notes + _notes_of_drawn(drawn, survey.labels)
    return replace(survey, folds=drawn, resplit=resplit, notes=notes)


def _notes_of_drawn(folds: Sequence[Fold], labels: Mapping[str, int]) -> tuple[str, ...]:
    """What is odd about folds in which nobody is in two, as some people are in too many videos."""
    uneven = [fold for fold in folds if len(fold.test) * len(folds) > 2 * len(labels)]
    partial = [f for f in folds if {labels[i] for i in f.test} - {labels[i] for i in f.train}]
    large = (f"fold {f.name} tests {len(f.test)} of {len(labels)} videos" for f in uneven)
    lacking = (f"fold {f.name} does not train on a class that it tests" for f in partial)
    return tuple(f"{what}, as nobody is in two folds" for what in (*large, *lacking))


def _refuse_unknown_people(survey: Survey) -> None:
    unknown = [video_id for video_id in survey.labels if video_id not in survey.subjects]
    if unknown:
        raise RefusedError(
            f"--by {BY_SUBJECT}: nothing says who is seen in {len(unknown)} of "
            f"{len(survey.labels)} videos: {some(unknown)}; say it "
            + ("in the column subject" if survey.name == "list" else "with --subjects FILE")
        )
