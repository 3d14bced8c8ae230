"""Where training gets its videos, labels and frame features from."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.store import Store
from pipeline.kernels.gather import gather
from pipeline.model.text_tower import TextTower, load_text_tower


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
        """The encoder as it is now, in open_clip's ``local-dir`` format; empty if frozen."""


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


@dataclass(frozen=True)
class TrainingData:
    """The videos of a store, and the source of their features."""

    store: Store
    features: Features
    targets_2NK: Tensor  # as in ``targets_of``
    usable_N: NDArray[np.bool_]  # False for videos without features
    tower: TextTower

    @property
    def device(self) -> torch.device:
        """Where training happens."""
        return self.targets_2NK.device


def load_training_data(store: Store, device: torch.device) -> TrainingData:
    """Load the whole store onto ``device``; it is not read again during training."""
    return TrainingData(
        store,
        CachedFeatures(torch.from_numpy(store.load_features()).to(device)),
        torch.from_numpy(targets_of(store)).to(device),
        np.array([video_id not in store.missing for video_id in store.ids]),
        load_text_tower(store.text_weights, store.text_config).to(device),
    )


def targets_of(store: Store) -> NDArray[np.float32]:
    """What predictions of every video are compared with: its label, and its votes, [2, N, K].

    Both are shares of the classes; a video without votes has its label in either.
    """
    label_NK = np.eye(len(store.classes))[store.labels]
    share_NK = store.votes / store.votes.sum(1, keepdims=True)
    share_NK[~store.voted] = label_NK[~store.voted]
    return np.stack([label_NK, share_NK]).astype(np.float32)
