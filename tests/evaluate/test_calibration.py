"""Confidence against slow loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from pipeline.evaluate.calibration import reliability, risk_coverage


def drawn(seed: int, videos: int = 300, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((videos, classes))
    labels = np.where(generator.random(videos) < 0.6, logits.argmax(1), 0)
    return logits, labels


def confidences(logits: np.ndarray, labels: np.ndarray) -> list[tuple[float, bool]]:
    """(confidence, whether it is right) of each video, one at a time."""
    found = []
    for own, label in zip(logits, labels, strict=True):
        p = np.exp(own - own.max()) / np.exp(own - own.max()).sum()
        found.append((float(p.max()), bool(p.argmax() == label)))
    return found


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_reliability_is_that_of_a_slow_loop_and_of_scikit_learn(bins: int) -> None:
    logits, labels = drawn(bins)
    own = reliability(logits, labels, bins)
    said = confidences(logits, labels)
    expected = 0.0
    for low, high, videos in zip(own.edges[:-1], own.edges[1:], own.videos_B, strict=True):
        inside = [(p, right) for p, right in said if low < p <= high]
        assert len(inside) == videos
        if inside:
            p, right = np.mean(inside, axis=0)
            expected += len(inside) / len(said) * abs(right - p)
    assert own.ece == pytest.approx(expected)
    sure, right = zip(*said, strict=True)
    accuracy, confidence = calibration_curve(right, sure, n_bins=bins)
    shown = own.videos_B > 0
    np.testing.assert_allclose(own.accuracy_B[shown], accuracy)
    np.testing.assert_allclose(own.confidence_B[shown], confidence)
    assert np.isnan(own.accuracy_B[~shown]).all()


def test_a_sure_and_wrong_network_has_the_worst_calibration_and_a_sure_and_right_one_none() -> None:
    logits = np.array([[1000.0, 0], [0, 1000]])
    assert reliability(logits, np.array([1, 0])).ece == 1
    assert reliability(logits, np.array([0, 1])).ece == 0
    even = reliability(np.zeros((4, 2)), np.array([0, 0, 1, 1]))
    assert even.ece == 0


def test_risk_at_each_coverage_is_that_of_the_most_confident_videos() -> None:
    logits, labels = drawn(3)
    own = risk_coverage(logits, labels)
    said = sorted(confidences(logits, labels), reverse=True)
    expected = [np.mean([not right for _, right in said[: n + 1]]) for n in range(len(said))]
    np.testing.assert_allclose(own.risk_N, expected)
    np.testing.assert_allclose(own.coverage_N, np.arange(1, 301) / 300)
    assert own.aurc == pytest.approx(np.mean(expected))


def test_the_order_of_videos_that_are_equally_sure_does_not_matter() -> None:
    logits = np.array([[3.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0.5, 0]])
    labels = np.array([0, 0, 1, 0, 1, 1])
    own = risk_coverage(logits, labels)
    # Sure of one, then of four of which two are wrong, then of the last, which is wrong.
    np.testing.assert_allclose(own.risk_N, [0, 0.5 / 2, 1 / 3, 1.5 / 4, 2 / 5, 3 / 6])
    order = [0, 4, 2, 3, 1, 5]
    np.testing.assert_allclose(risk_coverage(logits[order], labels[order]).risk_N, own.risk_N)
