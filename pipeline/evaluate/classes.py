"""Labels and predictions -> how well each class is recognised."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import Rows, confusion, recalls

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClassScores:
    """Confusion, precision, recall and F1 of K classes, as fractions in [0, 1].

    A class that no label names is ``absent_K``: its recall and F1 are NaN. So is the precision of a
    class that was never predicted.
    """

    counts_KK: Array  # videos, [true class, predicted class]

    @property
    def videos_K(self) -> Array:
        """Videos of each class."""
        return self.counts_KK.sum(1)

    @property
    def absent_K(self) -> NDArray[np.bool_]:
        """Classes without a video."""
        return self.videos_K == 0

    @property
    def recall_K(self) -> Array:
        """TP / videos of the class."""
        return recalls(self.counts_KK)

    @property
    def precision_K(self) -> Array:
        """TP / predictions of the class."""
        return recalls(self.counts_KK.T)

    @property
    def f1_K(self) -> Array:
        """2 TP / (videos of the class + predictions of the class)."""
        both = self.videos_K + self.counts_KK.sum(0)
        right = 2 * np.diagonal(self.counts_KK)
        return np.divide(right, both, out=np.full_like(both, np.nan), where=~self.absent_K)


def class_scores(labels_N: Rows, predicted_N: Rows, classes: int) -> ClassScores:
    """The scores of each of ``classes`` classes over N videos."""
    return ClassScores(confusion(labels_N, predicted_N, classes))
