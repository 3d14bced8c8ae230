"""Videos that a fold trains on and is tested on under other names: the same bytes, or nearly.

Bytes are compared before anything is extracted; what is only similar, such as the same scene cut or
encoded twice, shows in the features of a store.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.store import Store
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Place
from pipeline.datasets.videos import IMAGE_SUFFIXES
from pipeline.video.frames import source_sha256
from pipeline.video.images import BadVideoError

PAIRS_MAX = 1000  # of a fold that are named; all are counted
# Pairs of a fold whose frames are compared: those with the most similar means.
COMPARED_MAX = 2000
# Of 240,000 pairs of the embedded faces, none of which shows the same video, one is as similar;
# videos encoded again and cut by a tenth reach 0.93 in the median.
SIMILAR = 0.95
_ROWS = 128  # of test videos that are compared at once, to bound memory


@dataclass(frozen=True)
class Pair:
    """A training and a test video, with the names of their classes."""

    train: str
    test: str
    train_label: str
    test_label: str
    similarity: float


@dataclass(frozen=True)
class Overlap:
    """How many pairs of a fold are too similar, and the first of them."""

    fold: str
    count: int
    pairs: tuple[Pair, ...]


def same_bytes(survey: Survey) -> tuple[Overlap, ...]:
    """The test videos whose bytes are a training video's too, of folds that have any.

    Sizes are compared first, so few files are read; one that cannot be read is equal to none.
    """
    places = {i: survey.found.places[i] for i in survey.labels if i in survey.found.places}
    groups = [[*places]]
    for key in (_count, _first_size, _last_size, _sizes, _sha256):
        groups = [part for group in groups for part in _split(group, places, key)]
    group_of = {video_id: n for n, group in enumerate(groups) for video_id in group}
    found = []
    for fold in survey.folds:
        trained = {group_of[i]: i for i in fold.train if i in group_of}
        tested = ((group_of.get(i), i) for i in fold.test)
        pairs = [(trained[group], i, 1.0) for group, i in tested if group in trained]
        found += [_overlap(survey, fold.name, pairs)] if pairs else []
    return tuple(found)


def similar_features(survey: Survey, store: Store, least: float = SIMILAR) -> tuple[Overlap, ...]:
    """Pairs whose frames in the evaluation view have a similarity of at least ``least``.

    From the features, float16 [video, frame, dim], their mean over all is subtracted; then a frame
    counts as its largest cosine with the frames of the other video, and a pair as the mean of these
    over both videos. Of every fold, only the COMPARED_MAX pairs with the largest cosine between the
    means of their frames are compared. Memory grows with the videos, not with their frames.
    Raises RefusedError if ``store`` is of another data set or has none of the videos.
    """
    if store.name != survey.name:
        raise RefusedError(
            f"--store {store.path} has the data set {store.name}, not {survey.name}; name a store "
            "that was extracted from these videos"
        )
    rows = {i: n for n, i in enumerate(store.ids) if i in survey.labels and i not in store.missing}
    if not rows:
        raise RefusedError(f"--store {store.path} has features of none of these videos")
    means_ND = np.concatenate([block.mean(1) for block in _blocks(store)])
    centre_D = means_ND[list(rows.values())].mean(0)
    means_ND = _unit(means_ND - centre_D)
    found = []
    for fold in survey.folds:
        train, test = ([rows[i] for i in ids if i in rows] for ids in (fold.train, fold.test))
        near = _nearest(means_ND, np.array(train, np.int64), np.array(test, np.int64))
        frames = _frames(store, {row for pair in near for row in pair}, centre_D)
        scored = [(a, b, _similarity(frames[a], frames[b])) for a, b in near]
        kept = [(store.ids[a], store.ids[b], s) for a, b, s in scored if s >= least]
        found += [_overlap(survey, fold.name, kept)] if kept else []
    return tuple(found)


def _overlap(survey: Survey, fold: str, pairs: Sequence[tuple[str, str, float]]) -> Overlap:
    ordered = sorted(pairs, key=lambda pair: -pair[2])[:PAIRS_MAX]
    label = {i: survey.classes[survey.labels[i]] for pair in ordered for i in pair[:2]}
    named = tuple(Pair(a, b, label[a], label[b], similarity) for a, b, similarity in ordered)
    return Overlap(fold, len(pairs), named)


def _split(
    group: Iterable[str], places: dict[str, Place], key: Callable[[Place], Hashable]
) -> Iterator[list[str]]:
    """The parts of a group with equal keys, if they have two videos or more."""
    parts: dict[Hashable, list[str]] = defaultdict(list)
    for video_id in group:
        with suppress(OSError, BadVideoError):
            parts[key(places[video_id])].append(video_id)
    return (part for part in parts.values() if len(part) > 1)


def _count(place: Place) -> int | None:
    return place.frames


def _first_size(place: Place) -> int:
    return place.first.stat().st_size


def _last_size(place: Place) -> int:
    return place.last.stat().st_size


def _sizes(place: Place) -> tuple[int, ...]:
    if place.images is None:
        return ()
    with os.scandir(place.path) as entries:
        found = [e for e in entries if os.path.splitext(e.name)[1].lower() in IMAGE_SUFFIXES]
        return tuple(sorted(entry.stat().st_size for entry in found))


def _sha256(place: Place) -> str:
    return source_sha256(place.path)


def _blocks(store: Store) -> Iterator[NDArray[np.float32]]:
    """The evaluation view of every block, [video, frame, dim]."""
    return (store.load_block("features", u, 0).astype(np.float32) for u in store.plan.units())


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1, or 0, along the last axis."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)


def _nearest(
    means_ND: NDArray[np.float32], train: NDArray[np.int64], test: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """The COMPARED_MAX pairs (training row, test row) with the largest cosine."""
    best = np.empty(0, [("cosine", "f4"), ("train", "i8"), ("test", "i8")])
    train_ND, least = means_ND[train], np.float32(-1)
    for start in range(0, len(test), _ROWS):
        rows = test[start : start + _ROWS]
        cosine = (means_ND[rows] @ train_ND.T).ravel()
        at = np.flatnonzero(cosine > least)
        at = at[_largest(cosine[at])]
        new = np.empty(len(at), best.dtype)
        new["cosine"] = cosine[at]
        new["train"], new["test"] = train[at % len(train)], rows[at // len(train)]
        best = np.concatenate([best, new])
        best = best[_largest(best["cosine"])]
        least = best["cosine"].min() if len(best) == COMPARED_MAX else least
    return list(zip(best["train"].tolist(), best["test"].tolist(), strict=True))


def _largest(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Where the COMPARED_MAX largest values are."""
    if len(values) <= COMPARED_MAX:
        return np.arange(len(values))
    return np.argpartition(values, -COMPARED_MAX)[-COMPARED_MAX:]


def _frames(
    store: Store, rows: Collection[int], centre_D: NDArray[np.float32]
) -> dict[int, NDArray[np.float32]]:
    """Row -> its frames as unit vectors around ``centre_D``, [frame, dim]."""
    size = store.plan.block_videos
    frames: dict[int, NDArray[np.float32]] = {}
    for unit in store.plan.units():
        if wanted := [row for row in rows if row // size == unit.block]:
            block = store.load_block("features", unit, 0).astype(np.float32)
            frames |= {row: _unit(block[row % size] - centre_D) for row in wanted}
    return frames


def _similarity(a_TD: NDArray[np.float32], b_TD: NDArray[np.float32]) -> float:
    cosine_TT = a_TD @ b_TD.T
    return min(1.0, float(cosine_TT.max(0).mean() + cosine_TT.max(1).mean()) / 2)
