"""Small pictures of the frames that a store's features were made from."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.errors import RefusedError
from pipeline.predict.thumbnails import SIZE_PX, frames_of, jpeg_strip
from support.stores import random_store
from support.trained import Trained


def test_frames_are_those_that_the_features_were_made_from(trained: Trained) -> None:
    store, root = trained.store, trained.root
    sources = store.plan.videos.sources
    assert sources is not None
    found = dict(frames_of(store, root, [3, 30]))
    for row, frames in found.items():
        assert isinstance(frames, np.ndarray)
        assert frames.shape == (store.frames, SIZE_PX, SIZE_PX, 3)
        files = sorted((root / sources[row]).iterdir())
        for t in (0, store.frames - 1):
            file = files[store.load_frame_index([0])[row, 0, t]]
            picture = (
                Image.open(file).convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX)
            )
            assert np.abs(frames[t].astype(int) - np.asarray(picture)).mean() < 4
        with Image.open(io.BytesIO(jpeg_strip(frames))) as strip:
            assert strip.size == (SIZE_PX * store.frames, SIZE_PX)
            error = np.asarray(strip).astype(int) - np.concatenate(frames, axis=1)
            assert np.abs(error).mean() < 6
    assert not np.array_equal(np.asarray(found[3]), np.asarray(found[30]))


def test_a_video_that_is_missing_or_was_changed_is_named_and_not_shown(
    trained: Trained, tmp_path: Path
) -> None:
    sources = trained.store.plan.videos.sources
    assert sources is not None
    shutil.copytree(trained.root / sources[0], tmp_path / sources[0])
    shutil.copytree(trained.root / sources[1], tmp_path / sources[1])
    next(iter(sorted((tmp_path / sources[1]).iterdir()))).unlink()
    found = dict(frames_of(trained.store, tmp_path, [0, 1, 2]))
    assert isinstance(found[0], np.ndarray)
    assert found[1] == f"{tmp_path / sources[1]} is no longer as it was in extraction"
    assert found[2] == f"{tmp_path / sources[2]} is missing"


def test_a_store_that_names_no_files_is_refused(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=14)
    with pytest.raises(RefusedError, match="does not say from which files"):
        next(frames_of(store, tmp_path, [0]))
