"""Folds that are made: stratified by class, disjoint by subject."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import RefusedError
from pipeline.datasets.folds import choose_few, draw_folds, folds_of_tests
from pipeline.datasets.videos import cut_folds


@settings(max_examples=40, deadline=None)
@given(people=st.integers(10, 30), each=st.integers(3, 9), folds=st.integers(2, 5))
def test_drawn_folds_share_no_subject_and_have_the_classes_in_proportion(
    people: int, each: int, folds: int
) -> None:
    subjects = {f"{p}/{n}": f"s{p}" for p in range(people) for n in range(each)}
    labels = {video_id: int(video_id.split("/")[1]) % 3 for video_id in subjects}
    drawn = draw_folds(labels, subjects, folds)
    assert drawn == draw_folds(labels, subjects, folds)
    assert sorted(i for fold in drawn for i in fold.test) == sorted(labels)
    for fold in drawn:
        assert not {subjects[i] for i in fold.train} & {subjects[i] for i in fold.test}
        shares = Counter(labels[i] for i in fold.test)
        for label, count in Counter(labels.values()).items():
            assert abs(shares[label] / len(fold.test) - count / len(labels)) < 1e-9


def test_videos_of_unknown_subjects_are_subjects_of_their_own() -> None:
    labels = {f"{n}": n % 2 for n in range(20)}
    drawn = draw_folds(labels, {}, 5)
    assert [len(fold.test) for fold in drawn] == [4] * 5
    assert all(sum(labels[i] for i in fold.test) == 2 for fold in drawn)


@pytest.mark.parametrize(
    ("labels", "subjects"),
    [
        ({"a": 0, "b": 1, "c": 0}, {}),
        ({f"{n}": n % 2 for n in range(9)}, {f"{n}": "anna" for n in range(9)}),
    ],
)
def test_more_folds_than_subjects_or_videos_of_a_class_are_refused(
    labels: dict[str, int], subjects: dict[str, str]
) -> None:
    with pytest.raises(RefusedError, match="both must be at least as many as the folds"):
        draw_folds(labels, subjects, 3)
    with pytest.raises(RefusedError, match="--folds 1: expected at least 2"):
        draw_folds(labels, subjects, 1)
    who = "1 subjects" if subjects else "3 videos"
    with pytest.raises(RefusedError, match=rf"there are {who}, and \d videos of class fear; both"):
        draw_folds(labels, subjects, 3, classes=("anger", "fear"))


def test_folds_that_would_be_empty_are_refused() -> None:
    """Six people with 8, 5, 4, 10, 2 and 8 videos, each of one class."""
    people = [(8, 1), (5, 1), (4, 1), (10, 0), (2, 1), (8, 0)]
    labels = {f"{p}/{n}": label for p, (count, label) in enumerate(people) for n in range(count)}
    subjects = {video_id: video_id[0] for video_id in labels}
    with pytest.raises(RefusedError, match=r"--folds 6: only 5 of them .*: take fewer folds, or"):
        draw_folds(labels, subjects, 6)
    assert len(draw_folds(labels, subjects, 5)) == 5


def test_folds_are_in_natural_order() -> None:
    folds = folds_of_tests({"a": "10", "b": "9", "c": "9"})
    assert [(fold.name, fold.test) for fold in folds] == [("9", ("b", "c")), ("10", ("a",))]


@settings(max_examples=30, deadline=None)
@given(
    tested=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=4, max_size=40),
    count=st.integers(1, 50),
)
def test_a_few_videos_keep_every_fold_and_as_many_classes_as_there_is_room_for(
    tested: list[tuple[int, int]], count: int
) -> None:
    labels = {f"{n:02d}": label for n, (label, _) in enumerate(sorted(tested))}
    folds = folds_of_tests({f"{n:02d}": fold for n, (_, fold) in enumerate(sorted(tested))})
    groups = len({*tested})
    try:
        few = choose_few(labels, folds, count)
    except RefusedError:
        assert count < groups
        return
    assert [*few] == sorted({*few})
    assert len(few) == min(count, len(labels))
    assert len(cut_folds(folds, few)) == len(folds)
    if count >= groups:
        assert {labels[i] for i in few} == {*labels.values()}


def test_a_few_videos_are_the_first_if_these_will_do_and_else_in_proportion() -> None:
    mixed = {f"{n:02d}": n % 2 for n in range(20)}
    halves = folds_of_tests({i: n // 2 % 2 for n, i in enumerate(mixed)})
    assert choose_few(mixed, halves, 6) == tuple(mixed)[:6]
    ordered = {i: int(n >= 12) for n, i in enumerate(mixed)}
    few = choose_few(ordered, halves, 10)
    assert Counter(ordered[i] for i in few) == {0: 6, 1: 4}
    assert len({*few} & {*halves[0].test}) == 5
