"""Influence of frames, predictions from few of them, and how well they are found."""

from typing import Literal

import numpy as np
import pytest

from pipeline.evaluate.influence import average_precision, influence, repool

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
    assert repool(LOGITS, np.array([0, 1]), order, count).tolist() == expected


def test_average_precision_of_known_rankings() -> None:
    shows = np.array([[True, False, True, False]] * 3 + [[False] * 4])
    scores = np.array([[4.0, 1, 3, 2], [1, 4, 2, 3], [5, 5, 5, 5], [1, 2, 3, 4]])
    found = average_precision(scores, shows)
    # Best order; the shown frames last: (1/3 + 2/4) / 2; no order: the share of shown frames.
    np.testing.assert_allclose(found, [1.0, (1 / 3 + 2 / 4) / 2, 0.5, np.nan])
