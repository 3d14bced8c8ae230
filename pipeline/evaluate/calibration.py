"""Logits and labels -> how far a network's confidence can be trusted.

The confidence of a prediction is the probability of its class, the highest of the softmax of the
logits; all values are fractions in [0, 1].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.evaluate.metrics import Rows

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Predictions by their confidence, in B bins of equal width; NaN for an empty bin."""

    edges: Array  # [B + 1]; a bin holds its upper edge and not its lower one
    videos_B: NDArray[np.int64]
    confidence_B: Array  # mean over the bin
    accuracy_B: Array

    @property
    def ece(self) -> float:
        """Expected calibration error, sum_b n_b / N |accuracy_b - confidence_b| (Guo et al. 2017).

        Empty bins count nothing.
        """
        gaps_B = np.abs(self.accuracy_B - self.confidence_B)
        return float(np.nansum(self.videos_B * gaps_B) / self.videos_B.sum())


@dataclass(frozen=True)
class RiskCoverage:
    """The share of wrong predictions among the n most confident of N, n = 1 … N."""

    coverage_N: Array  # n / N
    risk_N: Array

    @property
    def aurc(self) -> float:
        """Area under the curve: the mean risk over all n (Geifman et al. 2019)."""
        return float(self.risk_N.mean())


def reliability(logits_NK: Array, labels_N: Rows, bins: int = 15) -> Reliability:
    """Accuracy beside confidence, for N > 0 videos with finite logits of K classes."""
    confidence_N, right_N = _confidence(logits_NK, labels_N)
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.clip(np.searchsorted(edges, confidence_N) - 1, 0, bins - 1)
    videos_B = np.bincount(bin_N, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence_B, accuracy_B = (
            np.bincount(bin_N, values_N, bins) / videos_B for values_N in (confidence_N, right_N)
        )
    return Reliability(edges, videos_B, confidence_B, accuracy_B)


def risk_coverage(logits_NK: Array, labels_N: Rows) -> RiskCoverage:
    """Risk at every coverage, for N > 0 videos with finite logits of K classes.

    Of videos of equal confidence, which no threshold separates, each adds the mean of their errors.
    """
    confidence_N, right_N = _confidence(logits_NK, labels_N)
    _, tied = np.unique(-confidence_N, return_counts=True)
    order = np.argsort(-confidence_N, kind="stable")
    wrong_N = np.cumsum(1 - right_N[order])
    ends = np.cumsum(tied)
    number_N = np.arange(1, len(order) + 1)
    errors_N = np.interp(number_N, [0, *ends], [0, *wrong_N[ends - 1]])
    return RiskCoverage(number_N / len(order), errors_N / number_N)


def _confidence(logits_NK: Array, labels_N: Rows) -> tuple[Array, Array]:
    """(the confidence of each prediction, 1.0 where it is right and 0.0 where it is wrong)."""
    p_NK = softmax(np.asarray(logits_NK, np.float64), axis=1)
    right_N = np.asarray(logits_NK).argmax(1) == labels_N
    return p_NK.max(1), right_N.astype(np.float64)
