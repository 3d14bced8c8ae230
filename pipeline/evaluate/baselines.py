"""A store -> predictions of methods without a temporal network: zero-shot, logistic regression."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cache.errors import RefusedError
from cache.store import NO_TEXTS, Store
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.metrics import confusion, uar, war
from pipeline.evaluate.statistics import Sample
from pipeline.kernels.head import cosine
from pipeline.model.text_tower import load_text_tower
from pipeline.resources import usable_cores

Folds = Collection[str] | None  # None: all of the store


@dataclass(frozen=True)
class PredictedLabels:
    """Predicted classes of test videos, collected over folds and seeds."""

    name: str
    rows: NDArray[np.int64]  # rows of the store
    predicted: NDArray[np.int64]
    networks: Sequence[tuple[str, int]] = ()  # (fold, seed) of each prediction, if there are seeds
    note: str = ""  # what was chosen to predict them

    @property
    def seeds(self) -> int:
        """How many there are; predictions of what has none count as one."""
        return len({seed for _, seed in self.networks}) or min(len(self.rows), 1)

    def among(self, rows: NDArray[np.int64]) -> "PredictedLabels":
        """Only what was said of these rows of the store."""
        kept = np.isin(self.rows, rows)
        networks = [own for own, keep in zip(self.networks, kept, strict=False) if keep]
        return PredictedLabels(self.name, self.rows[kept], self.predicted[kept], networks)

    def sample(self, store: Store) -> Sample:
        """The predictions with the truth, the people and the networks."""
        people = store.people(self.rows)
        return Sample(store.labels[self.rows], self.predicted, people, self.networks)


# Averaged as in CLIP's own zero-shot evaluation (Radford et al. 2021); these are of faces.
TEMPLATES = (
    *("a photo of a face that shows {}", "a person with an expression of {}"),
    *("a facial expression of {}", "a face full of {}", "somebody who feels {}"),
    *("a frame of a video of a person who shows {}",),
)
ZERO_SHOTS: dict[Literal["class", "descriptors", "templates"], str] = {
    "class": "names",
    "descriptors": "sentences",
    "templates": "templates",
}


def zero_shot(
    store: Store, kind: Literal["class", "descriptors", "templates"], folds: Folds = None
) -> PredictedLabels:
    """The class text with the highest mean cosine over frames; nothing is trained.

    Raises RefusedError if texts and frames are not features of one CLIP.
    """
    if not store.is_aligned:
        why = "its texts are read by another encoder than its frames, so that cosines say nothing"
        raise RefusedError(f"{store.path}: {why if store.has_texts else NO_TEXTS}")
    texts_KD = _encode_texts(store, kind)
    rows = np.concatenate([test for _, test in _parts(store, folds)])
    scores = []
    for unit in store.plan.units():
        features_BTD = torch.from_numpy(store.load_block("features", unit, 0).astype(np.float32))
        scores.append(cosine(features_BTD, texts_KD).mean(dim=1))
    scores_NK = torch.cat(scores)[rows]
    name = f"zero-shot, class {ZERO_SHOTS[kind]}"
    return PredictedLabels(name, rows, scores_NK.argmax(1).numpy())


def _encode_texts(store: Store, kind: Literal["class", "descriptors", "templates"]) -> torch.Tensor:
    """One vector per class, [K, D]."""
    tower = load_text_tower(store.text_weights, store.text_config)
    texts = class_texts(store.classes, store.texts)
    if kind != "templates":
        return tower.encode_texts(texts.of(kind))
    filled = [template.format(name) for template in TEMPLATES for name in texts.classes]
    of_templates = F.normalize(tower.encode_texts(filled), dim=-1)
    return of_templates.unflatten(0, (len(TEMPLATES), -1)).mean(0)


def class_means(store: Store, folds: Folds = None) -> PredictedLabels:
    """The class whose mean over training videos has the highest cosine; features as regressions."""
    pooled_NVD = _pooled(store, ["mean"])["mean"]
    rows, predicted = [], []
    for train, test in _parts(store, folds):
        x, labels = _training(store, pooled_NVD, train)
        known = np.unique(labels)
        means = np.stack([_unit(x[labels == k]).mean(0) for k in known])
        rows.append(test)
        predicted.append(known[(pooled_NVD[test, 0] @ _unit(means).T).argmax(1)])
    return PredictedLabels("class means", np.concatenate(rows), np.concatenate(predicted))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def by_name(name: str, store: Store, folds: Folds) -> PredictedLabels:
    """The predictions of one of the baselines of Tables 1 and 2 that need no search."""
    if name == "class means":
        return class_means(store, folds)
    kinds = {f"zero-shot by {named}": kind for kind, named in ZERO_SHOTS.items()}
    return zero_shot(store, kinds[name], folds)


def logistic_regression(
    store: Store, pooling: Literal["mean", "mean+max+std"], folds: Folds = None
) -> PredictedLabels:
    """scikit-learn's logistic regression on standardised frame features pooled over time.

    Like TG-DFER, it trains on the augmented views (on view 0 if it is the only one) and is tested
    on view 0.
    """
    pooled_NVD = _pooled(store, [pooling])[pooling]
    rows = _parts(store, folds)
    said = [_fit_and_predict(store, pooled_NVD, Fit(pooling), train, test) for train, test in rows]
    name = f"logistic regression, {pooling} of frames"
    return PredictedLabels(name, np.concatenate([test for _, test in rows]), np.concatenate(said))


@dataclass(frozen=True)
class Fit:
    """Settings of a logistic regression."""

    pooling: str = "mean"
    c: float = 1.0  # inverse strength of the L2 penalty
    balanced: bool = False  # classes weighted by their inverse frequency


POOLINGS = ("mean", "mean+std", "mean+max+std")
FITS = tuple(
    Fit(pooling, c, balanced)
    for pooling in POOLINGS
    for c in (0.001, 0.01, 0.1, 1.0, 10.0)
    for balanced in (False, True)
)
HOLD_OUTS = 3
# (training rows, seed) -> (rows left for training, rows held out)
HoldOut = Callable[[NDArray[np.int64], int], tuple[NDArray[np.int64], NDArray[np.int64]]]


def searched_logistic_regression(
    store: Store,
    hold_out: HoldOut,
    on_fit: Callable[[], None] = lambda: None,
    folds: Folds = None,
) -> PredictedLabels:
    """The logistic regression of FITS that is best on held-out training videos, chosen per fold.

    The score is the mean of UAR and WAR over HOLD_OUTS parts of the fold's training videos, as
    ``hold_out`` splits them; each fold's test videos are predicted once, by the winner. ``on_fit``
    is called after every fit of the search, ``fits(store, folds)`` times.
    """
    named = [name for name, _, _ in store.folds if folds is None or name in folds]
    return together([*searched_in_folds(store, hold_out, named, on_fit)])


def together(parts: Sequence[PredictedLabels]) -> PredictedLabels:
    """What one baseline says in several folds."""
    notes = dict.fromkeys(own.note for own in parts)
    rows = np.concatenate([own.rows for own in parts])
    predicted = np.concatenate([own.predicted for own in parts])
    return PredictedLabels(parts[0].name, rows, predicted, note="; ".join(notes))


def searched_in_folds(
    store: Store, hold_out: HoldOut, folds: Sequence[str], on_fit: Callable[[], None] = lambda: None
) -> Iterator[PredictedLabels]:
    """As ``searched_logistic_regression``, one fold after the other."""
    pooled = _pooled(store, POOLINGS)
    for fold in folds:
        ((train, test),) = _parts(store, [fold])
        scores = np.zeros((HOLD_OUTS, len(FITS)))
        with _one_thread_per_fit() as pool:
            for seed in range(HOLD_OUTS):
                score = partial(_held_out_score, store, pooled, *hold_out(train, seed))
                for n, own in enumerate(pool.map(score, FITS)):
                    scores[seed, n] = own
                    on_fit()
            best = FITS[int(scores.mean(0).argmax())]
            predicted = _fit_and_predict(store, pooled[best.pooling], best, train, test)
        note = f"{best.pooling} C={best.c:g}{' balanced' if best.balanced else ''}"
        name = "logistic regression, searched in every fold"
        yield PredictedLabels(name, test, predicted, note=note)


@contextmanager
def _one_thread_per_fit() -> Iterator[ThreadPoolExecutor]:
    """Fits beside each other, one per core: a fit of its own is too small for several threads.

    What they give depends neither on their order nor on the number of cores.
    """
    with threadpool_limits(1), ThreadPoolExecutor(usable_cores()) as pool:
        yield pool


def _held_out_score(
    store: Store,
    pooled: Mapping[str, NDArray[np.float32]],
    left: NDArray[np.int64],
    held: NDArray[np.int64],
    fit: Fit,
) -> float:
    """Mean of UAR and WAR on the rows held out."""
    said = _fit_and_predict(store, pooled[fit.pooling], fit, left, held)
    counts = confusion(store.labels[held], said, len(store.classes))
    return float(uar(counts) + war(counts)) / 2


def fits(store: Store, folds: Folds = None) -> int:
    """Number of fits in the search of a logistic regression."""
    return len(_parts(store, folds)) * HOLD_OUTS * len(FITS)


def _fit_and_predict(
    store: Store,
    pooled_NVD: NDArray[np.float32],
    fit: Fit,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Predicted classes of the test rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, labels = _training(store, pooled_NVD, train)
    weight = "balanced" if fit.balanced else None
    regression = LogisticRegression(C=fit.c, class_weight=weight, max_iter=2000)
    model = make_pipeline(StandardScaler(), regression)
    model.fit(x, labels)
    said: NDArray[np.int64] = model.predict(pooled_NVD[test, 0])
    return said


def _training(
    store: Store, pooled_NVD: NDArray[np.float32], train: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features and labels to train on: one row for every augmented view of every video."""
    train_views = slice(1, None) if store.views > 1 else slice(0, 1)
    x_NVD = pooled_NVD[train, train_views]
    labels = np.repeat(store.labels[train], x_NVD.shape[1])
    return x_NVD.reshape(len(labels), -1), labels


def _pooled(store: Store, poolings: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """All features pooled over time, [video, view, size]; holds one block of them at a time."""
    kinds = sorted({kind for pooling in poolings for kind in pooling.split("+")})
    shape = (len(store.ids), store.views, store.dim)
    of_kinds = {kind: np.empty(shape, np.float32) for kind in kinds}
    for unit in store.plan.units():
        for view in unit.views:
            block_BTD = store.load_block("features", unit, view).astype(np.float32)
            for kind, pooled_NVD in of_kinds.items():
                pooled_NVD[unit.start : unit.stop, view] = getattr(block_BTD, kind)(1)
    return {
        pooling: np.concatenate([of_kinds[kind] for kind in pooling.split("+")], -1)
        for pooling in poolings
    }


def _parts(store: Store, folds: Folds) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(training rows, test rows) of each fold, without videos that are missing."""
    return [
        (_present(store, train), _present(store, test))
        for name, train, test in store.folds
        if folds is None or name in folds
    ]


def _present(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([row for row in rows if store.ids[row] not in store.missing], np.int64)
