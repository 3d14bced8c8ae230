"""Where training gets its videos, labels and frame features from."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.lookup import FeatureLookup
from cache.store import Store
from pipeline.kernels.gather import gather
from pipeline.model.text_tower import NoTexts, TextTower, find_text_tower
from pipeline.train.residence import Residence

Rows = NDArray[np.int64]


class Features(Protocol):
    """A source of features for the batches."""

    @property
    def views(self) -> int:
        """View 0 is the test view, views 1 to views - 1 are augmented."""

    def __call__(self, video_RB: Tensor, view_RB: Tensor) -> Tensor:
        """Features of the given rows and views, float32 [R, B, T, D]."""

    def prepare(self, video_RB: Tensor, view_RB: Tensor) -> None:
        """Announce what the next call will ask for, so that it can be prepared meanwhile."""

    def parameters(self) -> list[Tensor]:
        """The encoder's trainable parameters, which have no run axis."""

    def encoder_files(self) -> dict[str, bytes]:
        """The encoder as it is now, as files; empty if frozen."""


@dataclass(frozen=True)
class CachedFeatures:
    """A store's features in the memory of the training device."""

    features_NVTD: Tensor  # float16

    @property
    def views(self) -> int:
        return self.features_NVTD.shape[1]

    def __call__(self, video_RB: Tensor, view_RB: Tensor) -> Tensor:
        return gather(self.features_NVTD, video_RB, view_RB)

    def prepare(self, video_RB: Tensor, view_RB: Tensor) -> None:
        pass

    def parameters(self) -> list[Tensor]:
        return []

    def encoder_files(self) -> dict[str, bytes]:
        return {}


class FetchedFeatures:
    """Features that are fetched for each step, those of the next step while one computes.

    ``fetch`` gives the features of N videos, each in its view, float16 [N, T, D].
    """

    def __init__(
        self, views: int, fetch: Callable[[Rows, Rows], NDArray[np.float16]], device: torch.device
    ) -> None:
        self._views, self._fetch, self._device = views, fetch, device
        self._thread = ThreadPoolExecutor(1, "features")
        self._ahead: tuple[tuple[bytes, bytes], Future[Tensor]] | None = None

    @property
    def views(self) -> int:
        return self._views

    def __call__(self, video_RB: Tensor, view_RB: Tensor) -> Tensor:
        asked, ahead = _on_host(video_RB, view_RB), self._ahead
        self._ahead = None
        if ahead and ahead[0] == _key(asked):
            features_NTD = ahead[1].result()
        else:
            features_NTD = self._fetched(*asked)
        moved_NTD = features_NTD.to(self._device, non_blocking=True)
        return moved_NTD.float().unflatten(0, tuple(video_RB.shape))

    def prepare(self, video_RB: Tensor, view_RB: Tensor) -> None:
        asked = _on_host(video_RB, view_RB)
        self._ahead = _key(asked), self._thread.submit(self._fetched, *asked)

    def parameters(self) -> list[Tensor]:
        return []

    def encoder_files(self) -> dict[str, bytes]:
        return {}

    def _fetched(self, videos: Rows, views: Rows) -> Tensor:
        features_NTD = torch.from_numpy(self._fetch(videos, views))
        # Only from pinned memory is a copy to a GPU made while the GPU computes.
        return features_NTD.pin_memory() if self._device.type == "cuda" else features_NTD


def _on_host(video_RB: Tensor, view_RB: Tensor) -> tuple[Rows, Rows]:
    return video_RB.flatten().cpu().numpy(), view_RB.flatten().cpu().numpy()


def _key(asked: tuple[Rows, Rows]) -> tuple[bytes, bytes]:
    return asked[0].tobytes(), asked[1].tobytes()


@dataclass(frozen=True)
class TrainingData:
    """The videos of a store, and the source of their features."""

    store: Store
    features: Features
    targets_2NK: Tensor  # as in ``targets_of``
    usable_N: NDArray[np.bool_]  # False for videos without features
    tower: TextTower | NoTexts

    @property
    def device(self) -> torch.device:
        """Where training happens."""
        return self.targets_2NK.device


def load_training_data(
    store: Store, device: torch.device, residence: Residence = "resident"
) -> TrainingData:
    """What training on ``device`` needs of a store; the features stay where ``residence`` says.

    Raises RefusedError for features that are to stay in the files of a store elsewhere.
    """
    return TrainingData(
        store,
        _features_of(store, device, residence),
        torch.from_numpy(targets_of(store)).to(device),
        np.array([video_id not in store.missing for video_id in store.ids]),
        find_text_tower(store.text_weights, store.text_config).to(device),
    )


def _features_of(store: Store, device: torch.device, residence: Residence) -> Features:
    if residence == "stream":
        return FetchedFeatures(store.views, FeatureLookup(store), device)
    features_NVTD = store.load_features()
    if residence == "resident" or device.type == "cpu":
        return CachedFeatures(torch.from_numpy(features_NVTD).to(device))
    return FetchedFeatures(store.views, lambda videos, views: features_NVTD[videos, views], device)


def targets_of(store: Store) -> NDArray[np.float32]:
    """What predictions of every video are compared with: its label, and its votes, [2, N, K].

    Both are shares of the classes; a video without votes has its label in either.
    """
    label_NK = np.eye(len(store.classes))[store.labels]
    share_NK = store.votes / store.votes.sum(1, keepdims=True)
    share_NK[~store.voted] = label_NK[~store.voted]
    return np.stack([label_NK, share_NK]).astype(np.float32)
