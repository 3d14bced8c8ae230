"""Features on the device, on the host or in the store's files: the same runs, bit for bit."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import load_method, runs_of
from pipeline.train.features import CachedFeatures, FetchedFeatures, load_training_data
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from pipeline.train.residence import choose_residence, feature_bytes
from support.commands import tgdfer
from support.stores import random_store

RUN = (
    "optimiser.epochs=2",
    "optimiser.batch=7",
    "optimiser.micro_batch=3",
    "input.scale=standardise",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("residence") / "s.zarr"
    return random_store(path, videos=41, views=3, missing=(3,))


def files_of(root: Path) -> dict[str, bytes]:
    """All that runs leave but their JSON files, which hold times."""
    files = [path for path in root.rglob("*.*") if path.suffix in (".safetensors", ".csv", ".npy")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_streamed_runs_are_those_of_resident_features(store: Store, tmp_path: Path) -> None:
    runs = runs_of(load_method("paper", RUN), ("1", "2"), [0])
    for where in ("resident", "stream"):
        train_runs(runs, Records(tmp_path / where, store), "cpu", workers=0, features=where)
    resident, stream = (files_of(tmp_path / where) for where in ("resident", "stream"))
    assert len(resident) == 2 * 5
    assert stream == resident


def test_what_was_fetched_ahead_is_given_only_to_whom_asks_for_it(store: Store) -> None:
    features = store.load_features()
    threads: list[str] = []

    def fetch(videos: np.ndarray, views: np.ndarray) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return features[videos, views]

    fetched = FetchedFeatures(store.views, fetch, torch.device("cpu"))
    cached = CachedFeatures(torch.from_numpy(features))
    video_RB, view_RB = torch.tensor([[0, 5, 9], [9, 9, 40]]), torch.tensor([[0, 1, 2], [2, 1, 0]])
    fetched.prepare(video_RB, view_RB)
    assert torch.equal(fetched(video_RB, view_RB), cached(video_RB, view_RB))
    assert "MainThread" not in threads
    fetched.prepare(video_RB, view_RB)
    assert torch.equal(fetched(video_RB, 2 - view_RB), cached(video_RB, 2 - view_RB))
    assert torch.equal(fetched(video_RB, view_RB), cached(video_RB, view_RB))
    assert threads.count("MainThread") == 2


def test_an_error_of_the_fetching_thread_is_raised(store: Store) -> None:
    features = load_training_data(store, torch.device("cpu"), "stream").features
    beyond, view = torch.tensor([[41]]), torch.tensor([[0]])
    features.prepare(beyond, view)
    with pytest.raises(IndexError):
        features(beyond, view)


def test_features_go_where_they_fit(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    size = feature_bytes(store)
    assert size == 41 * 3 * 16 * 16 * 2

    def free(host: float, gpu: float = 0) -> None:
        monkeypatch.setattr("pipeline.train.residence.available_bytes", lambda: int(host * size))
        monkeypatch.setattr("pipeline.train.residence.free_on_gpu", lambda _: int(gpu * size))

    free(host=3)
    assert choose_residence("auto", store, "cpu", 2) == "resident"
    assert choose_residence("stream", store, "cpu", 2) == "stream"
    assert choose_residence("resident", store, "cpu", 3) == "resident"
    assert capfd.readouterr().err == ""
    assert choose_residence("auto", store, "cpu", 3) == "stream"
    assert "every step reads what it needs from" in capfd.readouterr().err
    with pytest.raises(
        RefusedError, match=r"in each of 4 training .*--workers 3, or --features st"
    ):
        choose_residence("resident", store, "cpu", 4)
    monkeypatch.setattr("pipeline.train.residence.SHARED_BYTES", size - 1)
    free(host=100)
    assert choose_residence("auto", store, "cpu", 1) == "resident"
    assert choose_residence("auto", store, "cpu", 2) == "stream"
    assert capfd.readouterr().err == ""
    free(host=3, gpu=2)
    assert choose_residence("auto", store, "cuda:1", 1) == "resident"
    free(host=3, gpu=1.1)
    assert choose_residence("resident", store, "cuda", 1) == "resident"
    assert choose_residence("auto", store, "cuda", 1) == "host"
    assert "beside the training on cuda; they stay in the host's" in capfd.readouterr().err
    free(host=0.9, gpu=0.9)
    assert choose_residence("auto", store, "cuda", 1) == "stream"
    with pytest.raises(RefusedError, match=r"available; use --features stream$"):
        choose_residence("host", store, "cuda", 1)


def test_a_store_elsewhere_that_fits_nowhere_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    from cache.store import open_store

    fsspec.filesystem("memory").put(str(store.path), "/residence", recursive=True)
    elsewhere = open_store("memory://residence")
    monkeypatch.setattr("pipeline.train.residence.available_bytes", lambda: 1000)
    for asked in ("auto", "stream"):
        with pytest.raises(RefusedError, match="use a copy of the store in a folder here"):
            choose_residence(asked, elsewhere, "cpu", 1)


def test_the_command_says_where_features_can_be_kept(tmp_path: Path) -> None:
    refused = tgdfer("train", "--features", "disk", cwd=tmp_path)
    assert refused.returncode == 2
    assert "auto, resident, host or stream" in refused.stderr
