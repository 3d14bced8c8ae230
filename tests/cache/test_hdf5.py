"""Stores to one HDF5 file and back, and other people's features into a store."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cache.errors import DamagedError, RefusedError
from cache.hdf5 import export_store, import_store, is_export
from cache.remote import local_path
from cache.store import Store, create_store, open_store
from pipeline.datasets.videos import Fold, Video, VideoList
from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.extract.imported import import_videos
from support.hostile import contents
from support.sources import write_encoder
from support.tiny import fill, fixed_files, make_plan, make_store, store_bytes

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


def replaced(name: str, **how: Any) -> Callable[[h5py.File], object]:
    """Write a dataset of the same values in another way."""

    def change(file: h5py.File) -> None:
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, **how)

    return change


def linked(name: str, link: object) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(file["features"].shape, np.float16)
    layout[:] = h5py.VirtualSource("other.h5", "features", file["features"].shape)
    del file["features"]
    file.create_virtual_dataset("features", layout)


def outside(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    file.create_dataset("features", shape, np.float16, external=[("other.bin", 0, 1 << 20)])


def never_written(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    file.create_dataset("features", shape, np.float16)


def bit_of(name: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        file[name][9] ^= 1

    return change


ALTERED: dict[str, Callable[[h5py.File], object]] = {
    "feature": lambda file: file["features"].__setitem__((100, 1, 0, 0), 7),
    "feature that is not finite": lambda file: file["features"].__setitem__((149, 1, 0, 0), np.nan),
    "frame index": lambda file: file["frame_index"].__setitem__((149, 1, 0), 7),
    "rows": bit_of("files/rows/2.1"),
    "plan": bit_of("files/plan.json"),
    "text tower": bit_of("files/text.safetensors"),
    "metadata": bit_of("files/zarr.json"),
    "digest": lambda file: file.attrs.__setitem__("digest", "0" * 64),
    "no digest": lambda file: file.attrs.__delitem__("digest"),
    "no features": lambda file: file.__delitem__("features"),
    "no frame index": lambda file: file.__delitem__("frame_index"),
    "no rows": lambda file: file.__delitem__("files/rows/2.1"),
    "no files": lambda file: file.__delitem__("files"),
    "name above": lambda file: file.create_dataset("files/../x", data=np.zeros(1, np.uint8)),
    "strange name": lambda file: file.create_dataset("files/x", data=np.zeros(1, np.uint8)),
    "shape": linked("features", np.zeros((150, 2), np.float16)),
    "kind": linked("features", np.zeros((150, 2, 4, 8))),
    "no numbers": linked("files/text.json", "text"),
    "compressed file": replaced("files/text.json", compression="gzip"),
    "soft link": linked("features", h5py.SoftLink("/frame_index")),
    "external link": linked("features", h5py.ExternalLink("other.h5", "features")),
    "external link of a file": linked("files/text.json", h5py.ExternalLink("other.h5", "x")),
    "external group": linked("files", h5py.ExternalLink("other.h5", "files")),
    "virtual": virtual,
    "outside": outside,
    "never written": never_written,
}


@pytest.mark.parametrize("name", ALTERED)
def test_altered_export_is_refused_and_leaves_nothing_behind(
    store: Store, tmp_path: Path, name: str
) -> None:
    export_store(store.path, tmp_path / "s.h5")
    shutil.copy(tmp_path / "s.h5", tmp_path / "other.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        ALTERED[name](file)
    with pytest.raises(RefusedError) as refused:
        import_store(tmp_path / "s.h5", tmp_path / "back")
    assert str(tmp_path / "s.h5") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "back").exists()
    begun = create_store(tmp_path / "begun", make_plan(), fixed_files())
    fill(begun, failed=(3,), only=1)
    before = contents(tmp_path / "begun")
    with pytest.raises(RefusedError):
        import_store(tmp_path / "s.h5", tmp_path / "begun")
    assert contents(tmp_path / "begun") == before


def test_file_that_is_cut_or_no_export_is_refused(store: Store, tmp_path: Path) -> None:
    export_store(store.path, tmp_path / "s.h5")
    data = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(RefusedError, match=r"cut\.h5 cannot be imported \(.*truncated"):
        is_export(tmp_path / "cut.h5")
    (tmp_path / "text.h5").write_text("text")
    assert not is_export(tmp_path / "text.h5")


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 16), np.nan), "features that are not finite"),
        (np.full((4, 16), 1e9), "features that are not finite"),
        (np.zeros((4, 15)), "expected floating"),
        (np.zeros((4, 16), np.int64), "expected floating"),
        (np.zeros(4), "expected .frames, dim. or .views, frames, dim."),
        (np.array(1.0), "expected .frames, dim. or .views, frames, dim."),
    ],
)
@pytest.mark.parametrize("form", ["folder of npy", "dataset per video"])
def test_bad_features_of_the_last_video_leave_nothing_behind(
    tmp_path: Path, encoder: Encoder, form: str, values: np.ndarray, message: str
) -> None:
    (tmp_path / "in").mkdir()
    source = write_features(tmp_path / "in", form)
    if source.is_dir():
        np.save(source / f"{IDS[-1]}.npy", values)
    else:
        with h5py.File(source, "r+") as file:
            linked(IDS[-1], values)(file)
    with pytest.raises(RefusedError, match=message):
        import_videos(source, tmp_path / "s", VIDEOS, encoder)
    assert not (tmp_path / "s").exists()


def test_features_behind_a_link_to_another_file_are_not_read(
    tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "in").mkdir()
    for form in ("dataset per video", "features and ids"):
        source = write_features(tmp_path / "in", form)
        shutil.move(source, tmp_path / "secret.h5")
        with h5py.File(tmp_path / "secret.h5") as secret, h5py.File(source, "w") as file:
            for name in secret:
                file[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), name)
        with pytest.raises(RefusedError, match=r"holds no features|or it is a link"):
            import_videos(source, tmp_path / "s", VIDEOS, encoder)
