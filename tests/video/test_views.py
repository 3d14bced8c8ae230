"""Views: pure functions of (seed, video id, view), and view 0 as open_clip sees it."""

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cache.identity import Preprocessing
from pipeline.video.augmentation import STANDARD, ViewNames, crop_box, view_rule
from pipeline.video.sampling import at_moments_of_whole_segments
from pipeline.video.views import HostViews, fit_for_evaluation
from support.sources import pictures

PIXELS = Preprocessing(
    size_px=32, resize="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
)


def views_of(
    frames: np.ndarray,
    views: tuple[int, ...],
    video_id: str = "a",
    seed: int = 0,
    names: ViewNames = STANDARD,
) -> tuple[torch.Tensor, np.ndarray]:
    maker = HostViews([view_rule(seed, video_id, view, 16, names) for view in views], PIXELS)
    wanted = maker.choose(len(frames))
    for i, frame in enumerate(frames):
        if i in wanted:
            maker.take(i, frame)
    return maker.finish(), maker.frame_index_VT


@pytest.mark.parametrize("shape", [(48, 64), (97, 40), (32, 32), (20, 31)])
def test_view_0_equals_open_clips_own_preprocessing(shape: tuple[int, int]) -> None:
    # Away from black and white, where Pillow's order of the two passes shows after clipping.
    frame = np.random.default_rng(0).integers(80, 176, (*shape, 3), dtype=np.uint8)
    theirs = open_clip.image_transform(
        32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"
    )(Image.fromarray(frame))
    ours = fit_for_evaluation(torch.from_numpy(frame).permute(2, 0, 1), PIXELS)
    error = (ours - theirs * 255).abs()
    assert error.max() <= 1.01


def test_views_do_not_depend_on_which_others_are_made() -> None:
    frames = pictures(30)
    together, index = views_of(frames, (0, 1, 2, 3))
    for view in range(4):
        alone, its_index = views_of(frames, (view,))
        assert torch.equal(alone[0], together[view])
        np.testing.assert_array_equal(its_index[0], index[view])


def test_views_differ_by_seed_video_and_view() -> None:
    frames = pictures(16)
    kinds = [views_of(frames, (view,), name, seed)[0] for view, name, seed in VARIANTS]
    assert len({kind.numpy().tobytes() for kind in kinds}) == len(VARIANTS)
    # View 0 has nothing to draw.
    assert torch.equal(views_of(frames, (0,), "a", 0)[0], views_of(frames, (0,), "b", 1)[0])


VARIANTS = [(0, "a", 0), (1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]


def test_all_frames_of_a_view_get_the_same_augmentation() -> None:
    still = np.repeat(pictures(1), 16, axis=0)
    views, _ = views_of(still, (1, 2))
    for view in views:
        assert (view == view[0]).all()
    assert not torch.equal(views[0, 0], views[1, 0])


def test_short_video_repeats_its_last_frame_in_every_view() -> None:
    views, index = views_of(pictures(3), (0, 1))
    assert index.tolist() == [[0, 1] + [2] * 14] * 2
    assert (views[:, 2:] == views[:, 2:3]).all()
    assert not torch.equal(views[1, 0], views[1, 1])


def test_parameters_of_a_view_are_literals_that_must_not_drift() -> None:
    rule = view_rule(0, "video 1", 1, 4)
    assert rule.augmentation is not None
    np.testing.assert_allclose(rule.moments, MOMENTS, atol=1e-6)
    np.testing.assert_allclose(rule.augmentation.angle_degrees, ANGLE, atol=1e-6)


MOMENTS = [0.5863445, 0.9622962, 0.6843152, 0.6463491]
ANGLE = 0.3807653


@given(st.integers(1, 3000), st.integers(1, 3000), st.text(), st.integers(1, 50))
def test_crop_lies_inside_the_frame(height: int, width: int, name: str, view: int) -> None:
    augmentation = view_rule(0, name, view, 16).augmentation
    assert augmentation is not None
    top, left, crop_height, crop_width = crop_box(height, width, augmentation)
    assert 0 <= top <= top + crop_height <= height
    assert 0 <= left <= left + crop_width <= width
    assert crop_height >= 1
    assert crop_width >= 1


@given(st.integers(1, 200), st.lists(st.floats(0, 0.999), min_size=1, max_size=32))
def test_whole_segments_show_one_frame_of_each_and_never_the_rest(
    length: int, moments: list[float]
) -> None:
    shown = at_moments_of_whole_segments(length, np.array(moments)).tolist()
    frames, size = [*range(length)], length // len(moments)
    if length < len(moments):
        assert shown == frames + [frames[-1]] * (len(moments) - length)
        return
    segments = [frames[n * size : (n + 1) * size] for n in range(len(moments))]
    assert shown == [own[int(m * size)] for own, m in zip(segments, moments, strict=True)]


def test_dfer_clip_shows_no_tail_of_a_video_of_16_to_31_frames_and_our_segments_do() -> None:
    def last(length: int, names: ViewNames) -> int:
        rules = [view_rule(0, "a", view, 16, names) for view in range(1, 40)]
        return max(int(rule.choose(length)[-1]) for rule in rules)

    dfer_clip = ViewNames(sampling="dfer-clip")
    assert [last(n, dfer_clip) for n in (1, 5, 16, 20, 31, 32, 40)] == [0, 4, 15, 15, 15, 31, 31]
    assert [last(n, STANDARD) for n in (1, 5, 16, 20, 31, 32, 40)] == [0, 4, 15, 19, 30, 31, 39]


def test_dfer_clip_crops_and_flips_and_changes_no_colour() -> None:
    names = ViewNames(augmentation="dfer-clip")
    found = [view_rule(0, "a", view, 16, names).augmentation for view in range(1, 400)]
    areas = [own.area for own in found if own is not None]
    assert 0.08 <= min(areas) < 0.1 < 0.98 < max(areas) <= 1
    colours = {(o.brightness, o.contrast, o.saturation, o.angle_degrees) for o in found if o}
    assert colours == {(1, 1, 1, 0)}
    assert {own.flip for own in found if own} == {True, False}
    # Two greys, side by side, stay as they are inside of a view, and its frames are alike.
    halves = np.zeros((16, 64, 64, 3), np.uint8)
    halves[:, :, :32], halves[:, :, 32:] = 50, 200
    views, _ = views_of(halves, tuple(range(1, 40)), names=names)
    inside = views[..., 1:-1, 1:-1]
    assert [int(inside.min()), int(inside.max())] == [50, 200]
    assert (views == views[:, :1]).all()


def test_named_rules_change_training_views_only() -> None:
    frames = pictures(20)
    names = ViewNames("dfer-clip", "dfer-clip")
    (ours, our_index), (theirs, index) = (
        views_of(frames, (0, 1), names=n) for n in (STANDARD, names)
    )
    assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[1], theirs[1])
    np.testing.assert_array_equal(our_index[0], index[0])
    assert index[1].max() < 16
