"""Folds for data sets that have none, by class and subject; a few videos in place of all."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cache.errors import RefusedError
from pipeline.datasets.videos import Fold, cut_folds, natural_key


def folds_of_subjects(
    subjects: Mapping[str, str], fold_of: Callable[[int], int]
) -> tuple[Fold, ...]:
    """Folds from 1; ``fold_of`` says in which one the n-th subject, from 0, is tested."""
    ordered = sorted({*subjects.values()}, key=natural_key)
    tested = {subject: fold_of(n) for n, subject in enumerate(ordered)}
    return folds_of_tests({video_id: tested[person] for video_id, person in subjects.items()})


def folds_of_tests(tested: Mapping[str, int | str]) -> tuple[Fold, ...]:
    """From each video's test fold, the folds, which train on all other videos."""
    names = sorted({*tested.values()}, key=lambda name: natural_key(str(name)))
    return tuple(
        Fold(
            str(name),
            tuple(video_id for video_id, fold in tested.items() if fold != name),
            tuple(video_id for video_id, fold in tested.items() if fold == name),
        )
        for name in names
        if len(names) > 1
    )


def draw_folds(
    labels: Mapping[str, int],
    subjects: Mapping[str, str],
    folds: int,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> tuple[Fold, ...]:
    """Random folds in which classes have about the same shares, and no subject is in two.

    A video of an unknown subject counts as a subject of its own. Raises RefusedError, with the name
    of the class if they are given, if there are fewer subjects, or videos of a class, than folds,
    and if a fold would stay empty.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2:
        raise RefusedError(f"--folds {folds}: expected at least 2")
    people = [subjects.get(video_id, f"video {video_id}") for video_id in labels]
    rarest, count = min(Counter(labels.values()).items(), key=lambda item: item[1])
    if len({*people}) < folds or count < folds:
        who = f"{len({*people})} {'subjects' if subjects else 'videos'}"
        name = classes[rarest] if classes else rarest
        raise RefusedError(
            f"--folds {folds}: there are {who}, and {count} videos of class {name}; both must "
            "be at least as many as the folds"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    tested: dict[str, int] = {}
    ids, y = list(labels), np.array(list(labels.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, (_, test) in enumerate(splitter.split(np.zeros(len(y)), y, people), 1):
            tested |= {ids[row]: number for row in test}
    filled = len({*tested.values()})
    if filled < folds:
        raise RefusedError(
            f"--folds {folds}: only {filled} of them would have any videos, as the subjects have "
            "too different numbers of videos of each class: take fewer folds, or say in a list, in "
            "its column fold, which one tests each video"
        )
    return folds_of_tests({video_id: tested[video_id] for video_id in ids})


def choose_few(labels: Mapping[str, int], folds: Sequence[Fold], count: int) -> tuple[str, ...]:
    """``count`` videos, or all, in their order, with which every fold can be trained and tested.

    They are the first ones if these have every class and both parts of every fold; if not, each
    class in each part gives its first video, and then as many as its share. Raises RefusedError if
    a fold would have no training or no test videos.
    """
    first = tuple(labels)[:count]
    is_whole = len(cut_folds(folds, {*first})) == len(folds)
    if is_whole and {labels[i] for i in first} == {*labels.values()}:
        return first
    parts = dict.fromkeys(labels, "")  # of all folds, that a video is in
    for fold in folds:
        for part, ids in (("train", fold.train), ("test", fold.test)):
            parts |= {i: f"{parts[i]} {fold.name} {part}" for i in ids}
    sizes, seen = Counter((parts[i], label) for i, label in labels.items()), Counter[object]()
    order = {part: n for n, part in enumerate(dict.fromkeys(parts.values()))}
    rank = {}
    for video_id, label in labels.items():
        group = parts[video_id], label
        rank[video_id] = (seen[group] / sizes[group], label, order[group[0]])
        seen[group] += 1
    kept = {*sorted(labels, key=rank.__getitem__)[:count]}
    left = {fold.name for fold in cut_folds(folds, kept)}
    lost = [fold.name for fold in folds if fold.name not in left]
    if lost:
        raise RefusedError(
            f"--limit {count}: fold {lost[0]} would have no training or no test videos; take more"
        )
    return tuple(video_id for video_id in labels if video_id in kept)
