"""Bootstrap intervals, single and paired."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp
from scipy.stats import bootstrap as scipy_bootstrap

from benchmarks import intervals
from pipeline.evaluate.metrics import confusion, recalls, uar
from pipeline.evaluate.statistics import (
    Difference,
    Sample,
    bootstrap,
    bootstrap_difference,
    bootstrap_mean,
    holm,
    mcnemar,
)
from support.commands import ROOT


def alone(labels: np.ndarray, predicted: np.ndarray) -> Sample:
    """Videos that are all independent."""
    return Sample(labels, predicted, range(len(labels)))


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def test_interval_of_a_proportion_has_the_binomial_width() -> None:
    labels = np.zeros(400, np.int64)
    predicted = (np.arange(400) % 4 == 0).astype(np.int64)
    _, interval = bootstrap(alone(labels, predicted), 2)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)


def test_resampling_people_widens_the_interval_if_their_videos_are_alike() -> None:
    person = np.repeat(np.arange(20), 20)
    predicted = (person % 4 == 0).astype(np.int64)
    labels = np.zeros(400, np.int64)
    _, videos = bootstrap(alone(labels, predicted), 2)
    _, people = bootstrap(Sample(labels, predicted, list(person)), 2)
    assert people.high - people.low > 3 * (videos.high - videos.low)


def test_concatenated_seeds_give_the_mean_of_their_metrics() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 50)
    guesses = [generator.integers(0, 3, 50) for _ in range(2)]
    sample = Sample(np.tile(labels, 2), np.concatenate(guesses), list(np.tile(range(50), 2)))
    both, _ = bootstrap(sample, 3)
    each = [float(uar(confusion(labels, guess, 3))) for guess in guesses]
    assert both.value == pytest.approx(np.mean(each))


def test_paired_difference_has_a_narrower_interval_than_the_score_alone() -> None:
    generator = np.random.default_rng(0)
    labels = np.zeros(300, np.int64)
    baseline = (generator.random(300) < 0.4).astype(np.int64)
    better = baseline.copy()
    better[np.flatnonzero(baseline)[:15]] = 0  # 15 of 300 videos put right, none wrong
    _, difference = bootstrap_difference(alone(labels, better), alone(labels, baseline), 2)
    assert difference.value == pytest.approx(0.05)
    assert 0.02 < difference.low < 0.05 < difference.high < 0.08
    _, score = bootstrap(alone(labels, better), 2)
    assert score.high - score.low > 1.5 * (difference.high - difference.low)
    same = alone(labels, baseline)
    _, none = bootstrap_difference(same, same, 2)
    assert (none.low, none.value, none.high, none.p, none.error) == (0, 0, 0, 1, 0)


def test_the_interval_of_a_rare_class_s_recall_ignores_resamples_without_it() -> None:
    labels = np.array([1, 1] + [0] * 30)  # of two videos, about one resample in eight has none
    better, baseline = np.array([1, 0] + [0] * 30), np.array([0, 0] + [0] * 30)
    samples = alone(labels, better), alone(labels, baseline)
    (own,) = bootstrap_difference(*samples, 2, metrics=[lambda counts: recalls(counts)[..., 1]])
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
    found = bootstrap_difference(samples[0], samples[1], 3, resamples=200, seed=4)

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
    ours, theirs = (Sample(labels, said, people) for said in (first, second))
    assert bootstrap_difference(ours, shuffled, 3) == bootstrap_difference(ours, theirs, 3)


def test_resamples_without_a_video_of_one_sample_do_not_count() -> None:
    right, wrong = np.zeros(1, np.int64), np.ones(1, np.int64)
    one = Sample(np.zeros(1, np.int64), right, ["a"])
    other = Sample(np.zeros(1, np.int64), wrong, ["b"])
    _, own = bootstrap_difference(one, other, 2)
    assert (own.low, own.value, own.high) == (1, 1, 1)


SETS = 60  # of the quick simulations


def is_a_share_of(expected: float, found: float) -> bool:
    """Whether so many of SETS are no surprise: a binomial test at 0.1 %."""
    return binomtest(round(found * SETS), SETS, expected).pvalue > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 1])
def test_intervals_cover_the_truth_with_other_people_and_other_trainings(seeds: int) -> None:
    for share in intervals.coverage(SETS, seeds).values():
        assert is_a_share_of(0.95, share)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 1])
def test_one_test_in_twenty_finds_a_difference_where_there_is_none(seeds: int) -> None:
    for share in intervals.false_positives(SETS, seeds).values():
        assert is_a_share_of(0.05, share)


def test_the_committed_simulation_of_1000_sets_keeps_what_is_promised() -> None:
    found = json.loads((ROOT / "benchmarks/intervals.json").read_text())
    assert found["sets"] == 1000
    for seeds in ("3", "2", "1"):
        assert all(0.93 <= share <= 0.975 for share in found["coverage"][seeds].values())
        assert all(0.03 <= share <= 0.065 for share in found["false_positives"][seeds].values())
        assert found["families"][seeds] <= 0.05
        assert found["of_these_networks"][seeds]["WAR"] < 0.93
    assert 0.74 <= found["power"]["found"] <= 0.86
    assert found["mcnemar"] <= 0.05


def test_networks_of_several_folds_tell_how_trainings_differ_if_each_has_one_seed() -> None:
    # Everybody is alike, so what varies is the networks, each of one fold.
    right_F = np.array([50, 62, 70, 55, 68])
    predicted = np.concatenate([np.arange(100) >= right for right in right_F])
    labels, names = np.zeros(500, np.int64), [(str(f), 0) for f in range(5) for _ in range(100)]
    sample = Sample(labels, predicted.astype(np.int64), ["everybody"] * 500, names)
    base = Sample(labels, labels, ["everybody"] * 500)
    _, own = bootstrap_difference(sample, base, 2, resamples=20_000)
    t, p = ttest_1samp(right_F / 100 - 1, 0)
    assert own.value == pytest.approx(right_F.mean() / 100 - 1)
    assert own.error == pytest.approx(own.value / t * 2.776 / 1.960, rel=0.05)
    assert own.p == pytest.approx(p, rel=0.1)


def test_intervals_of_people_with_as_many_videos_are_those_of_scipy() -> None:
    generator = np.random.default_rng(8)
    right_PV = generator.random((60, 5)) < generator.normal(0.7, 0.15, (60, 1))
    people = np.repeat(np.arange(60), 5).tolist()
    sample = Sample(np.zeros(300, np.int64), (~right_PV).astype(np.int64).ravel(), people)
    _, own = bootstrap(sample, 2)
    theirs = scipy_bootstrap(
        (right_PV.mean(1),), np.mean, n_resamples=2000, method="percentile", rng=generator
    ).confidence_interval
    assert (own.low, own.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_variance_between_seeds_is_unbiased_for_two_of_them() -> None:
    # Everybody is alike, so what varies is the seeds: means over five folds of two seeds each.
    generator = np.random.default_rng(3)
    skill_FS = generator.random((5, 2)).round(2)
    labels = np.zeros(1000, np.int64)
    predicted = np.concatenate([np.arange(100) >= 100 * skill for skill in skill_FS.ravel()])
    names = [(str(f), s) for f in range(5) for s in range(2) for _ in range(100)]
    sample = Sample(labels, predicted.astype(np.int64), ["everybody"] * 1000, names)
    base = Sample(labels, labels, ["everybody"] * 1000)
    _, own = bootstrap_difference(sample, base, 2, resamples=20_000)
    expected = np.sqrt((skill_FS.var(1, ddof=1) / 2).sum()) / 5
    assert own.value == pytest.approx(skill_FS.mean() - 1)
    wider = 2.571 / 1.960  # quantiles of Student's t with five degrees of freedom, and the normal
    assert own.error == pytest.approx(expected * wider, rel=0.03)


@pytest.mark.parametrize("seeds", [2, 1])
def test_samples_of_the_same_networks_are_paired_by_them(seeds: int) -> None:
    names = [(str(fold), seed) for fold in range(5) for seed in range(seeds) for _ in range(20)]
    predicted = np.array([(int(fold) + seed) % 2 for fold, seed in names])
    people = [f"{fold} {n % 20}" for n, (fold, _) in enumerate(names)]
    sample = Sample(np.zeros_like(predicted), predicted, people, names)
    _, own = bootstrap_difference(sample, replace(sample), 2, resamples=200)
    assert (own.error, own.p) == (0, 1)
    others = replace(sample, networks=[(f"{fold}, another", seed) for fold, seed in names])
    _, own = bootstrap_difference(sample, others, 2, resamples=200)
    assert own.error > 0.1


def test_holm_counts_all_tests_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    generator = np.random.default_rng(5)
    families = [min(holm(generator.random(11).tolist())) < 0.05 for _ in range(4000)]
    assert 0.035 < np.mean(families) < 0.058


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (6, 0), (5, 5), (3, 14), (90, 61)])
def test_mcnemar_is_the_exact_binomial_test_of_those_on_which_two_disagree(
    ours: int, theirs: int
) -> None:
    right = np.repeat([True, False, True, False], [ours, theirs, 40, 30])
    other = np.repeat([False, True, True, False], [ours, theirs, 40, 30])
    expected = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1
    assert mcnemar(right, other) == pytest.approx(expected)
    assert mcnemar(other, right) == pytest.approx(expected)


def test_a_clear_difference_survives_hundreds_of_tests() -> None:
    generator = np.random.default_rng(6)
    labels = np.zeros(700, np.int64)
    better, worse = ((generator.random(700) > share).astype(np.int64) for share in (0.92, 0.22))
    _, own = bootstrap_difference(alone(labels, better), alone(labels, worse), 2)
    assert holm([own.p] * 200) == pytest.approx([200 * own.p] * 200)
    assert 200 * own.p < 0.001
    _, faint = bootstrap_difference(alone(labels, better), alone(labels, better[::-1]), 2)
    assert faint.p > 0.05


@pytest.mark.parametrize("seeds", [2, 3])
def test_one_fold_of_few_seeds_has_intervals_in_the_possible_range(seeds: int) -> None:
    generator = np.random.default_rng(7)
    widths = []
    for _ in range(60):
        right_PSV = generator.random((20, seeds, 7)) < generator.normal(0.9, 0.02, (1, seeds, 1))
        networks = [("1", s) for _ in range(20) for s in range(seeds) for _ in range(7)]
        predicted = (~right_PSV).astype(np.int64).ravel()
        people = np.repeat(np.arange(20), 7 * seeds).tolist()
        sample = Sample(np.zeros(predicted.size, np.int64), predicted, people, networks)
        _, own = bootstrap(sample, 2, resamples=200)
        assert 0 <= own.low <= own.value <= own.high <= 1
        widths.append(own.high - own.low)
    assert np.median(widths) < 0.35


def test_a_p_value_is_never_zero_and_counts_both_sides() -> None:
    labels = np.zeros(40, np.int64)
    better, worse = labels, np.ones(40, np.int64)
    _, own = bootstrap_difference(alone(labels, better), alone(labels, worse), 2, resamples=99)
    assert own.p == pytest.approx(2 / 100)
    assert isinstance(own, Difference)
