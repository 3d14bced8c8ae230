"""Features of single videos, read where they lie: the same as those of the whole store."""

from pathlib import Path

import numpy as np
import pytest

from cache.errors import DamagedError, RefusedError, StorageError
from cache.lookup import FeatureLookup
from cache.store import open_store
from support.tiny import LocalStore, flip, make_store

CHUNK = "features/c.1.0.0.0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return make_store(tmp_path_factory.mktemp("lookup") / "s", failed=(70,))


def test_any_videos_and_views_are_those_of_the_whole_store(whole: LocalStore) -> None:
    features, look_up = whole.load_features(), FeatureLookup(whole)
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 400):  # with videos that are asked for twice, and one that is missing
        videos = generator.integers(0, len(whole.ids), size)
        views = generator.integers(0, whole.views, size)
        np.testing.assert_array_equal(look_up(videos, views), features[videos, views])
    assert np.isnan(look_up(np.array([70]), np.array([1]))).all()


@pytest.mark.parametrize(("video", "view"), [(-1, 0), (150, 0), (0, -1), (0, 2)])
def test_what_does_not_exist_is_not_given(whole: LocalStore, video: int, view: int) -> None:
    with pytest.raises(IndexError, match="asked for"):
        FeatureLookup(whole)(np.array([video]), np.array([view]))


def test_a_damaged_chunk_is_refused_before_any_of_its_videos_is_given(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    look_up = FeatureLookup(store)
    flip(store.path / CHUNK, -20)  # in the last video of the chunk
    look_up(np.array([0, 140]), np.array([0, 0]))
    with pytest.raises(DamagedError, match=r"c\.1\.0\.0\.0 is damaged .*store repair"):
        look_up(np.array([64]), np.array([0]))


def test_a_chunk_that_changes_later_is_not_read_past_its_end_nor_through_a_link(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path / "s")
    look_up, chunk = FeatureLookup(store), store.path / CHUNK
    video, view = np.array([127]), np.array([0])
    look_up(video, view)
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-100])
    with pytest.raises(DamagedError, match="became shorter"):
        look_up(video, view)
    chunk.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="no longer exists"):
        look_up(video, view)
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedError, match="a symbolic link"):
        look_up(video, view)


def test_a_store_elsewhere_is_refused(whole: LocalStore) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(whole.path), "/lookup", recursive=True)
    with pytest.raises(RefusedError, match="copy it here"):
        FeatureLookup(open_store("memory://lookup"))
