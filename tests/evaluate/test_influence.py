"""Influence of frames, predictions from few of them, and how well they are found."""

import math
from typing import Literal, get_args

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pipeline.evaluate.influence import (
    Influence,
    average_precision,
    influence,
    influence_by,
    repool,
)

# Two videos, three frames, two classes.
LOGITS = np.array(
    [[[4.0, 0.0], [1.0, 3.0], [2.0, 5.0]], [[0.0, 1.0], [9.0, 0.0], [0.0, 2.0]]], np.float32
)


def test_influence_is_the_predicted_class_s_logit() -> None:
    predicted = np.array([0, 1])
    assert influence(LOGITS, predicted).tolist() == [[4, 1, 2], [1, 0, 2]]


@pytest.mark.parametrize(
    ("order", "count", "expected"),
    [
        ("highest", 1, [0, 1]),  # frames 0; 2
        ("highest", 2, [0, 1]),  # frames 0, 2: (6, 5); 2, 0
        ("lowest", 1, [1, 0]),  # frames 1; 1
        ("lowest", 2, [1, 0]),  # frames 1, 2; 1, 0: (9, 1)
        ("highest", 3, [1, 0]),  # all: (7, 8); (9, 3)
    ],
)
def test_few_frames_predict_by_the_mean_of_their_logits(
    order: Literal["highest", "lowest"], count: int, expected: list[int]
) -> None:
    scores = influence(LOGITS, np.array([0, 1]))
    assert repool(LOGITS, scores, order, count).tolist() == expected


def test_average_precision_is_that_of_scikit_learn_for_each_video() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 5, (60, 7)).astype(float)  # with ties
    shows = generator.random((60, 7)) < generator.random((60, 1))
    found = average_precision(scores, shows)
    ranked = shows.any(1) & ~shows.all(1)
    assert 0 < (~ranked).sum() < 30
    assert np.isnan(found[~ranked]).all()
    expected = [average_precision_score(shows[n], scores[n]) for n in np.flatnonzero(ranked)]
    np.testing.assert_allclose(found[ranked], expected, rtol=1e-12)


def test_average_precision_of_known_rankings() -> None:
    shows = np.array([[True, False, True, False]] * 3 + [[False] * 4])
    scores = np.array([[4.0, 1, 3, 2], [1, 4, 2, 3], [5, 5, 5, 5], [1, 2, 3, 4]])
    found = average_precision(scores, shows)
    # Best order; the shown frames last: (1/3 + 2/4) / 2; no order: the share of shown frames.
    np.testing.assert_allclose(found, [1.0, (1 / 3 + 2 / 4) / 2, 0.5, np.nan])


@pytest.mark.parametrize("kind", get_args(Influence))
def test_every_influence_equals_its_formula(kind: Influence) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 5, (4, 6, 3)).astype(np.float32)
    attention = generator.dirichlet(np.ones(6), (4, 3)).transpose(0, 2, 1).astype(np.float32)
    predicted = np.array([0, 2, 1, 2])
    found = influence_by(kind, logits, attention, predicted)
    for n, k in enumerate(predicted):
        own = [float(f[k]) for f in logits[n]]
        for t, f in enumerate(logits[n].astype(float)):
            weight = float(attention[n, t, k])
            expected = {
                "logit": f[k],
                "margin": f[k] - max(f[j] for j in range(3) if j != k),
                "probability": 1 / sum(math.exp(f[j] - f[k]) for j in range(3)),
                "attention": weight,
                "attention_value": weight * (f[k] - sum(own) / 6),
            }[kind]
            assert found[n, t] == pytest.approx(expected, rel=1e-6)
