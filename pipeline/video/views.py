"""Frames of a video, one at a time -> its views: T frames each, cropped, resized and augmented."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cache.identity import Preprocessing
from pipeline.datasets.videos import Video
from pipeline.video.augmentation import Augmentation, crop_box, view_rule
from pipeline.video.frames import Found, read_frames
from pipeline.video.images import BadVideoError
from pipeline.video.sampling import at_moments


@dataclass(frozen=True)
class DecodedViews:
    """The views of one video, and what was found in its source."""

    views_VTCHW: torch.Tensor  # uint8
    frame_index_VT: NDArray[np.int32]
    found: Found


def decode_views(
    video: Video,
    views: tuple[int, ...],
    frames: int,
    seed: int,
    pixels: Preprocessing,
    read: Callable[..., Found] = read_frames,
) -> DecodedViews:
    """Decode a video once, by ``read``, and make ``views`` of ``frames`` frames each.

    Raises BadVideoError if it cannot be read or its length differs from its annotation.
    """
    maker = ViewMaker(video.id, views, frames, seed, pixels)
    found = read(video.path, maker.choose, maker.take)
    if video.frame_labels is not None and len(video.frame_labels) != found.frames:
        raise BadVideoError(
            f"decoded {found.frames} frames, its annotation describes {len(video.frame_labels)}"
        )
    return DecodedViews(maker.finish(), maker.frame_index_VT, found)


class ViewMaker:
    """Collects the views of one video while it is decoded; keeps no frame at its full size."""

    def __init__(
        self, video_id: str, views: tuple[int, ...], frames: int, seed: int, pixels: Preprocessing
    ) -> None:
        self._rules = [view_rule(seed, video_id, view, frames) for view in views]
        self._pixels = pixels
        self._shown: list[set[int]] = []
        self._kept: list[dict[int, torch.Tensor]] = []
        self.frame_index_VT = np.zeros((len(views), frames), np.int32)

    def choose(self, length: int) -> Collection[int]:
        """The frames, of a video of ``length`` frames, that any view shows."""
        self.frame_index_VT[:] = [at_moments(length, rule.moments) for rule in self._rules]
        self._shown = [set(index.tolist()) for index in self.frame_index_VT]
        self._kept = [{} for _ in self._rules]
        return set().union(*self._shown)

    def take(self, index: int, image: NDArray[np.uint8]) -> None:
        """Crop and resize frame ``index``, uint8 [height, width, 3], for the views that show it."""
        image_CHW = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        for rule, shown, kept in zip(self._rules, self._shown, self._kept, strict=True):
            if index in shown:
                kept[index] = _fit(image_CHW, rule.augmentation, self._pixels)

    def finish(self) -> torch.Tensor:
        """The views, uint8 [view, frame, channel, height, width]."""
        return torch.stack(
            [
                _finish_view(kept, index, rule.augmentation)
                for kept, index, rule in zip(
                    self._kept, self.frame_index_VT, self._rules, strict=True
                )
            ]
        )


def fit_for_evaluation(image_CHW: torch.Tensor, pixels: Preprocessing) -> torch.Tensor:
    """Resize and crop to [channel, size, size] as open_clip's own preprocessing does."""
    size = pixels.size_px
    mode = InterpolationMode(pixels.interpolation)
    shape = [size, size] if pixels.resize == "squash" else [size]
    resized = F.resize(image_CHW, shape, mode, antialias=True)
    out: torch.Tensor = F.center_crop(resized, [size, size])
    return out


def _fit(
    image_CHW: torch.Tensor, augmentation: Augmentation | None, pixels: Preprocessing
) -> torch.Tensor:
    if augmentation is None:
        return fit_for_evaluation(image_CHW, pixels)
    box = crop_box(image_CHW.shape[1], image_CHW.shape[2], augmentation)
    size = [pixels.size_px, pixels.size_px]
    mode = InterpolationMode(pixels.interpolation)
    out: torch.Tensor = F.resized_crop(image_CHW, *box, size, mode, antialias=True)
    return out


def _finish_view(
    kept: dict[int, torch.Tensor], index_T: NDArray[np.int32], augmentation: Augmentation | None
) -> torch.Tensor:
    shown = sorted(kept)
    frames_NCHW = torch.stack([kept[i] for i in shown])
    if augmentation is not None:
        frames_NCHW = _augment(frames_NCHW, augmentation)
    return frames_NCHW[np.searchsorted(shown, index_T)]


def _augment(frames_NCHW: torch.Tensor, a: Augmentation) -> torch.Tensor:
    out: torch.Tensor = F.rotate(frames_NCHW, a.angle_degrees, InterpolationMode.BILINEAR)
    if a.flip:
        out = F.horizontal_flip(out)
    out = F.adjust_brightness(out, a.brightness)
    out = F.adjust_contrast(out, a.contrast)
    out = F.adjust_saturation(out, a.saturation)
    return out
