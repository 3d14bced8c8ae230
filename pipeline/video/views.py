"""Frames of a video, one at a time -> its views: T frames each, cropped, resized and augmented."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cache.identity import Preprocessing
from pipeline.datasets.videos import Video
from pipeline.kernels.pixels import PixelFormat
from pipeline.video.augmentation import STANDARD, ViewNames, ViewRule, view_rule
from pipeline.video.crops import Crop, Cropping
from pipeline.video.frames import Found, read_frames
from pipeline.video.images import BadVideoError
from pipeline.video.on_device import Shown, make_on_device, to_be_made
from pipeline.video.tracks import find_people
from pipeline.video.warp import Warp, Warper

# Of frames in their own size that wait for their upload, per video.
WAITING_BYTES = 64 << 20
WAITING_PICTURES = 64
# Smaller frames than this are fitted together: a call costs as much as its arithmetic.
LITTLE_BYTES = 512 << 10


@dataclass(frozen=True)
class DecodedViews:
    """The views of one video, what was found in its source, and where the time went.

    On the CPU they are uint8; made on a GPU they are normalised, in the encoder's precision.
    ``length`` counts the frames that views are made of: all, or those with the face.
    """

    views_VTCHW: torch.Tensor
    frame_index_VT: NDArray[np.int32]
    found: Found
    length: int
    upload_seconds: float
    views_seconds: float


def decode_views(
    video: Video,
    views: tuple[int, ...],
    frames: int,
    seed: int,
    pixels: Preprocessing,
    read: Callable[..., Found] = read_frames,
    names: ViewNames = STANDARD,
    cropping: Cropping | None = None,
    form: PixelFormat | None = None,
) -> DecodedViews:
    """Decode a video by ``read``, and make ``views`` of ``frames`` frames each.

    With ``cropping`` it is decoded twice, and the views show the face of one person, the largest
    and longest, in the frames where it is. With ``form`` they are made on its device. Raises
    BadVideoError if the video cannot be read, has no face, or if its length differs from its
    annotation.
    """
    rules = [view_rule(seed, video.id, view, frames, names) for view in views]
    maker = HostViews(rules, pixels) if form is None else DeviceViews(rules, pixels, form)
    if cropping is None:
        found = read(video.path, maker.choose, maker.take)
        first, length = 0, found.frames
    else:
        found, (first, length) = _read_face(video.path, read, cropping, maker)
    if video.frame_labels is not None and len(video.frame_labels) != found.frames:
        raise BadVideoError(
            f"decoded {found.frames} frames, its annotation describes {len(video.frame_labels)}"
        )
    made = maker.finish()
    return DecodedViews(
        made,
        first + maker.frame_index_VT,
        found,
        length,
        maker.upload_seconds,
        maker.views_seconds,
    )


def _read_face(
    path: Path, read: Callable[..., Found], cropping: Cropping, maker: "HostViews | DeviceViews"
) -> tuple[Found, tuple[int, int]]:
    """Give ``maker`` the crops of the main person as its frames; returns where they are, too."""
    people = find_people(path, read)
    crop = Crop(people.main, cropping)
    first, length = people.main.span
    found = read(
        path,
        lambda _: {first + index for index in maker.choose(length)},
        lambda index, image: maker.take(index - first, crop(index, image)),
    )
    people.check_same(found)
    return replace(found, flags=(*found.flags, *people.main_flags)), (first, length)


class _Views:
    """Collects the views of one video while it is decoded."""

    def __init__(self, rules: Sequence[ViewRule], pixels: Preprocessing) -> None:
        self._rules, self._pixels = rules, pixels
        self.frame_index_VT = np.zeros((len(rules), len(rules[0].moments)), np.int32)
        self.upload_seconds = self.views_seconds = 0.0
        self._places: dict[int, list[int]] = {}  # of each frame, among those of all views in turn

    def choose(self, length: int) -> Collection[int]:
        """The frames, of a video of ``length`` frames, that any view shows."""
        self.frame_index_VT[:] = [rule.choose(length) for rule in self._rules]
        self._places = {}
        for place, index in enumerate(self.frame_index_VT.flatten().tolist()):
            self._places.setdefault(index, []).append(place)
        return self._places


class HostViews(_Views):
    """Makes them on the CPU, frame by frame; keeps no large frame at its full size."""

    def __init__(self, rules: Sequence[ViewRule], pixels: Preprocessing) -> None:
        super().__init__(rules, pixels)
        size = pixels.size_px
        self._made_PSS3 = np.empty((self.frame_index_VT.size, size, size, 3), np.uint8)
        self._left: set[int] = set()
        self._waiting: dict[int, NDArray[np.uint8]] = {}
        self._warps: dict[tuple[int, tuple[int, int]], Warp] = {}
        self._warper = Warper()

    def choose(self, length: int) -> Collection[int]:
        """As above; forgets what was taken before."""
        chosen = super().choose(length)
        self._left, self._waiting = set(chosen), {}
        return chosen

    def take(self, index: int, image: NDArray[np.uint8]) -> None:
        """Make of frame ``index``, uint8 [height, width, 3], those of the views that show it."""
        started = time.perf_counter()
        image = np.require(image, requirements=["C", "W"])
        self._warper.take(image)
        for view, (first, *others) in self._places_by_view(index).items():
            if not self._make(view, image, self._made_PSS3[first]):
                self._waiting[index] = image
                continue
            for other in others:
                self._made_PSS3[other] = self._made_PSS3[first]
        if image.nbytes > LITTLE_BYTES:
            self._fit_waiting()
        self._left.discard(index)
        self.views_seconds += time.perf_counter() - started

    def finish(self) -> torch.Tensor:
        """The views, uint8 [view, frame, channel, height, width]; the channels are together."""
        started = time.perf_counter()
        self._fit_waiting()
        self.views_seconds += time.perf_counter() - started
        if self._left or not self._places:
            raise KeyError("a frame that was chosen was not decoded")
        made = torch.from_numpy(self._made_PSS3).permute(0, 3, 1, 2)
        return made.unflatten(0, self.frame_index_VT.shape)

    def _make(self, view: int, image: NDArray[np.uint8], out_SS3: NDArray[np.uint8]) -> bool:
        """Write the frame as the view shows it; False if it has to be fitted, later."""
        augmentation = self._rules[view].augmentation
        if augmentation is None:
            if fits := image.shape == out_SS3.shape:
                out_SS3[:] = image
            return fits
        shape = (image.shape[0], image.shape[1])
        if (warp := self._warps.get((view, shape))) is None:
            warp = self._warps[view, shape] = Warp(*shape, self._pixels.size_px, augmentation)
        self._warper.show(warp, out_SS3)
        return True

    def _places_by_view(self, index: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for place in self._places[index]:
            found.setdefault(place // self.frame_index_VT.shape[1], []).append(place)
        return found

    def _fit_waiting(self) -> None:
        """Make those of the evaluation view, of all frames of one size at once."""
        waiting, self._waiting = self._waiting, {}
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in waiting.items():
            by_shape.setdefault(image.shape, []).append(index)
        for indices in by_shape.values():
            frames = torch.from_numpy(np.stack([waiting[index] for index in indices]))
            fitted = fit_for_evaluation(frames.permute(0, 3, 1, 2), self._pixels)
            for index, fitted_SS3 in zip(indices, fitted.permute(0, 2, 3, 1).numpy(), strict=True):
                for view, places in self._places_by_view(index).items():
                    if self._rules[view].augmentation is None:
                        self._made_PSS3[places] = fitted_SS3


class DeviceViews(_Views):
    """Makes them on a device; frames wait for their upload until there are enough."""

    def __init__(self, rules: Sequence[ViewRule], pixels: Preprocessing, form: PixelFormat) -> None:
        super().__init__(rules, pixels)
        self._form = form
        self._waiting: dict[int, NDArray[np.uint8]] = {}
        self._made = to_be_made(self.frame_index_VT.size, pixels.size_px, form)

    def choose(self, length: int) -> Collection[int]:
        """As above; forgets what was taken before."""
        self._waiting = {}
        return super().choose(length)

    def take(self, index: int, image: NDArray[np.uint8]) -> None:
        """Keep frame ``index``, uint8 [height, width, 3], until it is uploaded."""
        self._waiting[index] = image
        if _bytes_of(self._waiting) >= WAITING_BYTES:
            self._upload()

    def finish(self) -> torch.Tensor:
        """The views, [view, frame, channel, height, width]; the channels are together."""
        self._upload()
        self.upload_seconds, self.views_seconds = (
            self._made.upload_seconds,
            self._made.views_seconds,
        )
        return self._made.pixels_NCHW.unflatten(0, self.frame_index_VT.shape)

    def _upload(self) -> None:
        frames = self.frame_index_VT.shape[1]
        shown = [
            Shown(place, number, self._rules[place // frames].augmentation)
            for number, index in enumerate(self._waiting)
            for place in self._places[index]
        ]
        if shown:
            images = list(self._waiting.values())
            make_on_device(images, shown, self._pixels, self._form, self._made)
        self._waiting = {}


def fit_for_evaluation(image_CHW: torch.Tensor, pixels: Preprocessing) -> torch.Tensor:
    """Resize and crop to [..., channel, size, size] as open_clip's own preprocessing does."""
    size = pixels.size_px
    mode = InterpolationMode(pixels.interpolation)
    shape = [size, size] if pixels.resize == "squash" else [size]
    resized = F.resize(image_CHW, shape, mode, antialias=True)
    out: torch.Tensor = F.center_crop(resized, [size, size])
    return out


