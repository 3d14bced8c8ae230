"""uint8 frames of any sizes in one buffer -> the pixels of views, normalised for the encoder.

``warp`` makes those of rule 2 (pipeline/video/warp.py), by the integers that OpenCV computes with;
``resize`` makes those of evaluation views. Their whole grey levels are then normalised.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.kernels import Impl, runs_triton

STEPS = 32  # per pixel
PARTS = 1024  # of one, in which the colours' matrix is rounded
_READS = (torch.uint8,)


class PixelFormat(NamedTuple):
    """What becomes of grey level x: x * scale - offset, in ``dtype``; uint8 keeps x."""

    scale_C: Tensor  # float32
    offset_C: Tensor
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where views are made."""
        return self.scale_C.device

    def to(self, device: torch.device) -> "PixelFormat":
        """The same on another device."""
        return PixelFormat(self.scale_C.to(device), self.offset_C.to(device), self.dtype)

    def unchanged(self) -> "PixelFormat":
        """The grey levels themselves, on the same device."""
        one, zero = torch.ones_like(self.scale_C), torch.zeros_like(self.offset_C)
        return PixelFormat(one, zero, torch.uint8)


class Warps(NamedTuple):
    """N frames of views: where the source is, and its maps of places and of colours.

    ``sources``: first byte in the buffer, height, width, and how many rows and columns are averaged
    first (int64). ``places``: (column, row, 1) of a pixel of the view -> (column, row) of the
    reduced frame (float64). ``matrix``: of a pixel's colours, in parts (int32). ``grey``: what red,
    green and blue of the mean pixel add to all colours (float64).
    """

    sources_N5: Tensor
    places_N23: Tensor
    matrix_N33: Tensor
    grey_N3: Tensor


class Taps(NamedTuple):
    """Pixel s of a line is the sum over k of weight[s, k] * source[start[s] + k]."""

    start_S: Tensor  # int32
    weight_SK: Tensor  # float32

    def to(self, device: torch.device) -> "Taps":
        """The same on another device."""
        return Taps(self.start_S.to(device), self.weight_SK.to(device))


def warp(buffer: Tensor, warps: Warps, size: int, form: PixelFormat, impl: Impl = "auto") -> Tensor:
    """Pixels [N, C, size, size] in channels-last order."""
    if runs_triton(impl, buffer, _READS):
        from pipeline.kernels.pixels_triton import warped

        return warped(buffer, warps, size, STEPS, PARTS, form)
    frames = zip(warps.sources_N5.tolist(), warps.places_N23.tolist(), strict=True)
    levels_NHWC = torch.stack([_warped(buffer, *frame, size) for frame in frames])
    mean_NC = levels_NHWC.double().mean((1, 2))
    grey_N = (warps.grey_N3 * mean_NC).sum(1).float()
    added_N = ((grey_N + 0.5) * PARTS).round().int()
    products_NHWCC = levels_NHWC[..., None, :] * warps.matrix_N33[:, None, None]
    coloured_NHWC = (products_NHWCC.sum(-1) + added_N[:, None, None, None]) // PARTS
    return _finished(coloured_NHWC.float(), form)


def resize(
    buffer: Tensor,
    offset_N: Tensor,
    shape: tuple[int, int],
    taps: tuple[Taps, Taps],
    form: PixelFormat,
    impl: Impl = "auto",
) -> Tensor:
    """Pixels [N, C, rows, columns] of frames of one shape, in channels-last order.

    ``taps`` are those of rows and columns. Each row is resized first, and rounded, as by Pillow.
    """
    if runs_triton(impl, buffer, _READS):
        from pipeline.kernels.pixels_triton import resized

        return resized(buffer, offset_N, shape, taps, form)
    frames_NHWC = torch.stack([_frame(buffer, offset, *shape) for offset in offset_N.tolist()])
    down_YH, across_XW = (_matrix(t, length) for t, length in zip(taps, shape, strict=True))
    rows_NHXC = _levels(torch.einsum("nhwc,xw->nhxc", frames_NHWC.float(), across_XW))
    return _finished(torch.einsum("nhxc,yh->nyxc", rows_NHXC, down_YH), form)


def _frame(buffer: Tensor, offset: int, height: int, width: int) -> Tensor:
    return buffer[offset : offset + height * width * 3].view(height, width, 3)


def _warped(buffer: Tensor, source: list[int], places: list[list[float]], size: int) -> Tensor:
    """Int32 [size, size, C], before the colours."""
    offset, height, width, down, across = source
    reduced_HWC = _reduced(_frame(buffer, offset, height, width), down, across)
    grid = torch.arange(size, dtype=torch.float64, device=buffer.device)
    x_SS, y_SS = (
        (STEPS * (right * grid + below * grid[:, None] + start)).round().long()
        for right, below, start in places
    )
    sum_SSC = reduced_HWC.new_zeros(size, size, 3)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = y_SS // STEPS + i, x_SS // STEPS + j
        part_SS = (y_SS % STEPS - (1 - i) * STEPS) * (x_SS % STEPS - (1 - j) * STEPS)
        rows, columns = reduced_HWC.shape[:2]
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        taken = reduced_HWC[row.clamp(0, rows - 1), column.clamp(0, columns - 1)]
        sum_SSC += (part_SS.abs() * inside)[..., None] * taken
    return ((sum_SSC + STEPS**2 // 2) // STEPS**2).int()


def _reduced(frame_HWC: Tensor, down: int, across: int) -> Tensor:
    """Means of blocks, whose halves go to the even level, of 2 x 2 pixels up."""
    height, width = frame_HWC.shape[:2]
    rows, columns = -(-height // down), -(-width // across)
    row = torch.arange(rows * down, device=frame_HWC.device).clamp(max=height - 1)
    column = torch.arange(columns * across, device=frame_HWC.device).clamp(max=width - 1)
    blocks = frame_HWC[row][:, column].long().view(rows, down, columns, across, 3)
    share = torch.tensor(1 / (down * across), device=frame_HWC.device)
    nudge = 0.125 if (down, across) == (2, 2) else 0.0
    return (blocks.sum((1, 3)) * share + nudge).round().long()


def _matrix(taps: Taps, length: int) -> Tensor:
    """The weights as [pixel, source]."""
    source_SK = taps.start_S[:, None] + torch.arange(taps.weight_SK.shape[1]).to(taps.start_S)
    matrix_SL = taps.weight_SK.new_zeros(len(source_SK), length)
    return matrix_SL.scatter_add_(1, source_SK.clamp(max=length - 1).long(), taps.weight_SK)


def _levels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255)


def _finished(values_NHWC: Tensor, form: PixelFormat) -> Tensor:
    levels_NHWC = _levels(values_NHWC) * form.scale_C - form.offset_C
    return levels_NHWC.to(form.dtype).permute(0, 3, 1, 2)
