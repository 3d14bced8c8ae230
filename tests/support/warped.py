"""Rule 2 of augmented views, pixel by pixel in float64: slow, and independent of what is tested."""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.video.augmentation import Augmentation, crop_box

GREY = (0.299, 0.587, 0.114)


def definition(frame_HWC: NDArray[np.uint8], a: Augmentation, size: int) -> NDArray[np.float64]:
    """The frame as the view shows it, [size, size, 3], before its last rounding."""
    top, left, height, width = crop_box(frame_HWC.shape[0], frame_HWC.shape[1], a)
    down, across = max(1, round(height / size)), max(1, round(width / size))
    reduced = reduce(frame_HWC, down, across)
    shown = np.zeros((size, size, 3))
    angle = math.radians(a.angle_degrees)
    for i in range(size):
        for j in range(size):
            right = (size - j - 0.5 if a.flip else j + 0.5) - size / 2
            below = i + 0.5 - size / 2
            x = math.cos(angle) * right - math.sin(angle) * below + size / 2
            y = math.sin(angle) * right + math.cos(angle) * below + size / 2
            x = (left + x * width / size) / across - 0.5
            y = (top + y * height / size) / down - 0.5
            level = sample(reduced, np.rint(32 * y) / 32, np.rint(32 * x) / 32)
            shown[i, j] = np.floor(level + 0.5)
    mean_grey = np.mean([np.dot(GREY, pixel) for row in shown for pixel in row])
    coloured = np.empty_like(shown)
    for i in range(size):
        for j in range(size):
            bright = a.brightness * shown[i, j]
            contrasted = a.contrast * bright + (1 - a.contrast) * a.brightness * mean_grey
            coloured[i, j] = a.saturation * contrasted + (1 - a.saturation) * np.dot(
                GREY, contrasted
            )
    return np.clip(coloured, 0, 255)


def reduce(frame_HWC: NDArray[np.uint8], down: int, across: int) -> NDArray[np.float64]:
    height, width = frame_HWC.shape[:2]
    rows, columns = math.ceil(height / down), math.ceil(width / across)
    means = np.zeros((rows, columns, 3))
    for i in range(rows):
        for j in range(columns):
            block = [
                frame_HWC[min(y, height - 1), min(x, width - 1)].astype(float)
                for y in range(i * down, (i + 1) * down)
                for x in range(j * across, (j + 1) * across)
            ]
            mean = np.mean(block, axis=0)
            means[i, j] = np.floor(mean + 0.5) if down == across == 2 else np.rint(mean)
    return means


def sample(image_HWC: NDArray[np.float64], y: float, x: float) -> NDArray[np.float64]:
    """Linear between four pixels; black outside."""
    height, width = image_HWC.shape[:2]
    value = np.zeros(3)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * image_HWC[row, column]
    return value
