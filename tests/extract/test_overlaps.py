"""Videos on both sides of a fold: equal bytes, and similar features against a plain double loop."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from pipeline.datasets.survey import Survey
from pipeline.datasets.tree import Found, Place, place_at
from pipeline.datasets.videos import Fold
from pipeline.extract import overlaps
from pipeline.extract.overlaps import same_bytes, similar_features
from support.stores import write_store
from support.trees import add_frames, write

VIDEOS = 30
IDS = [f"{n:05d}" for n in range(VIDEOS)]
LABELS = {video_id: n % 2 for n, video_id in enumerate(IDS)}
FOLDS = (Fold("a", tuple(IDS[:20]), tuple(IDS[20:])), Fold("b", tuple(IDS[20:]), tuple(IDS[:10])))


def survey(places: dict[str, Place], root: Path) -> Survey:
    return Survey("test", root, ("sad", "happy"), LABELS, FOLDS, Found(".", places))


def test_videos_of_the_same_bytes_are_found_by_size_and_content(tmp_path: Path) -> None:
    for n, video_id in enumerate(IDS):
        if n % 3:
            write(tmp_path / video_id, b"v" * n)
        else:
            add_frames(tmp_path / video_id, 2)
    # The same video twice, the same frames under other names, and other frames of the same sizes.
    shutil.copy(tmp_path / "00001", tmp_path / "00022")
    for video_id in ("00003", "00021"):
        shutil.rmtree(tmp_path / video_id)
        shutil.copytree(tmp_path / "00000", tmp_path / video_id)
    (tmp_path / "00021/1.jpg").rename(tmp_path / "00021/0001.JPG")
    image = tmp_path / "00003/2.jpg"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    found_at = ((i, place_at(str(tmp_path / i), not int(i) % 3, tmp_path)) for i in IDS)
    places = {video_id: place for video_id, place in found_at if place}
    shutil.rmtree(tmp_path / "00024")  # gone since it was counted
    found = same_bytes(survey(places, tmp_path))
    named = {(o.fold, o.count): [(p.train, p.test) for p in o.pairs] for o in found}
    assert named == {
        ("a", 2): [("00000", "00021"), ("00001", "00022")],
        ("b", 2): [("00021", "00000"), ("00022", "00001")],
    }
    assert {(p.train_label, p.test_label) for o in found for p in o.pairs} == {
        *{("sad", "happy"), ("happy", "sad")},
    }


def features() -> np.ndarray:
    """Around one far centre; video 25 is video 4 from another frame on, 26 roughly video 7."""
    rng = np.random.default_rng(0)
    made = rng.normal(size=(VIDEOS, 1, 4, 16)) + 5
    made[25, 0] = np.roll(made[4, 0], 1, axis=0)
    made[26, 0] = made[7, 0] + 0.2 * rng.normal(size=(4, 16))
    return made.astype(np.float16)


def by_hand(frames_NTD: np.ndarray, rows: list[int]) -> dict[tuple[int, int], float]:
    """Similarity of all pairs across fold a: the mean of every frame's best cosine."""
    x = frames_NTD.astype(np.float64)
    x = x - np.mean([x[n].mean(0) for n in rows], axis=0)
    found = {}
    for a in (n for n in rows if n < 20):
        for b in (n for n in rows if n >= 20):
            cosines = [[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in x[b]] for u in x[a]]
            best = [max(row) for row in cosines] + [max(c) for c in zip(*cosines, strict=True)]
            found[a, b] = sum(best) / len(best)
    return found


def test_similar_videos_are_those_that_a_plain_loop_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = features()
    store = write_store(tmp_path / "s", made, np.arange(VIDEOS) % 2, missing=(3,))
    rows = [n for n in range(VIDEOS) if n != 3]
    expected = by_hand(made[:, 0], rows)
    monkeypatch.setattr(overlaps, "_ROWS", 3)
    fold_a = similar_features(survey({}, tmp_path), store, 0.3)[0]
    pairs = {(int(p.train), int(p.test)): p.similarity for p in fold_a.pairs}
    wanted = {pair: value for pair, value in expected.items() if value >= 0.3}
    assert pairs == pytest.approx(wanted, abs=1e-3)
    assert fold_a.count == len(wanted) > 2
    assert [(p.train, p.test) for p in fold_a.pairs[:2]] == [("00004", "00025"), ("00007", "00026")]
    assert (fold_a.pairs[0].train_label, fold_a.pairs[0].test_label) == ("sad", "happy")
    assert fold_a.pairs[0].similarity == pytest.approx(1, abs=1e-4)
    for name in ("COMPARED_MAX", "PAIRS_MAX"):
        monkeypatch.setattr(overlaps, name, 2)
        fold_a = similar_features(survey({}, tmp_path), store)[0]
        assert {(p.train, p.test) for p in fold_a.pairs} == {("00004", "00025"), ("00007", "00026")}
    monkeypatch.setattr(overlaps, "PAIRS_MAX", 1)
    fold_a = similar_features(survey({}, tmp_path), store)[0]
    assert (fold_a.count, [p.test for p in fold_a.pairs]) == (2, ["00025"])


def test_a_store_of_other_videos_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", features(), np.zeros(VIDEOS, int))
    other = Survey("test", tmp_path, ("sad",), {"x": 0}, (), Found(".", {}))
    with pytest.raises(RefusedError, match="has features of none of these videos"):
        similar_features(other, store)
    with pytest.raises(RefusedError, match="has the data set test, not mafw; name a store"):
        similar_features(replace(other, name="mafw"), store)
