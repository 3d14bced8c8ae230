"""Augmented views: one map of places and one of colours, against a slow definition in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.video.augmentation import Augmentation, ViewNames, crop_box, view_rule
from pipeline.video.warp import Warp

NAME = "x"
GREY = (0.299, 0.587, 0.114)
PLAIN = Augmentation(1.0, 1.0, 0.0, 0.0, 0.0, False, 1.0, 1.0, 1.0)


def definition(frame_HWC: NDArray[np.uint8], a: Augmentation, size: int) -> NDArray[np.float64]:
    """Rule 2, pixel by pixel: [size, size, 3], not yet rounded."""
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
            shown[i, j] = sample(reduced, np.rint(32 * y) / 32, np.rint(32 * x) / 32)
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
            means[i, j] = np.rint(np.mean(block, axis=0))
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


@pytest.mark.parametrize(
    ("shape", "size"),
    [((40, 50), 32), ((97, 40), 33), ((20, 31), 32), ((150, 131), 32), ((1, 7), 5), ((64, 3), 17)],
)
@pytest.mark.parametrize(
    ("view", "rule"), [(1, "standard"), (2, "standard"), (3, "standard"), (4, "dfer-clip")]
)
def test_a_view_is_its_definition(shape: tuple[int, int], size: int, view: int, rule: str) -> None:
    augmentation = view_rule(0, NAME, view, 16, ViewNames(augmentation=rule)).augmentation
    assert augmentation is not None
    frame = np.random.default_rng(view).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = definition(frame, augmentation, size)
    shown = Warp(*shape, size, augmentation)(frame)
    # The library rounds once before the colours and once after, the definition never; and halves
    # of two different pixels may be rounded differently by the means of blocks.
    assert np.abs(shown - expected).max() <= 2
    assert np.abs(shown - expected).mean() <= 0.6


def test_rotations_flips_and_borders_occur_in_those_views() -> None:
    found = [view_rule(0, NAME, view, 16).augmentation for view in (1, 2, 3)]
    assert {a.flip for a in found if a} == {True, False}
    assert min(abs(a.angle_degrees) for a in found if a) > 1


def test_without_augmentation_a_frame_is_itself() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Warp(24, 24, 24, PLAIN)(frame), frame)


def test_large_frames_are_averaged_instead_of_skipping_pixels() -> None:
    """A fine checkerboard becomes grey; picking pixels would keep black and white."""
    board = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)
    shown = Warp(256, 256, 32, PLAIN)(np.repeat(board[:, :, None], 3, 2).astype(np.uint8))
    assert np.abs(shown.astype(int) - 128).max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.text(), st.integers(1, 9))
def test_any_size_of_frame_makes_a_view(
    height: int, width: int, size: int, name: str, view: int
) -> None:
    augmentation = view_rule(0, name, view, 16).augmentation
    assert augmentation is not None
    frame = np.full((height, width, 3), 200, np.uint8)
    shown = Warp(height, width, size, augmentation)(frame)
    assert shown.shape == (size, size, 3)
