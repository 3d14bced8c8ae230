"""Decoded frames, uploaded as they are -> the frames of views, made on the encoder's device.

Augmented views are those of warp.py; evaluation views are those of torchvision but for rounding.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cache.identity import Preprocessing
from pipeline.kernels.pixels import PARTS, PixelFormat, Taps, Warps, resize, warp
from pipeline.video.augmentation import Augmentation
from pipeline.video.warp import GREY, Warp

Shape = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """One frame of a view: its place there, which of the uploaded frames it shows, and how."""

    place: int
    frame: int
    augmentation: Augmentation | None


@dataclass
class Made:
    """Pixels [N, C, S, S] on the device, and the seconds that upload and computation took."""

    pixels_NCHW: torch.Tensor
    upload_seconds: float = 0.0
    views_seconds: float = 0.0


def to_be_made(count: int, size: int, form: PixelFormat) -> Made:
    """Memory for ``count`` frames of views."""
    with _on_stream(form.device):
        pixels_NHWC = torch.empty(count, size, size, 3, dtype=form.dtype, device=form.device)
    return Made(pixels_NHWC.permute(0, 3, 1, 2))


def make_on_device(
    frames: Sequence[NDArray[np.uint8]],
    shown: Sequence[Shown],
    pixels: Preprocessing,
    form: PixelFormat,
    made: Made,
) -> None:
    """Upload frames, uint8 [height, width, 3] of any sizes, once, and make what is shown of them.

    On a GPU this has a stream of its own, which it waits for. So ``made`` may be used in any
    stream; but it must be kept until that has done so.
    """
    joined, offsets = packed(frames, pinned=form.device.type == "cuda")
    shapes = [(frame.shape[0], frame.shape[1]) for frame in frames]
    with _on_stream(form.device):
        clock = _Clock(form.device)
        buffer = joined.to(form.device, non_blocking=True)
        clock.tick()
        _make(buffer, offsets, shapes, shown, pixels, form, made.pixels_NCHW)
        clock.tick()
        upload_seconds, views_seconds = clock.seconds()
    made.upload_seconds += upload_seconds
    made.views_seconds += views_seconds


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _on_stream(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.stream(_stream(device)) if device.type == "cuda" else nullcontext()


class _Clock:
    """When the present stream got where; on a CPU, work is done when it returns."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._ticks: list[Any] = []
        self.tick()

    def tick(self) -> None:
        """Note this moment of the work."""
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._ticks.append(event)
        else:
            self._ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each two ticks, once the work is done."""
        if self._is_cuda:
            self._ticks[-1].synchronize()
        pairs = itertools.pairwise(self._ticks)
        return [a.elapsed_time(b) / 1000 if self._is_cuda else b - a for a, b in pairs]


def packed(frames: Sequence[NDArray[np.uint8]], pinned: bool) -> tuple[torch.Tensor, list[int]]:
    """All frames one after the other, and where each begins."""
    sizes = [frame.size for frame in frames]
    ends = np.cumsum(sizes).tolist()
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pinned)
    offsets = [end - size for end, size in zip(ends, sizes, strict=True)]
    for frame, start, end in zip(frames, offsets, ends, strict=True):
        packed[start:end].numpy().reshape(frame.shape)[:] = frame
    return packed, offsets


def _make(
    buffer: torch.Tensor,
    offsets: list[int],
    shapes: list[Shape],
    shown: Sequence[Shown],
    pixels: Preprocessing,
    form: PixelFormat,
    out_NCHW: torch.Tensor,
) -> None:
    size, device = pixels.size_px, form.device
    augmented: dict[int, tuple[int, Warp]] = {}
    fitted: defaultdict[Shape, dict[int, int]] = defaultdict(dict)
    for one in shown:
        offset, shape = offsets[one.frame], shapes[one.frame]
        if one.augmentation is None:
            fitted[shape][one.place] = offset
        else:
            augmented[one.place] = offset, Warp(*shape, size, one.augmentation)
    if augmented:
        warps = Warps(*(part.to(device) for part in warps_of(list(augmented.values()))))
        out_NCHW[list(augmented)] = warp(buffer, warps, size, form)
    for shape, placed in fitted.items():
        taps = taps_of(shape, pixels, device)
        offset_N = torch.tensor(list(placed.values()), device=device)
        out_NCHW[list(placed)] = resize(buffer, offset_N, shape, taps, form)


def warps_of(augmented: Sequence[tuple[int, Warp]]) -> Warps:
    """The maps of frames that begin at these places of the buffer."""
    rules = [rule for _, rule in augmented]
    sources = [[offset, r.height, r.width, *r.reduction] for offset, r in augmented]
    matrices = np.stack([r.colours[0] for r in rules]).astype(np.float32)
    grey_N3 = np.outer([r.colours[1] for r in rules], GREY)
    return Warps(
        torch.tensor(sources),
        torch.from_numpy(np.stack([r.places for r in rules])),
        torch.from_numpy(np.rint(matrices * PARTS).astype(np.int32)),
        torch.from_numpy(grey_N3),
    )


@lru_cache
def taps_of(shape: Shape, pixels: Preprocessing, device: torch.device) -> tuple[Taps, Taps]:
    """Those of rows and columns: resized and cropped as by torchvision, with PyTorch's weights."""
    size = pixels.size_px
    resized = [size * length // min(shape) for length in shape]
    if pixels.resize == "squash":
        resized = [size, size]
    down, across = (
        _axis(length, to, round((to - size) / 2), pixels)
        for length, to in zip(shape, resized, strict=True)
    )
    return down.to(device), across.to(device)


def _axis(length: int, resized: int, first: int, pixels: Preprocessing) -> Taps:
    """How ``resized`` pixels are made of ``length``; of these, ``size_px`` from ``first`` on."""
    mode = pixels.interpolation
    lines_L11L = torch.eye(length)[:, None, None]
    antialias = mode != "nearest"
    weight_LS = F.interpolate(lines_L11L, (1, resized), mode=mode, antialias=antialias)[:, 0, 0]
    weight_SL = weight_LS.T[first : first + pixels.size_px]
    used_SL = weight_SL != 0
    start_S = used_SL.int().argmax(1)
    count = int((used_SL * torch.arange(1, length + 1)).amax(1).sub(start_S).amax())
    padded_SL = F.pad(weight_SL, (0, count))
    weight_SK = padded_SL.gather(1, start_S[:, None] + torch.arange(count))
    return Taps(start_S.int(), weight_SK)
