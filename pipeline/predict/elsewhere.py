"""Trained networks and the features of another data set -> how they do there, as a table."""

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.outside import MIB, read_text
from cache.plan import refuse_contradiction
from cache.store import Store
from pipeline.evaluate.metrics import Rows, confusion, recalls
from pipeline.evaluate.statistics import Sample, bootstrap
from pipeline.predict.prediction import probabilities
from pipeline.report.rules import OPTIMISTIC
from pipeline.show import markdown_line, show
from pipeline.train.split import scored_rows
from pipeline.train.trained import Checkpoint, refuse_other_features

Names = Mapping[str, Sequence[str]]  # class -> its names in stores


@dataclass(frozen=True)
class ClassMap:
    """Which of the network's K classes mean which of the C labels that both sides know."""

    shared: tuple[str, ...]  # the C labels, as the store calls them
    shared_K: NDArray[np.int64]  # of each class of the network; -1 if the store has none such
    shared_L: NDArray[np.int64]  # of each label of the store; -1 if the network has none such


def map_classes(own: Sequence[str], theirs: Sequence[str], given: Names | None = None) -> ClassMap:
    """``given`` has the names that a class of the network may have in a store; else equal names.

    The first that this store has is its label. Several classes may have one label. Raises
    RefusedError if fewer than two labels are shared.
    """
    names_of = {name: (name,) for name in own} if given is None else given
    pairs = [(name, label) for name in own for label in names_of.get(name, ()) if label in theirs]
    label_of = dict(reversed(pairs))  # so that the first one stays
    shared = [name for name in theirs if name in label_of.values()]
    if len(shared) < 2:
        raise RefusedError(
            f"the network's classes ({', '.join(own)}) and the store's ({', '.join(theirs)}) share "
            f"{len(shared)} of 2 or more; name which mean the same with --map FILE"
        )
    place = {name: number for number, name in enumerate(shared)}
    return ClassMap(
        tuple(shared),
        np.array([place.get(label_of.get(name, ""), -1) for name in own]),
        np.array([place.get(name, -1) for name in theirs]),
    )


def read_map(path: Path, own: Collection[str], theirs: Collection[str]) -> Names:
    """A class map from TOML: a class = "label of a store", or a list of what stores call it.

    ``own`` are the classes of all networks, ``theirs`` the labels of all stores. Raises
    RefusedError for a name that is in neither.
    """
    try:
        found = tomllib.loads(read_text(path, "a class map in TOML", MIB))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RefusedError(f"{path} is not valid TOML: {error}") from error
    names = {key: value if isinstance(value, list) else [value] for key, value in found.items()}
    labels = [label for value in names.values() for label in value]
    if not all(isinstance(label, str) for label in labels):
        raise RefusedError(f'{path}: expected lines such as happiness = "happy"')
    for given, known, side in ((names, own, "class of a network"), (labels, theirs, "label")):
        if unknown := [name for name in given if name not in known]:
            raise RefusedError(
                f"{path}: {unknown[0]} is no {side}; expected one of {', '.join(known)}"
            )
    return {name: tuple(value) for name, value in names.items()}


@dataclass(frozen=True)
class Evaluation:
    """What networks that were trained on one data set said of a store's videos."""

    trained_on: str
    networks: int
    own_folds: bool  # the store has the training videos, so each network only saw its test fold
    shared: tuple[str, ...]
    labels: Rows  # of all networks' videos, one after the other, among the shared labels
    predicted: Rows
    people: tuple[str, ...]
    videos: int
    unsupported: dict[str, int]  # label that no network knows -> videos, which do not count
    elsewhere: float  # share of predictions whose most likely class is none of the store's
    optimistic: bool  # epochs were selected on these videos

    def scores(self) -> str:
        """UAR / WAR in per cent, with 95 % intervals over people."""
        sample = Sample(self.labels, self.predicted, self.people)
        found = bootstrap(sample, len(self.shared))
        return " / ".join(interval.text(".1f", 100) for interval in found)

    def note(self) -> str:
        """What a reader of the scores must know."""
        if not self.own_folds:
            return ""
        return f" (own test folds{', optimistic' if self.optimistic else ''})"


