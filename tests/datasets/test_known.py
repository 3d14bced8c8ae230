"""What is said of each data set adds up, and every class has a text."""

from collections import Counter
from pathlib import Path

import pytest

from cli.options import DATASETS
from pipeline.datasets.known import known_datasets
from pipeline.datasets.read import WITH_LISTS, WITH_NAMES
from pipeline.datasets.texts import class_texts
from pipeline.demo.faces import preview_faces

KNOWN = known_datasets()


@pytest.mark.parametrize("name", KNOWN)
def test_published_numbers_add_up_and_classes_have_texts(name: str) -> None:
    one = KNOWN[name]
    assert len(class_texts(one.classes).of("descriptors")) == len(one.classes)
    assert all(sorted(order) == sorted(one.classes) for order in one.orders)
    assert {*one.counts} in ({*one.classes}, set())
    assert not one.counts or sum(one.counts.values()) == one.videos
    assert {*one.part_counts} == ({*one.classes} if one.counts_of else set())
    assert all(sum(sizes) == one.videos for sizes in one.folds.values())
    if one.counts_of:
        fold, part = one.counted_part
        assert sum(one.part_counts.values()) == one.folds[fold][part == "test"]


def test_the_test_folds_of_dfew_and_mafw_cover_them() -> None:
    for name in ("dfew", "mafw"):
        tested = sum(test for _, test in KNOWN[name].folds.values())
        assert tested == KNOWN[name].videos


def test_every_data_set_has_an_adapter_and_is_an_option() -> None:
    assert {*KNOWN} == {"faces", *WITH_LISTS, *WITH_NAMES, "folders", "list"}
    assert tuple(KNOWN) == DATASETS


def test_what_is_said_of_the_faces_is_what_is_rendered(tmp_path: Path) -> None:
    faces, videos = KNOWN["faces"], preview_faces(tmp_path)
    labels = Counter(videos.classes[video.label] for video in videos.videos)
    assert (faces.classes, faces.counts) == (videos.classes, dict(labels))
    assert faces.folds == {fold.name: (len(fold.train), len(fold.test)) for fold in videos.folds}
