"""A survey -> what to know before hours of work: counts beside published ones, overlaps, frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.known import Known, known_datasets
from pipeline.datasets.survey import Count, Reading, Survey
from pipeline.datasets.tree import is_interpolated


@dataclass(frozen=True)
class Tally:
    """Videos of a class, or of one part of a fold, as in ``Count``.

    ``published`` is None where nothing is known.
    """

    name: str
    listed: int
    found: int
    missing: int
    unreadable: int | None
    short: int | None
    published: int | None = None


@dataclass(frozen=True)
class Report:
    """What ``tgdfer data check`` shows; ``frames`` is (fewest, mean, most) where it is known."""

    dataset: str
    root: str
    lists: str | None
    source: str
    other_sources: tuple[str, ...]
    ignored: tuple[str, ...]  # video files whose names are of no video of the set
    classes: tuple[Tally, ...]
    classes_of_part: tuple[Tally, ...]  # of the only part whose classes are published, if it is one
    parts: tuple[Tally, ...]
    counts: tuple[Count, ...]
    subsets: dict[str, int]
    frames: tuple[int, float, int] | None
    subjects: int
    shared_subjects: dict[str, int]  # fold -> subjects in both its training and its test part
    missing: tuple[str, ...]
    unreadable: dict[str, str] | None  # id -> why; None if nobody looked
    unpack: str  # what is still in archives, and how to unpack it
    notes: tuple[str, ...]  # what else to know about how it was read
    protocol: str


def check_survey(survey: Survey, readings: Mapping[str, Reading] | None = None) -> Report:
    """Everything that can be said of a data set; ``readings`` as in ``Survey.account``."""
    known = known_datasets().get(survey.name)
    published = None if survey.resplit else known
    account = survey.account(readings)
    frames = [*filter(None, survey.frame_counts(readings).values())]
    faults = {i: reading.fault for i, reading in (readings or {}).items() if reading.fault}
    parts = _parts(account.counts, published)
    classes = _classes(account.classes, known)
    of_part = _classes_of_part(account.counts, published)
    return Report(
        dataset=survey.name,
        root=str(survey.root),
        lists=None if survey.lists is None else str(survey.lists),
        source=survey.found.name,
        other_sources=survey.found.others,
        ignored=survey.found.ignored,
        classes=classes,
        classes_of_part=of_part,
        parts=parts,
        counts=account.counts,
        subsets={name: len(ids) for name, ids in survey.subsets.items()},
        frames=(min(frames), float(np.mean(frames)), max(frames)) if frames else None,
        subjects=len({*survey.subjects.values()}),
        shared_subjects=_shared_subjects(survey),
        missing=account.missing,
        unreadable=None if readings is None else faults,
        unpack=survey.found.unpack,
        notes=survey.notes,
        protocol=_protocol(
            survey, known, (*parts, *classes, *of_part), len(account.missing), len(faults)
        ),
    )


def _classes(counts: Sequence[Count], known: Known | None) -> tuple[Tally, ...]:
    published = known.counts if known else {}
    return tuple(_tally(one.label, [one], published.get(one.label)) for one in counts)


def _classes_of_part(counts: Sequence[Count], known: Known | None) -> tuple[Tally, ...]:
    """The classes of the part whose counts are published, if it is here."""
    return tuple(
        _tally(f"{one.label}, {part_name(one.fold, one.part)}", [one], known.part_counts[one.label])
        for one in counts
        if known and (one.fold, one.part) == known.counted_part and one.label in known.part_counts
    )


def _tally(name: str, counts: Sequence[Count], published: int | None) -> Tally:
    return Tally(
        name,
        sum(one.listed for one in counts),
        sum(one.found for one in counts),
        sum(one.missing for one in counts),
        _sum([one.unreadable for one in counts]),
        _sum([one.short for one in counts]),
        published,
    )


def _sum(numbers: Sequence[int | None]) -> int | None:
    return None if None in numbers else sum(filter(None, numbers))


def _parts(counts: Sequence[Count], known: Known | None) -> tuple[Tally, ...]:
    tallies = []
    for fold, part in dict.fromkeys((c.fold, c.part) for c in counts):
        own = [c for c in counts if (c.fold, c.part) == (fold, part)]
        sizes = known.folds.get(fold) if known else None
        published = None if sizes is None else sizes[part == "test"]
        tallies.append(_tally(part_name(fold, part), own, published))
    return tuple(tallies)


def part_name(fold: str, part: str) -> str:
    """What a part of a fold is called; there may be no folds."""
    return f"fold {fold}, {part}" if fold else part


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


def _protocol(
    survey: Survey, known: Known | None, tallies: Sequence[Tally], missing: int, faulty: int
) -> str:
    """One sentence on which published numbers this copy may be compared with."""
    if missing:
        return f"none: {missing} of {len(survey.labels)} videos are missing"
    if faulty:
        return f"none: {faulty} of {len(survey.labels)} videos cannot be read"
    if survey.resplit:
        return f"none: folds drawn here {survey.resplit}, in place of the published ones"
    if is_interpolated(survey.found.name):
        return "none: 16 frames a video, interpolated in time, are other data"
    if known is None or (not known.folds and known.videos is None):
        return f"no published counts to compare with: {known.protocol if known else 'unknown'}"
    unknown = [fold.name for fold in survey.folds if known.folds and fold.name not in known.folds]
    if unknown:
        return f"none: there is no published fold {unknown[0]}"
    for tally in tallies:
        if tally.published not in (None, tally.listed):
            return f"none: {tally.name} has {tally.listed} videos, published are {tally.published}"
    if known.videos not in (None, len(survey.labels)):
        return f"none: there are {len(survey.labels)} videos, published are {known.videos}"
    if len(survey.folds) < len(known.folds):
        return f"in part: {len(survey.folds)} of the {len(known.folds)} published folds are here"
    return f"as published: {known.protocol}"
