"""Scores of single classes against scikit-learn, and the paper's own row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from pipeline.datasets.known import known_datasets
from pipeline.evaluate.classes import ClassScores, class_scores
from pipeline.evaluate.metrics import uar, war

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(pairs)
def test_scores_of_classes_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(rows).T
    own = class_scores(labels, predicted, 5)
    precision, recall, f1, videos = precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=np.nan
    )
    np.testing.assert_array_equal(own.videos_K, videos)
    np.testing.assert_array_equal(own.absent_K, [k not in labels for k in range(5)])
    np.testing.assert_allclose(own.precision_K, precision)
    np.testing.assert_allclose(own.recall_K, recall)
    np.testing.assert_allclose(own.f1_K[~own.absent_K], f1[~own.absent_K])
    assert np.isnan(own.f1_K[own.absent_K]).all()


def test_a_class_that_is_predicted_but_never_shown_has_no_recall_and_no_f1() -> None:
    own = class_scores(np.array([0, 0, 1]), np.array([0, 2, 2]), 4)
    np.testing.assert_array_equal(own.absent_K, [False, False, True, True])
    np.testing.assert_allclose(own.precision_K, [1, np.nan, 0, np.nan])
    np.testing.assert_allclose(own.recall_K, [0.5, 0, np.nan, np.nan])
    np.testing.assert_allclose(own.f1_K, [2 / 3, 0, np.nan, np.nan])


def test_uar_and_war_of_the_paper_follow_from_its_recalls_and_the_counts_of_dfew() -> None:
    # Table 1 of arXiv 2511.10958, TG-DFER; happiness to fear, then UAR and WAR.
    reported, expected = [90.92, 74.92, 71.41, 73.36, 59.43, 13.10, 38.03], (60.17, 71.62)
    dfew = known_datasets()["dfew"]
    videos_K = np.array([dfew.counts[name] for name in dfew.classes], np.float64)
    right_K = videos_K * reported / 100
    counts_KK = np.diag(right_K) + np.roll(np.diag(videos_K - right_K), 1, axis=1)
    assert ClassScores(counts_KK).recall_K == pytest.approx(np.array(reported) / 100)
    found = tuple(round(100 * float(metric(counts_KK)), 2) for metric in (uar, war))
    assert found == expected