def evaluate_elsewhere(
    checkpoints: Sequence[Checkpoint],
    store: Store,
    given: Names | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Networks of one data set on the evaluation view of a store.

    A network that was trained on videos of the store only predicts the test videos of its fold.
    The probabilities of classes that have one label are added; the label with the highest sum is
    predicted. Raises RefusedError for features of another encoder.
    """
    refuse_contradiction(store.plan, store.path)
    first = checkpoints[0]
    classes = map_classes(first.classes, store.classes, given)
    features_NTD = store.load_features([0])[:, 0]
    known_L = classes.shared_L >= 0
    every_tested, rows, predicted, away = [], [], [], []
    for checkpoint in checkpoints:
        refuse_other_features(checkpoint, store, other_classes=True)
        tested = _tested_rows(checkpoint, store)
        every_tested.append(tested)
        own = tested[known_L[store.labels[tested]]]
        network = checkpoint.load(store.text_weights, store.text_config, device)
        logits_NK = network.predict(features_NTD[own]).logits_NK.astype(np.float64)
        p_NC = _of_labels(probabilities(logits_NK), classes)
        rows.append(own)
        predicted.append(p_NC.argmax(1))
        away.append(classes.shared_K[logits_NK.argmax(1)] < 0)
    every = np.concatenate(rows)
    if not len(every):
        raise RefusedError(f"{store.path} has no video whose label the networks know")
    unknown = {name: 0 for name, known in zip(store.classes, known_L, strict=True) if not known}
    for label in store.labels[np.unique(np.concatenate(every_tested))]:
        if not known_L[label]:
            unknown[store.classes[label]] += 1
    return Evaluation(
        first.trained_on,
        len(checkpoints),
        _has_videos_of(first, store),
        classes.shared,
        classes.shared_L[store.labels[every]],
        np.concatenate(predicted),
        tuple(store.people(every)),
        len(set(every.tolist())),
        unknown,
        float(np.concatenate(away).mean()),
        _has_videos_of(first, store)
        and any(own.run.method.selection.rule == OPTIMISTIC for own in checkpoints),
    )


def by_data(checkpoints: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    """The networks, grouped by the videos and classes that they were trained on."""
    groups: dict[object, list[Checkpoint]] = {}
    for own in checkpoints:
        groups.setdefault((own.trained_on, own.data.videos, own.classes), []).append(own)
    return list(groups.values())


def evaluation_report(table: Sequence[Sequence[Evaluation]], stores: Sequence[Store]) -> str:
    """Markdown: a matrix of trained on x tested on, then recalls and confusion of each pair."""
    names = [show(f"{store.name} ({store.path})") for store in stores]
    columns = ["trained on", "networks", *names]
    lines = ["# Trained networks on other data", "", _NOTE, ""]
    lines += map(markdown_line, [columns, ["---"] * len(columns)])
    for row in table:
        cells = [own.scores() + own.note() for own in row]
        lines.append(markdown_line([row[0].trained_on, row[0].networks, *cells]))
    for row in table:
        for own, name in zip(row, names, strict=True):
            lines += ["", f"## {show(own.trained_on)} on {name}", "", *_details(own)]
    return "\n".join(lines) + "\n"


_NOTE = """UAR / WAR in per cent, [95 % intervals] from 2,000 bootstrap resamples of people; the
predictions of several networks are pooled, so that each counts the same. Classes are matched by
name or by the given map; videos with a label that the networks do not know do not count. The same
videos under another list are not recognised as training videos."""


def _details(own: Evaluation) -> list[str]:
    left = ", ".join(f"{name} {videos}" for name, videos in own.unsupported.items()) or "none"
    away = f"{100 * own.elsewhere:.1f} %"
    counts = confusion(own.labels, own.predicted, len(own.shared))
    head: list[object] = ["label", "predictions", "recall %", *own.shared]
    rows: list[list[object]] = [
        [name, int(row.sum()), "–" if np.isnan(recall) else f"{100 * recall:.1f}"]
        + [int(cell) for cell in row]
        for name, recall, row in zip(own.shared, recalls(counts), counts, strict=True)
    ]
    table: list[list[object]] = [head, ["---"] * len(head), *rows]
    return [
        f"- videos: {own.videos}; left out, with labels that the networks do not know: {left}",
        f"- predictions whose most likely class is none of the store's: {away}",
        "",
        *map(markdown_line, table),
    ]


def _of_labels(p_NK: NDArray[np.float64], classes: ClassMap) -> NDArray[np.float64]:
    """The probabilities of classes added up by the label that they mean, [N, C]."""
    p_NC = np.zeros((len(p_NK), len(classes.shared)))
    for k, label in enumerate(classes.shared_K.tolist()):
        if label >= 0:
            p_NC[:, label] += p_NK[:, k]
    return p_NC


def _has_videos_of(checkpoint: Checkpoint, store: Store) -> bool:
    return checkpoint.data.videos == store.identity.videos


def _tested_rows(checkpoint: Checkpoint, store: Store) -> Rows:
    if _has_videos_of(checkpoint, store):
        run = checkpoint.run
        return scored_rows(store, run.fold, run.method.selection, run.seed)
    usable = [row for row, name in enumerate(store.ids) if name not in store.missing]
    return np.array(usable, np.int64)