class Pictures:
    """Frames of any videos, or what ``crop`` cuts out of one's, as an encoder sees them.

    They are uint8 [channel, size, size], as for evaluation, where the encoder is.
    """

    def __init__(
        self, pixels: Preprocessing, form: PixelFormat | None, crop: Crop | None = None
    ) -> None:
        self._pixels, self._crop = pixels, crop
        self._form = None if form is None else form.unchanged()
        self._waiting: dict[int, NDArray[np.uint8]] = {}

    def add(self, index: int, image: NDArray[np.uint8]) -> dict[int, torch.Tensor]:
        """Add a frame, [height, width, 3]; returns the pictures that are ready, by index."""
        if self._crop is not None:
            image = self._crop(index, image)
        if self._form is None:
            image = np.require(image, requirements=["C", "W"])
            return {
                index: fit_for_evaluation(torch.from_numpy(image).permute(2, 0, 1), self._pixels)
            }
        self._waiting[index] = image
        few = len(self._waiting) < WAITING_PICTURES
        return {} if few and _bytes_of(self._waiting) < WAITING_BYTES else self.rest()

    def rest(self) -> dict[int, torch.Tensor]:
        """The pictures of the frames that wait for their upload."""
        if self._form is None or not self._waiting:
            return {}
        waiting, self._waiting = self._waiting, {}
        made = to_be_made(len(waiting), self._pixels.size_px, self._form)
        shown = [Shown(number, number, None) for number in range(len(waiting))]
        make_on_device(list(waiting.values()), shown, self._pixels, self._form, made)
        return dict(zip(waiting, made.pixels_NCHW, strict=True))


def _bytes_of(frames: Mapping[int, NDArray[np.uint8]]) -> int:
    return sum(frame.nbytes for frame in frames.values())
