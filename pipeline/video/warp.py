"""A frame and the augmentation of its view -> S x S pixels: one map of places, one of colours.

Rule 2 of augmented views. Pixel (i, j) of a view shows the place in the frame that crop, resize,
rotation and flip together put there; S is the view's size.

1. Where the crop is larger than the view, its frame is reduced first: means of blocks of k_y x k_x
   pixels, k = round(crop / S), at least 1, rounded to whole grey levels (halves to the even one, of
   2 x 2 pixels up); at the lower and right border, blocks are completed by repeating the last row
   and column.
2. Places are rounded to 1/32 of a (reduced) pixel, and the colour there is interpolated linearly
   between the four pixels around it and rounded; outside the frame is black.
3. With v a pixel, g the frame's mean grey after step 2 and w the weights of grey, its colour is
   b c (s I + (1 - s) 1 w') v + b (1 - c) g for brightness b, contrast c, saturation s, rounded.

OpenCV computes this here, and pipeline/kernels/pixels.py on GPUs, both with a matrix of whole
1/1024ths: one grey level from the rule at most.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from pipeline.kernels.pixels import STEPS
from pipeline.video.augmentation import Augmentation, crop_box

GREY = np.array([0.299, 0.587, 0.114])  # of RGB, ITU-R BT.601
_BITS = STEPS.bit_length() - 1

# Threads belong to the videos, not to the pixels of one.
cv2.setNumThreads(1)


@dataclass(frozen=True)
class Warp:
    """How frames of one size become those of a view."""

    height: int
    width: int
    size: int
    augmentation: Augmentation

    @cached_property
    def reduction(self) -> tuple[int, int]:
        """k_y and k_x: how many rows and columns are averaged before sampling."""
        _, _, height, width = crop_box(self.height, self.width, self.augmentation)
        return max(1, round(height / self.size)), max(1, round(width / self.size))

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """[2, 3]: (column, row, 1) of a view's pixel -> (column, row) in the reduced frame."""
        a, size = self.augmentation, self.size
        top, left, height, width = crop_box(self.height, self.width, a)
        down, across = self.reduction
        angle, centre = math.radians(a.angle_degrees), size / 2
        cos, sin = math.cos(angle), math.sin(angle)
        centred = np.array([[-1.0 if a.flip else 1.0, 0, 0], [0, 1, 0], [0, 0, 1]]) @ _shift(
            0.5 - centre
        )
        turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ centred
        cropped = np.diag([width / size, height / size, 1]) @ _shift(centre) @ turned
        placed = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]]) @ cropped
        reduced = np.diag([1 / across, 1 / down, 1]) @ placed
        places: NDArray[np.float64] = (_shift(-0.5) @ reduced)[:2]
        return places

    @cached_property
    def colours(self) -> tuple[NDArray[np.float64], float]:
        """([3, 3]: the matrix of a pixel's colours, the share of mean grey that is added)."""
        a = self.augmentation
        mixed = a.saturation * np.eye(3) + (1 - a.saturation) * np.outer(np.ones(3), GREY)
        return a.brightness * a.contrast * mixed, a.brightness * (1 - a.contrast)

    @cached_property
    def map(self) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Whole pixels [S, S, 2] and 1/32ths [S, S] of all places, as cv2.remap takes them."""
        size, grid = self.size, np.arange(self.size, dtype=np.float64)
        wholes, parts = np.empty((size, size, 2), np.int16), np.zeros((size, size), np.uint16)
        for axis, (across, down, start) in enumerate(self.places):
            place_SS = np.add.outer(down * grid, across * grid)
            place_SS += start
            place_SS *= STEPS
            steps_SS = np.rint(place_SS, out=place_SS).astype(np.int32)
            np.right_shift(steps_SS, _BITS, out=wholes[:, :, axis], casting="unsafe")
            steps_SS &= STEPS - 1
            parts += (steps_SS << (axis * _BITS)).astype(np.uint16)
        return wholes, parts

    def __call__(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame as this view shows it, uint8 [S, S, 3]."""
        warper, shown_SS3 = Warper(), np.empty((self.size, self.size, 3), np.uint8)
        warper.take(frame_HWC)
        warper.show(self, shown_SS3)
        return shown_SS3


class Warper:
    """Shows frames in views, one frame after the other.

    What the views of a frame share is computed once.  Results between the steps are written where
    those of the frame before were: fresh memory would cost as much as the steps.
    """

    def __init__(self) -> None:
        self._frame_HWC = np.empty((0, 0, 3), np.uint8)
        self._reduced: dict[tuple[int, int], tuple[MatLike | None, MatLike]] = {}
        self._of_this_frame: set[tuple[int, int]] = set()
        self._warped_SS4: MatLike | None = None
        self._warped_SS3: MatLike | None = None
        self._colours = np.empty((3, 4))

    def take(self, frame_HWC: NDArray[np.uint8]) -> None:
        """The frame to be shown from now on, uint8 [height, width, 3]."""
        self._frame_HWC = frame_HWC
        self._of_this_frame.clear()

    def show(self, warp: Warp, out_SS3: NDArray[np.uint8]) -> None:
        """Write the frame as a view shows it to ``out_SS3``."""
        reduced_HW4 = self._reduce(warp.reduction)
        warped_SS4 = cv2.remap(reduced_HW4, *warp.map, cv2.INTER_LINEAR, dst=self._warped_SS4)
        warped_SS3 = cv2.cvtColor(warped_SS4, cv2.COLOR_RGBA2RGB, dst=self._warped_SS3)
        self._colours[:, :3], share = warp.colours
        self._colours[:, 3] = share * float(GREY @ cv2.mean(warped_SS4)[:3])
        cv2.transform(warped_SS3, self._colours, dst=out_SS3)
        self._warped_SS4, self._warped_SS3 = warped_SS4, warped_SS3

    def _reduce(self, reduction: tuple[int, int]) -> MatLike:
        """The reduced frame with a fourth channel: OpenCV warps four faster than three."""
        means_HWC, reduced_HW4 = self._reduced.get(reduction, (None, None))
        if reduced_HW4 is None or reduction not in self._of_this_frame:
            means_HWC = _means(self._frame_HWC, reduction, means_HWC)
            reduced_HW4 = cv2.cvtColor(means_HWC, cv2.COLOR_RGB2RGBA, dst=reduced_HW4)
            self._reduced[reduction] = means_HWC, reduced_HW4
            self._of_this_frame.add(reduction)
        return reduced_HW4


def _means(frame_HWC: MatLike, reduction: tuple[int, int], out_HWC: MatLike | None) -> MatLike:
    """Means of blocks, the last ones completed by the border; perhaps in ``out_HWC``."""
    down, across = reduction
    if reduction == (1, 1):
        return frame_HWC
    height, width = frame_HWC.shape[:2]
    more = (-height % down, -width % across)
    if any(more):
        frame_HWC = cv2.copyMakeBorder(frame_HWC, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
    size = (frame_HWC.shape[1] // across, frame_HWC.shape[0] // down)
    return cv2.resize(frame_HWC, size, dst=out_HWC, interpolation=cv2.INTER_AREA)


def _shift(by: float) -> NDArray[np.float64]:
    return np.array([[1, 0, by], [0, 1, by], [0, 0, 1]])
