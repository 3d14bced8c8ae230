"""Stores to one HDF5 file and back, and other people's features into a store."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from cache.errors import DamagedError, RefusedError
from cache.hdf5 import export_store, import_store, is_export
from cache.remote import local_path
from cache.store import Store, open_store
from pipeline.datasets.videos import Fold, Video, VideoList
from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.extract.imported import import_videos
from support.sources import write_encoder
from support.tiny import make_store, store_bytes

IDS = tuple(f"v{n}" for n in range(70))
FEATURES = np.random.default_rng(0).standard_normal((70, 4, 16)).astype(np.float32)
VIDEOS = VideoList(
    "test",
    ("a", "b"),
    tuple(Video(name, Path("nowhere") / name, n % 2) for n, name in enumerate(IDS)),
    (Fold("1", IDS[10:], IDS[:10]),),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("hdf5") / "s", failed=(3,))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    name = write_encoder(tmp_path_factory.mktemp("encoder"))
    return Encoder(find_encoder(name), "cpu", "fp32")


def test_exported_and_imported_store_is_byte_identical(store: Store, tmp_path: Path) -> None:
    assert export_store(store.path, tmp_path / "s.h5") == store.digest
    assert is_export(tmp_path / "s.h5")
    assert import_store(tmp_path / "s.h5", tmp_path / "back") == store.digest
    assert store_bytes(tmp_path / "back") == store_bytes(local_path(store.path))
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["features"].chunks is None  # one piece
        np.testing.assert_array_equal(file["features"][()], store.load_features())
        assert file.attrs["digest"] == store.digest
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".h5"] == ["s.h5"]
    with pytest.raises(RefusedError, match="exists already"):
        export_store(store.path, tmp_path / "s.h5")


def test_changed_export_is_refused(store: Store, tmp_path: Path) -> None:
    export_store(store.path, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["features"][100, 1, 0, 0] = 7
    with pytest.raises(DamagedError, match="it was exported with"):
        import_store(tmp_path / "s.h5", tmp_path / "back")


def write_features(folder: Path, form: str) -> Path:
    if form == "folder of npy":
        for name, values in zip(IDS, FEATURES, strict=True):
            np.save(folder / f"{name}.npy", values)
        return folder
    with h5py.File(folder / "f.h5", "w") as file:
        if form == "dataset per video":
            for name, values in zip(IDS, FEATURES, strict=True):
                file[name] = values
        else:
            file["features"], file["ids"] = FEATURES[::-1], list(reversed(IDS))
    return folder / "f.h5"


@pytest.mark.parametrize("form", ["folder of npy", "dataset per video", "features and ids"])
def test_foreign_features_are_imported_by_id(tmp_path: Path, encoder: Encoder, form: str) -> None:
    (tmp_path / "in").mkdir()
    source = write_features(tmp_path / "in", form)
    digest = import_videos(source, tmp_path / "s", VIDEOS, encoder)
    store = open_store(tmp_path / "s")
    assert store.digest == digest
    np.testing.assert_array_equal(store.load_features()[:, 0], FEATURES.astype(np.float16))
    assert store.identity.decoder.startswith("imported from files of sha256 ")
    assert store.identity.preprocessing.resize == "unknown (imported)"
    assert store.text_weights == encoder.text_weights
    assert (store.load_frame_index() == -1).all()
    assert store.folds[0][2].tolist() == list(range(10))


def test_ids_are_checked_both_ways(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "in").mkdir()
    folder = write_features(tmp_path / "in", "folder of npy")
    (folder / "v3.npy").rename(folder / "stranger.npy")
    message = r"1 videos of the list have no features \(v3\), 1 features belong to no video \(stra"
    with pytest.raises(RefusedError, match=message):
        import_videos(folder, tmp_path / "s", VIDEOS, encoder)
    assert not (tmp_path / "s").exists()


def test_features_that_do_not_fit_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "in").mkdir()
    folder = write_features(tmp_path / "in", "folder of npy")
    np.save(folder / "v5.npy", FEATURES[5, :3])
    with pytest.raises(RefusedError, match=r"video v5 has float32 \(1, 3, 16\), expected floating"):
        import_videos(folder, tmp_path / "s", VIDEOS, encoder)
    np.save(folder / "v5.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(RefusedError, match=r"cannot be imported .*Python objects"):
        import_videos(folder, tmp_path / "t", VIDEOS, encoder)
    np.save(folder / "v0.npy", FEATURES[0, :, :8])
    with pytest.raises(RefusedError, match=r"8 dimensions, the text tower of .* has 16"):
        import_videos(folder, tmp_path / "u", VIDEOS, encoder)
    with pytest.raises(RefusedError, match="neither an HDF5 file nor a folder"):
        import_videos(tmp_path / "none", tmp_path / "v", VIDEOS, encoder)
