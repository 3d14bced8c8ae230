"""A survey -> what to know before hours of work: counts beside published ones, overlaps, frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.known import Known, known_datasets
from pipeline.datasets.survey import SHORT_FRAMES, Count, Survey
from pipeline.datasets.tree import is_interpolated


@dataclass(frozen=True)
class Tally:
    """Videos of a class, or of one part of a fold; ``published`` is None where nothing is known."""

    name: str
    listed: int
    found: int
    missing: int
    short: int
    published: int | None = None


@dataclass(frozen=True)
class Report:
    """What ``tgdfer data check`` shows; ``frames`` is (fewest, mean, most) of folders, if any."""

    dataset: str
    root: str
    lists: str | None
    source: str
    other_sources: tuple[str, ...]
    ignored: tuple[str, ...]  # video files whose names are of no video of the set
    classes: tuple[Tally, ...]
    parts: tuple[Tally, ...]
    subsets: dict[str, int]
    frames: tuple[int, float, int] | None
    subjects: int
    shared_subjects: dict[str, int]  # fold -> subjects in both its training and its test part
    missing: tuple[str, ...]
    notes: tuple[str, ...]  # what else to know about how it was read
    protocol: str


def check_survey(survey: Survey) -> Report:
    """Everything that can be said of a data set without opening a video."""
    known = known_datasets().get(survey.name)
    published = None if survey.resplit else known
    counts = survey.account().counts
    frames = [place.frames for place in survey.found.places.values() if place.frames]
    parts = _parts(counts, published)
    missing = survey.missing(survey.labels)
    return Report(
        dataset=survey.name,
        root=str(survey.root),
        lists=None if survey.lists is None else str(survey.lists),
        source=survey.found.name,
        other_sources=survey.found.others,
        ignored=survey.found.ignored,
        classes=_classes(survey, known),
        parts=parts,
        subsets={name: len(ids) for name, ids in survey.subsets.items()},
        frames=(min(frames), float(np.mean(frames)), max(frames)) if frames else None,
        subjects=len({*survey.subjects.values()}),
        shared_subjects=_shared_subjects(survey),
        missing=missing,
        notes=survey.notes,
        protocol=_protocol(survey, known, parts, len(missing)),
    )


def _classes(survey: Survey, known: Known | None) -> tuple[Tally, ...]:
    missing, places = {*survey.missing(survey.labels)}, survey.found.places
    short = {i for i, place in places.items() if place.frames and place.frames < SHORT_FRAMES}
    tallies = []
    for k, name in enumerate(survey.classes):
        ids = {video_id for video_id, label in survey.labels.items() if label == k}
        published = known.counts.get(name) if known and known.counts_of == "all" else None
        lost, few = len(ids & missing), len(ids & short)
        tallies.append(Tally(name, len(ids), len(ids) - lost, lost, few, published))
    return tuple(tallies)


def _parts(counts: Sequence[Count], known: Known | None) -> tuple[Tally, ...]:
    tallies = []
    for fold, part in dict.fromkeys((c.fold, c.part) for c in counts):
        own = [c for c in counts if (c.fold, c.part) == (fold, part)]
        published = known.folds.get(fold) if known else None
        tallies.append(
            Tally(
                f"fold {fold}, {part}" if fold else part,
                sum(c.listed for c in own),
                sum(c.found for c in own),
                sum(c.missing for c in own),
                sum(c.short for c in own),
                None if published is None else published[part == "test"],
            )
        )
    return tuple(tallies)


def _shared_subjects(survey: Survey) -> dict[str, int]:
    shared = {}
    for fold in survey.folds:
        train, test = (
            {survey.subjects[i] for i in ids if i in survey.subjects}
            for ids in (fold.train, fold.test)
        )
        if train & test:
            shared[fold.name] = len(train & test)
    return shared


def _protocol(survey: Survey, known: Known | None, parts: tuple[Tally, ...], missing: int) -> str:
    """One sentence on which published numbers this copy may be compared with."""
    if missing:
        return f"none: {missing} of {len(survey.labels)} videos are missing"
    if survey.resplit:
        return f"none: folds drawn here {survey.resplit}, in place of the published ones"
    if is_interpolated(survey.found.name):
        return "none: 16 frames a video, interpolated in time, are other data"
    if known is None or (not known.folds and known.videos is None):
        return f"no published counts to compare with: {known.protocol if known else 'unknown'}"
    if known.folds and len(survey.folds) != len(known.folds):
        return f"in part: {len(survey.folds)} of the {len(known.folds)} published folds are here"
    for part in parts:
        if part.published not in (None, part.listed):
            return f"none: {part.name} has {part.listed} videos, published are {part.published}"
    if known.videos not in (None, len(survey.labels)):
        return f"none: there are {len(survey.labels)} videos, published are {known.videos}"
    return f"as published: {known.protocol}"
