"""Lists of videos."""

from pathlib import Path

from pipeline.datasets.videos import Fold, Video, VideoList


def test_first_videos_take_their_folds_and_subsets_with_them() -> None:
    videos = tuple(Video(name, Path(name), 0) for name in "abcd")
    folds = (Fold("1", ("a", "d"), ("b", "c")), Fold("2", ("c", "d"), ("a", "b")))
    subsets = {"dark": frozenset("ad"), "side": frozenset("d")}
    few = VideoList("test", ("happy",), videos, folds, subsets).first(2)
    assert few.videos == videos[:2]
    # Nothing is left to train on in fold 2.
    assert few.folds == (Fold("1", ("a",), ("b",)),)
    assert few.subsets == {"dark": {"a"}, "side": set()}
