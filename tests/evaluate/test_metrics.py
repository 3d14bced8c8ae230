"""UAR, WAR and intervals against scikit-learn and hand-counted examples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from pipeline.evaluate.metrics import confusion, recalls, uar, war

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(pairs)
def test_metrics_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(rows).T
    counts = confusion(labels, predicted, 5)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted, labels=range(5)))
    assert war(counts) == pytest.approx(accuracy_score(labels, predicted))
    each = recall_score(labels, predicted, labels=range(5), average=None, zero_division=np.nan)
    np.testing.assert_allclose(recalls(counts), each)
    assert uar(counts) == pytest.approx(np.nanmean(each))


def test_uar_weighs_classes_and_war_weighs_videos() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    predicted = np.zeros(10, np.int64)
    counts = confusion(labels, predicted, 2)
    assert war(counts) == 0.8
    assert uar(counts) == 0.5
