"""Augmented views: one map of places and one of colours, against a slow definition in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.video.augmentation import Augmentation, ViewNames, view_rule
from pipeline.video.warp import Warp
from support.warped import definition

NAME = "x"
PLAIN = Augmentation(1.0, 1.0, 0.0, 0.0, 0.0, False, 1.0, 1.0, 1.0)


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
    assert np.abs(shown - expected).max() <= 1  # its last rounding and that of its matrix


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
