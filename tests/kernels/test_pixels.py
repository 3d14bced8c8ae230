"""Views made on a device: the kernels, their definitions, and the rules that both follow."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.identity import Preprocessing
from pipeline.kernels import Impl
from pipeline.kernels.pixels import PixelFormat, Warps, resize, warp
from pipeline.video.augmentation import Augmentation, view_rule
from pipeline.video.on_device import packed, taps_of, warps_of
from pipeline.video.views import fit_for_evaluation
from pipeline.video.warp import Warp
from support.warped import definition

SIZE = 23  # more pixels than one program makes
DRAWN = [view_rule(0, "x", view, 16).augmentation for view in (1, 2)]
# Without a turn, places lie between two steps.
STILL = Augmentation(0.7, 1.2, 0.3, 1.0, 0.0, True, 1.3, 0.7, 1.3)
# Sizes of frames: of a view's, smaller, and so large that they are reduced down, across or both.
CASES = [
    ((23, 23), STILL),
    ((17, 26), DRAWN[0]),
    ((9, 14), DRAWN[1]),
    ((64, 29), DRAWN[0]),
    ((47, 58), DRAWN[1]),
    ((1, 7), STILL),
]
SHAPES = [shape for shape, _ in CASES]


def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


def levels(device: torch.device) -> PixelFormat:
    return PixelFormat(torch.ones(3), torch.zeros(3), torch.uint8).to(device)


def rules() -> list[Warp]:
    return [Warp(*shape, SIZE, augmentation) for shape, augmentation in CASES if augmentation]


def warped(impl: Impl, form: PixelFormat, count: int = len(CASES)) -> Tensor:
    """The first frames in their views, [N, C, size, size]."""
    buffer, offsets = packed(frames(), pinned=False)
    warps = warps_of(list(zip(offsets, rules(), strict=True))[:count])
    warps = Warps(*(part.to(form.device) for part in warps))
    return warp(buffer.to(form.device), warps, SIZE, form, impl)


def test_warp_gives_the_levels_of_its_definition_and_those_are_the_rules(
    device: torch.device,
) -> None:
    shown = warped("triton", levels(device))
    assert torch.equal(shown, warped("definition", levels(device)))
    expected = np.stack(
        [definition(f, r.augmentation, SIZE) for f, r in zip(frames(), rules(), strict=True)]
    )
    assert {(1, 1), (2, 1), (2, 2)} <= {rule.reduction for rule in rules()}
    error = np.abs(shown.permute(0, 2, 3, 1).cpu().numpy() - expected)
    assert error.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_are_normalised_in_the_precision_asked_for(
    dtype: torch.dtype, device: torch.device
) -> None:
    form = levels(device)
    form = form._replace(scale_C=form.scale_C / 50, offset_C=form.offset_C + 1.5, dtype=dtype)
    grey = warped("definition", levels(device), 1).float()
    made = warped("triton", form, 1)
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    # Triton's interpreter truncates to bfloat16 where a GPU rounds.
    rtol = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(made.float(), grey / 50 - 1.5, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("way", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_resize_is_the_preprocessing_but_for_its_rounding(
    interpolation: str, way: str, device: torch.device
) -> None:
    pixels = Preprocessing(
        size_px=SIZE, resize=way, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1)
    )
    form = levels(device)
    buffer, offsets = packed(frames(), pinned=False)
    for number, (shape, frame) in enumerate(zip(SHAPES, frames(), strict=True)):
        taps, start = taps_of(shape, pixels, device), torch.tensor([offsets[number]] * 2)
        shown = resize(buffer.to(device), start.to(device), shape, taps, form, "definition")
        theirs = fit_for_evaluation(torch.from_numpy(frame).permute(2, 0, 1), pixels)
        error = (shown.cpu().int() - theirs.int()).abs()
        # Pillow and torchvision have integer weights; both round twice.
        assert error.max() <= 2
        assert (error > 1).float().mean() < 1e-3
        if (interpolation, way, number) == ("bicubic", "shortest", 3):
            kernel = resize(buffer.to(device), start.to(device), shape, taps, form, "triton")
            assert (kernel.int() - shown.int()).abs().max() <= 1
