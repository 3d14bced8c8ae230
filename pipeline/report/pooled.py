"""Records of one setting's runs -> what its networks say of their test videos together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from cache.store import Store
from pipeline.evaluate.classes import ClassScores
from pipeline.evaluate.influence import Array, influence
from pipeline.evaluate.metrics import Rows, confusion
from pipeline.train.record import Record


@dataclass(frozen=True)
class Pooled:
    """What the networks of one setting say of the N videos that they are tested on.

    Several seeds say something of the same video: probabilities and influence are their means. Each
    network's answer is among the M logits.
    """

    rows_N: Rows  # of the store, ascending
    labels_N: Rows
    p_NK: Array
    influence_NT: Array  # on the most likely class, cos / tau
    frames: Sequence[int]  # which T frames of the store's view that is
    confusions: Mapping[str, Array]  # fold -> counts [true class, predicted class]
    labels_M: Rows
    logits_MK: Array

    @property
    def predicted_N(self) -> Rows:
        """The most likely class."""
        return self.p_NK.argmax(1)

    @property
    def scores(self) -> ClassScores:
        """Of each class, over all networks."""
        return ClassScores(np.sum([*self.confusions.values()], axis=0))


def pool(records: Sequence[Record], store: Store) -> Pooled:
    """Finished records of one setting, which differ in fold and seed only."""
    frames = records[0].run.method.input.chosen(store.frames)
    classes = len(store.classes)
    asked_N = np.zeros(len(store.ids))
    p_NK = np.zeros((len(store.ids), classes))
    logits_NTK = np.zeros((len(store.ids), len(frames), classes), np.float32)
    confusions: dict[str, Array] = {}
    for record in records:
        ids, labels, predicted = record.predictions()
        rows = store.rows_of(ids)
        asked_N[rows] += 1
        p_NK[rows] += softmax(record.logits(), axis=1)
        logits_NTK[rows] += record.frame_logits()
        counts = confusion(labels, predicted, classes)
        confusions[record.run.fold] = confusions.get(record.run.fold, 0) + counts
    rows_N = np.flatnonzero(asked_N)
    p_NK = p_NK[rows_N] / asked_N[rows_N, None]
    mean_NTK = (logits_NTK[rows_N] / asked_N[rows_N, None, None]).astype(np.float32)
    return Pooled(
        rows_N,
        store.labels[rows_N],
        p_NK,
        influence(mean_NTK, p_NK.argmax(1)),
        frames,
        confusions,
        np.concatenate([record.predictions()[1] for record in records]),
        np.concatenate([record.logits() for record in records]),
    )


def disagreement(records: Sequence[Record], store: Store) -> Array:
    """Of each of the store's videos, the share of networks that do not say what most say, [N].

    NaN for a video that no network was asked about.
    """
    votes_NK = np.zeros((len(store.ids), len(store.classes)))
    for record in records:
        ids, _, predicted = record.predictions()
        votes_NK[store.rows_of(ids), predicted] += 1
    asked_N, most_N = votes_NK.sum(1), votes_NK.max(1)
    return 1 - np.divide(most_N, asked_N, out=np.full(len(asked_N), np.nan), where=asked_N > 0)


def learning_curves(records: Sequence[Record]) -> dict[str, Array]:
    """The metrics of every epoch by their names, each [run, epoch]; scores are in [0, 1]."""
    runs = [record.epochs() for record in records]
    return {name: np.stack([own[name] for own in runs]) for name in runs[0]}
