"""A store -> predictions of methods without a temporal network: zero-shot, logistic regression."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cache.store import Store
from pipeline.datasets.texts import class_texts
from pipeline.kernels.head import cosine
from pipeline.model.text_tower import load_text_tower


@dataclass(frozen=True)
class PredictedLabels:
    """Predicted classes of test videos, collected over folds and seeds."""

    name: str
    rows: NDArray[np.int64]  # rows of the store
    predicted: NDArray[np.int64]
    seeds: int = 1


def zero_shot(store: Store, kind: Literal["class", "descriptors"]) -> PredictedLabels:
    """The class text with the highest mean cosine over frames; nothing is trained."""
    tower = load_text_tower(store.text_weights, store.text_config)
    texts_KD = tower.encode_texts(class_texts(store.classes).of(kind))
    rows = _all_test_rows(store)
    features_NTD = torch.from_numpy(store.load_features([0])[rows, 0]).float()
    scores_NK = cosine(features_NTD, texts_KD).mean(dim=1)
    named = "names" if kind == "class" else "sentences"
    return PredictedLabels(f"zero-shot, class {named}", rows, scores_NK.argmax(1).numpy())


def logistic_regression(store: Store, pooling: Literal["mean", "mean+max+std"]) -> PredictedLabels:
    """scikit-learn's logistic regression on standardised frame features pooled over time.

    Like TG-DFER, it trains on the augmented views (on view 0 if it is the only one) and is tested
    on view 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pooled_NVD = _pool(store.load_features().astype(np.float32), pooling)
    train_views = slice(1, None) if store.views > 1 else slice(0, 1)
    rows, predicted = [], []
    for _, train, test in store.folds:
        train, test = _present(store, train), _present(store, test)
        x_NVD = pooled_NVD[train, train_views]
        labels = np.repeat(store.labels[train], x_NVD.shape[1])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(x_NVD.reshape(len(labels), -1), labels)
        rows.append(test)
        predicted.append(model.predict(pooled_NVD[test, 0]))
    name = f"logistic regression, {pooling} of frames"
    return PredictedLabels(name, np.concatenate(rows), np.concatenate(predicted))


def _pool(features_NVTD: NDArray[np.float32], pooling: str) -> NDArray[np.float32]:
    mean: NDArray[np.float32] = features_NVTD.mean(2)
    if pooling == "mean":
        return mean
    return np.concatenate([mean, features_NVTD.max(2), features_NVTD.std(2)], -1)


def _all_test_rows(store: Store) -> NDArray[np.int64]:
    return np.concatenate([_present(store, test) for _, _, test in store.folds])


def _present(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.array([row for row in rows if store.ids[row] not in store.missing], np.int64)
