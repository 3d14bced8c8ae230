"""Bootstrap intervals, single and paired."""

import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline.evaluate.metrics import confusion, recalls, uar
from pipeline.evaluate.statistics import bootstrap, bootstrap_difference, bootstrap_mean

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def test_interval_of_a_proportion_has_the_binomial_width() -> None:
    labels = np.zeros(400, np.int64)
    predicted = (np.arange(400) % 4 == 0).astype(np.int64)
    _, interval = bootstrap(labels, predicted, 2)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)


def test_resampling_people_widens_the_interval_if_their_videos_are_alike() -> None:
    person = np.repeat(np.arange(20), 20)
    predicted = (person % 4 == 0).astype(np.int64)
    labels = np.zeros(400, np.int64)
    _, videos = bootstrap(labels, predicted, 2)
    _, people = bootstrap(labels, predicted, 2, groups=list(person))
    assert people.high - people.low > 3 * (videos.high - videos.low)


def test_concatenated_seeds_give_the_mean_of_their_metrics() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 50)
    guesses = [generator.integers(0, 3, 50) for _ in range(2)]
    both, _ = bootstrap(np.tile(labels, 2), np.concatenate(guesses), 3, list(np.tile(range(50), 2)))
    each = [float(uar(confusion(labels, guess, 3))) for guess in guesses]
    assert both.value == pytest.approx(np.mean(each))


def test_paired_difference_has_a_narrower_interval_than_the_score_alone() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros(300, np.int64)
    baseline = (generator.random(300) < 0.4).astype(np.int64)
    better = baseline.copy()
    better[np.flatnonzero(baseline)[:15]] = 0  # 15 of 300 videos put right, none wrong
    _, difference = bootstrap_difference(labels, better, baseline, 2)
    assert difference.value == pytest.approx(0.05)
    assert 0.02 < difference.low < 0.05 < difference.high < 0.08
    _, alone = bootstrap(labels, better, 2)
    assert alone.high - alone.low > 1.5 * (difference.high - difference.low)
    _, none = bootstrap_difference(labels, baseline, baseline, 2)
    assert (none.low, none.value, none.high) == (0, 0, 0)


def test_the_interval_of_a_rare_class_s_recall_ignores_resamples_without_it() -> None:
    labels = np.array([1, 1] + [0] * 30)  # of two videos, about one resample in eight has none
    better, baseline = np.array([1, 0] + [0] * 30), np.array([0, 0] + [0] * 30)
    (own,) = bootstrap_difference(
        labels, better, baseline, 2, metrics=[lambda counts: recalls(counts)[..., 1]]
    )
    assert (own.low, own.value, own.high) == (0, 0.5, 1)


def test_interval_of_a_mean_resamples_groups() -> None:
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(40), 5)
    values = generator.normal(0, 1, 40)[people]
    by_person, by_value = bootstrap_mean(values, people.tolist()), bootstrap_mean(values)
    assert by_person.value == by_value.value == pytest.approx(values.mean())
    # All videos of a person are alike, so only 40 numbers are independent.
    expected = 2 * 1.96 * values.std() / np.sqrt(40)
    assert by_person.high - by_person.low == pytest.approx(expected, rel=0.15)
    assert by_value.high - by_value.low == pytest.approx(expected / np.sqrt(5), rel=0.15)
