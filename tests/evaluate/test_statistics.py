"""Bootstrap intervals, single and paired."""

import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline.evaluate.metrics import confusion, recalls, uar
from pipeline.evaluate.statistics import (
    Sample,
    bootstrap,
    bootstrap_between,
    bootstrap_difference,
    bootstrap_mean,
)

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


def test_a_difference_between_samples_resamples_people_of_both_together() -> None:
    """Against the slow loop over resamples, people and videos, of samples of different videos."""
    generator = np.random.default_rng(0)
    people = [[f"person {n % 7}" for n in range(20)], [f"person {n % 5 + 3}" for n in range(35)]]
    labels = [generator.integers(0, 3, len(own)) for own in people]
    guesses = [np.where(generator.random(len(own)) < 0.6, own, 0) for own in labels]
    samples = [Sample(*own) for own in zip(labels, guesses, people, strict=True)]
    found = bootstrap_between(samples[0], samples[1], 3, resamples=200, seed=4)

    names = sorted({*people[0], *people[1]})
    draws = np.random.default_rng(4).multinomial(len(names), [1 / len(names)] * len(names), 200)

    def scores(sample: Sample, draw: np.ndarray) -> tuple[float, float]:
        shown, right = np.zeros(3), np.zeros(3)
        for label, guess, person in zip(
            sample.labels, sample.predictions, sample.groups, strict=True
        ):
            times = draw[names.index(str(person))]
            shown[label] += times
            right[label] += times * (label == guess)
        return float(np.mean((right / shown)[shown > 0])), float(right.sum() / shown.sum())

    def differences(draw: np.ndarray) -> list[float]:
        pairs = zip(scores(samples[0], draw), scores(samples[1], draw), strict=True)
        return [own - other for own, other in pairs]

    with np.errstate(invalid="ignore"):
        expected = np.array([differences(draw) for draw in draws])
        whole = differences(np.ones(len(names)))
    for n, own in enumerate(found):
        low, high = np.quantile(expected[:, n], [0.025, 0.975])
        assert (own.low, own.value, own.high) == pytest.approx((low, whole[n], high))


def test_a_difference_between_samples_is_paired_if_they_are_of_the_same_videos() -> None:
    generator = np.random.default_rng(0)
    labels, people = generator.integers(0, 3, 60), [n % 9 for n in range(60)]
    first, second = (generator.integers(0, 3, 60) for _ in range(2))
    order = generator.permutation(60)
    shuffled = Sample(labels[order], second[order], [people[n] for n in order])
    between = bootstrap_between(Sample(labels, first, people), shuffled, 3)
    assert between == bootstrap_difference(labels, first, second, 3, people)


def test_resamples_without_a_video_of_one_sample_do_not_count() -> None:
    right, wrong = np.zeros(1, np.int64), np.ones(1, np.int64)
    alone = Sample(np.zeros(1, np.int64), right, ["a"])
    other = Sample(np.zeros(1, np.int64), wrong, ["b"])
    _, own = bootstrap_between(alone, other, 2)
    assert (own.low, own.value, own.high) == (1, 1, 1)
