"""Lists of videos."""

import unicodedata
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.datasets.videos import Fold, Video, VideoList, absent_classes


def test_first_videos_take_their_folds_and_subsets_with_them() -> None:
    videos = tuple(Video(name, Path(name), 0) for name in "abcd")
    folds = (Fold("1", ("a", "d"), ("b", "c")), Fold("2", ("c", "d"), ("a", "b")))
    subsets = {"dark": frozenset("ad"), "side": frozenset("d")}
    few = VideoList("test", ("happy",), videos, folds, subsets).first(2)
    assert few.videos == videos[:2]
    # Nothing is left to train on in fold 2.
    assert few.folds == (Fold("1", ("a",), ("b",)),)
    assert few.subsets == {"dark": {"a"}, "side": set()}


def videos_of(*ids: str) -> VideoList:
    return VideoList("test", ("happy",), tuple(Video(name, Path(name), 0) for name in ids), ())


@pytest.mark.parametrize(
    "name",
    ["", "..", "a/../b", "/etc/passwd", "a//b", "C:/x", "C:\\x", "a\n", "\x1b[m", "\0", "\udcff"],
)
def test_ids_that_are_paths_of_their_own_or_not_printable_are_refused(name: str) -> None:
    videos_of("clip 1/00002", "日本", "a..b")
    with pytest.raises(RefusedError, match=r"test: the id .* is empty, a path of its own or not"):
        videos_of("fine", name)


def test_ids_equal_in_another_spelling_are_refused() -> None:
    spellings = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    with pytest.raises(RefusedError, match=r"is listed twice, as '\\xe9' and 'e\\u0301'; ids"):
        videos_of(*spellings)
    with pytest.raises(RefusedError, match="video a is listed twice; ids must be unique"):
        videos_of("a", "a")


def test_classes_that_a_fold_lacks_are_named() -> None:
    videos = tuple(Video(name, Path(name), i % 3) for i, name in enumerate("abcdef"))
    folds = (Fold("1", ("a", "b", "c"), ("d", "e", "f")), Fold("2", ("a", "d"), ("b", "c")))
    found = absent_classes(VideoList("test", ("happy", "sad", "angry"), videos, folds))
    assert found == [
        "fold 2 has no videos to train on of sad, angry",
        "fold 2 has no videos to test of happy",
    ]
