"""The set people: balanced populations, and folds that train on one of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from pipeline.demo.face import Person
from pipeline.demo.faces import (
    FacesSpec,
    ensure_faces,
    plan_folds,
    plan_videos,
    preview_faces,
    write_script,
)
from pipeline.demo.people import ATTRIBUTES, GROUPS

SPEC = FacesSpec(setting="people", seed=3)
PLAN = plan_videos(SPEC)
VALUES = [value for pair in ATTRIBUTES for value in pair]


def test_people_look_as_their_subsets_say() -> None:
    brightness: dict[str, list[float]] = {"light": [], "dark": []}
    for video in {video.subject: video for video in PLAN}.values():
        person = write_script(SPEC, video).person
        tone, age, glasses = video.subsets
        brightness[tone].append(float(np.mean(person.skin)))
        assert (person.age >= 0.8) if age == "old" else (person.age <= 0.2)
        assert (person.glasses != "none") == (glasses == "glasses")
    assert min(brightness["light"]) > max(brightness["dark"]) + 80  # grey levels


def test_a_person_is_the_same_in_all_videos_and_differs_from_everybody_else() -> None:
    seen: dict[int, Person] = {}
    for video in PLAN[:200]:
        person = write_script(SPEC, video).person
        assert seen.setdefault(video.subject, person) == person
    assert len(set(seen.values())) == len(seen) > 50


@pytest.mark.parametrize("videos", [16, 112, 700, 1000])
def test_cells_have_equally_many_people_and_every_class_its_share(videos: int) -> None:
    plan = plan_videos(FacesSpec(videos=videos, setting="people"))
    cells = {(video.subject, video.subsets, video.fold) for video in plan}
    people = Counter((values, half) for _, values, half in cells)
    assert set(people) == set(GROUPS)
    assert len(set(people.values())) == 1
    assert len({subject for subject, _, _ in cells}) == len(cells)
    for label in range(7):
        counts = Counter((v.subsets, v.fold) for v in plan if v.label == label)
        counts.update(dict.fromkeys(GROUPS, 0))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_folds_train_on_one_value_and_half_of_the_people_and_test_on_the_others() -> None:
    plan = {video.id: video for video in PLAN}
    folds = {fold.name: fold for fold in plan_folds(SPEC, PLAN)}
    assert list(folds) == [f"{value}-{half}" for value in VALUES for half in (1, 2)]
    for name, fold in folds.items():
        value = name.rsplit("-", 1)[0]
        train, test = ([plan[i] for i in ids] for ids in (fold.train, fold.test))
        trained, tested = ({video.subject for video in part} for part in (train, test))
        assert not trained & tested
        assert all(value in video.subsets for video in train)
        assert {video.subsets for video in test} == {cell for cell, _ in GROUPS}
        inside = {video.fold for video in train}
        assert len(inside) == 1
        assert {video.id for video in train} == {
            v.id for v in PLAN if v.fold in inside and value in v.subsets
        }
        assert len(test) == 350
    for pair in ATTRIBUTES:
        for half in (1, 2):
            first, other = (folds[f"{value}-{half}"] for value in pair)
            assert len(first.train) == len(other.train) == 175
            assert first.test == other.test
    one, two = folds["light-1"], folds["light-2"]
    assert sorted([*one.test, *two.test]) == sorted(plan)


def test_numbers_that_give_folds_of_other_sizes_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"702 videos; .* a multiple of 4"):
        FacesSpec(videos=702, setting="people")


def test_names_of_folds_survive_the_numbered_lists_on_disk(tmp_path: Path) -> None:
    spec = FacesSpec(videos=16, setting="people", seed=3)
    expected = preview_faces(tmp_path, spec, limit=6)
    read = ensure_faces(tmp_path / "set", spec, workers=1, limit=6)
    assert read.name == "faces-people-seed3-videos16"
    assert [fold.name for fold in read.folds] == [fold.name for fold in expected.folds]
    assert {fold.name for fold in read.folds} >= {"light-1", "no_glasses-2"}
    for fold, own in zip(read.folds, expected.folds, strict=True):
        assert (set(fold.train), set(fold.test)) == (set(own.train), set(own.test))
    assert set(read.subsets) == set(VALUES)
