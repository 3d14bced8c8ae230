"""Frames of a video, one at a time -> its views: T frames each, cropped, resized and augmented."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cache.identity import Preprocessing
from pipeline.datasets.videos import Video
from pipeline.video.augmentation import STANDARD, ViewNames, view_rule
from pipeline.video.crops import Crop, Cropping
from pipeline.video.frames import Found, read_frames
from pipeline.video.images import BadVideoError
from pipeline.video.tracks import find_people
from pipeline.video.warp import Warp


@dataclass(frozen=True)
class DecodedViews:
    """The views of one video, and what was found in its source.

    ``length`` counts the frames that views are made of: all, or those with the face.
    """

    views_VTCHW: torch.Tensor  # uint8
    frame_index_VT: NDArray[np.int32]
    found: Found
    length: int


def decode_views(
    video: Video,
    views: tuple[int, ...],
    frames: int,
    seed: int,
    pixels: Preprocessing,
    read: Callable[..., Found] = read_frames,
    names: ViewNames = STANDARD,
    cropping: Cropping | None = None,
) -> DecodedViews:
    """Decode a video by ``read``, and make ``views`` of ``frames`` frames each.

    With ``cropping`` it is decoded twice, and the views show the face of one person, the largest
    and longest, in the frames where it is. Raises BadVideoError if the video cannot be read, has no
    face, or if its length differs from its annotation.
    """
    people = None if cropping is None else find_people(video.path, read)
    crop = None if cropping is None or people is None else Crop(people.main, cropping)
    maker = ViewMaker(video.id, views, frames, seed, pixels, names, crop)
    found = read(video.path, maker.choose, maker.take)
    if people is not None:
        people.check_same(found)
        found = replace(found, flags=(*found.flags, *people.main_flags))
    if video.frame_labels is not None and len(video.frame_labels) != found.frames:
        raise BadVideoError(
            f"decoded {found.frames} frames, its annotation describes {len(video.frame_labels)}"
        )
    return DecodedViews(maker.finish(), maker.frame_index_VT, found, maker.length)


class ViewMaker:
    """Collects the views of one video while it is decoded; keeps no frame at its full size."""

    def __init__(
        self,
        video_id: str,
        views: tuple[int, ...],
        frames: int,
        seed: int,
        pixels: Preprocessing,
        names: ViewNames = STANDARD,
        crop: Crop | None = None,
    ) -> None:
        self._rules = [view_rule(seed, video_id, view, frames, names) for view in views]
        self._pixels, self._crop = pixels, crop
        self.length = 0
        self._shown: list[set[int]] = []
        self._kept: list[dict[int, torch.Tensor]] = []
        self._warps: dict[tuple[int, tuple[int, int]], Warp] = {}
        self.frame_index_VT = np.zeros((len(views), frames), np.int32)

    def choose(self, length: int) -> Collection[int]:
        """The frames, of a video of ``length`` frames, that any view shows."""
        first, self.length = (0, length) if self._crop is None else self._crop.track.span
        self.frame_index_VT[:] = [first + rule.choose(self.length) for rule in self._rules]
        self._shown = [set(index.tolist()) for index in self.frame_index_VT]
        self._kept = [{} for _ in self._rules]
        return set().union(*self._shown)

    def take(self, index: int, image: NDArray[np.uint8]) -> None:
        """Make of frame ``index``, uint8 [height, width, 3], those of the views that show it."""
        if self._crop is not None:
            image = self._crop(index, image)
        image = np.require(image, requirements=["C", "W"])
        for i, shown in enumerate(self._shown):
            if index in shown:
                self._kept[i][index] = self._fit(i, image)

    def finish(self) -> torch.Tensor:
        """The views, uint8 [view, frame, channel, height, width]; the channels are together."""
        views_VTHWC = torch.stack(
            [
                torch.stack([kept[index].permute(1, 2, 0) for index in index_T.tolist()])
                for kept, index_T in zip(self._kept, self.frame_index_VT, strict=True)
            ]
        )
        return views_VTHWC.permute(0, 1, 4, 2, 3)

    def _fit(self, view: int, image: NDArray[np.uint8]) -> torch.Tensor:
        """Uint8 [channel, size, size]."""
        augmentation = self._rules[view].augmentation
        if augmentation is None:
            return fit_for_evaluation(torch.from_numpy(image).permute(2, 0, 1), self._pixels)
        shape = (image.shape[0], image.shape[1])
        if (warp := self._warps.get((view, shape))) is None:
            warp = self._warps[view, shape] = Warp(*shape, self._pixels.size_px, augmentation)
        return torch.from_numpy(warp(image)).permute(2, 0, 1)


def fit_for_evaluation(image_CHW: torch.Tensor, pixels: Preprocessing) -> torch.Tensor:
    """Resize and crop to [channel, size, size] as open_clip's own preprocessing does."""
    size = pixels.size_px
    mode = InterpolationMode(pixels.interpolation)
    shape = [size, size] if pixels.resize == "squash" else [size]
    resized = F.resize(image_CHW, shape, mode, antialias=True)
    out: torch.Tensor = F.center_crop(resized, [size, size])
    return out
