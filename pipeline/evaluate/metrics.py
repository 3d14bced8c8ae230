"""Labels and predictions -> UAR, WAR and recalls, as fractions in [0, 1]."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def confusion(labels: Rows, predictions: Rows, classes: int) -> NDArray[np.float64]:
    """Counts [true class, predicted class]."""
    flat = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.float64)


def war(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted average recall = accuracy, from confusion counts [..., K, K]."""
    correct = np.trace(counts, axis1=-2, axis2=-1)
    accuracy: NDArray[np.float64] = correct / counts.sum((-2, -1))
    return accuracy


def recalls(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Recall of each class [..., K]; NaN for a class that is absent from the labels."""
    shown = counts.sum(-1)
    correct = np.diagonal(counts, axis1=-2, axis2=-1)
    return np.divide(correct, shown, out=np.full_like(shown, np.nan), where=shown > 0)


def uar(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unweighted average recall: mean recall of the classes that are present."""
    mean: NDArray[np.float64] = np.nanmean(recalls(counts), axis=-1)
    return mean
