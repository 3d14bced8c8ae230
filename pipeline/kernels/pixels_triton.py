"""GPU kernels of ``warp`` and ``resize``, which pixels.py defines.

Nothing is added in an order that varies, so the same frames give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
Taps = tuple[Tensor, Tensor]
PixelFormat = tuple[Tensor, Tensor, torch.dtype]

# Adding and subtracting it leaves the nearest whole number, of two the even one, as rint does.
_ROUND_64 = tl.constexpr(1.5 * 2**52)
_ROUND_32 = tl.constexpr(1.5 * 2**23)


def warped(
    buffer: Tensor,
    warps: tuple[Tensor, Tensor, Tensor, Tensor],
    size: int,
    steps: int,
    parts: int,
    form: PixelFormat,
) -> Tensor:
    """Pixels [N, C, size, size]."""
    N, blocks = len(warps[0]), triton.cdiv(size * size, BLOCK)
    levels = buffer.new_empty(N, 3, size * size)
    sums = buffer.new_empty(N, blocks, 3, dtype=torch.int32)
    out = _empty(buffer, N, (size, size), form[2])
    sources, places, *colours = (part.contiguous() for part in warps)
    with torch.cuda.device_of(buffer):
        # A fused product and sum would move places that lie between two steps.
        _warp[N, blocks](
            *(buffer, sources, places, levels, sums, size, steps, BLOCK), enable_fp_fusion=False
        )
        _colour[N, blocks](
            *(levels, sums, *colours, *form[:2], out, *out.stride()),
            *(size, blocks, parts, triton.next_power_of_2(blocks), BLOCK),
        )
    return out


def resized(
    buffer: Tensor,
    offset_N: Tensor,
    shape: tuple[int, int],
    taps: tuple[Taps, Taps],
    form: PixelFormat,
) -> Tensor:
    """Pixels [N, C, rows, columns]."""
    rows, columns = (len(start) for start, _ in taps)
    out = _empty(buffer, len(offset_N), (rows, columns), form[2])
    down, across = ([part.contiguous() for part in axis] for axis in taps)
    lengths = *shape, down[1].shape[1], across[1].shape[1]
    with torch.cuda.device_of(buffer):
        _resize[len(offset_N), triton.cdiv(rows * columns, BLOCK)](
            *(buffer, offset_N.contiguous(), *down, *across, *form[:2], out, *out.stride()),
            *(*lengths, rows, columns, BLOCK),
        )
    return out


def _empty(buffer: Tensor, count: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return buffer.new_empty(count, *shape, 3, dtype=dtype).permute(0, 3, 1, 2)


@triton.jit
def _warp(
    buffer_ptr,
    sources_ptr,
    places_ptr,
    levels_ptr,
    sums_ptr,
    SIZE,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: the colours that BLOCK pixels of a frame have in its source, and their sums.
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = pixel < SIZE * SIZE
    sources_ptr += frame * 5
    height = tl.load(sources_ptr + 1).to(tl.int32)
    width = tl.load(sources_ptr + 2).to(tl.int32)
    down = tl.load(sources_ptr + 3).to(tl.int32)
    across = tl.load(sources_ptr + 4).to(tl.int32)
    buffer_ptr += tl.load(sources_ptr)
    x = _place(places_ptr + frame * 6, pixel, SIZE, STEPS)
    y = _place(places_ptr + frame * 6 + 3, pixel, SIZE, STEPS)
    # STEPS is a power of two, and places may be negative.
    below, right = y & (STEPS - 1), x & (STEPS - 1)
    y, x = (y - below) // STEPS, (x - right) // STEPS
    red = tl.zeros([BLOCK], tl.int32)
    green = tl.zeros([BLOCK], tl.int32)
    blue = tl.zeros([BLOCK], tl.int32)
    # Halves of a mean go to the even level, or up if it is of 2 x 2 pixels.
    share = tl.div_rn(1.0, (down * across).to(tl.float32))
    nudge = tl.where((down == 2) & (across == 2), 0.125, 0.0)
    for corner in tl.static_range(4):
        row = y + corner // 2
        column = x + corner % 2
        part = below if corner // 2 else STEPS - below
        part *= right if corner % 2 else STEPS - right
        inside = within & (row >= 0) & (row * down < height)
        inside = inside & (column >= 0) & (column * across < width)
        r = tl.zeros([BLOCK], tl.int32)
        g = tl.zeros([BLOCK], tl.int32)
        b = tl.zeros([BLOCK], tl.int32)
        for i in range(down):
            line = tl.minimum(row * down + i, height - 1).to(tl.int64) * width
            for j in range(across):
                source_ptr = buffer_ptr + (line + tl.minimum(column * across + j, width - 1)) * 3
                r += tl.load(source_ptr, inside, other=0).to(tl.int32)
                g += tl.load(source_ptr + 1, inside, other=0).to(tl.int32)
                b += tl.load(source_ptr + 2, inside, other=0).to(tl.int32)
        red += part * _whole(r * share + nudge).to(tl.int32)
        green += part * _whole(g * share + nudge).to(tl.int32)
        blue += part * _whole(b * share + nudge).to(tl.int32)
    levels_ptr += frame * 3 * SIZE * SIZE + pixel
    sums_ptr += (frame * tl.num_programs(1) + tl.program_id(1)) * 3
    _keep(levels_ptr, sums_ptr, red, within, STEPS)
    _keep(levels_ptr + SIZE * SIZE, sums_ptr + 1, green, within, STEPS)
    _keep(levels_ptr + 2 * SIZE * SIZE, sums_ptr + 2, blue, within, STEPS)


@triton.jit
def _place(place_ptr, pixel, SIZE, STEPS: tl.constexpr):
    # In whole steps.
    right = tl.load(place_ptr)
    below = tl.load(place_ptr + 1)
    start = tl.load(place_ptr + 2)
    place = right * (pixel % SIZE).to(tl.float64) + below * (pixel // SIZE).to(tl.float64) + start
    return ((place * STEPS + _ROUND_64) - _ROUND_64).to(tl.int32)


@triton.jit
def _keep(level_ptr, sum_ptr, parts, within, STEPS: tl.constexpr):
    level = (parts + STEPS * STEPS // 2) // (STEPS * STEPS)
    tl.store(level_ptr, level.to(tl.uint8), within)
    tl.store(sum_ptr, tl.sum(tl.where(within, level, 0), 0))


@triton.jit
def _colour(
    levels_ptr,
    sums_ptr,
    matrix_ptr,
    grey_ptr,
    scale_ptr,
    offset_ptr,
    out_ptr,
    stride_N,
    stride_C,
    stride_H,
    stride_W,
    SIZE,
    BLOCKS,
    PARTS: tl.constexpr,
    BLOCKS_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program: BLOCK pixels of a frame, coloured.
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = pixel < SIZE * SIZE
    levels_ptr += frame * 3 * SIZE * SIZE + pixel
    red = tl.load(levels_ptr, within, other=0).to(tl.int32)
    green = tl.load(levels_ptr + SIZE * SIZE, within, other=0).to(tl.int32)
    blue = tl.load(levels_ptr + 2 * SIZE * SIZE, within, other=0).to(tl.int32)
    sums_ptr += frame * BLOCKS * 3
    grey = _grey(sums_ptr, grey_ptr + frame * 3, BLOCKS, BLOCKS_TILE)
    grey += _grey(sums_ptr + 1, grey_ptr + frame * 3 + 1, BLOCKS, BLOCKS_TILE)
    grey += _grey(sums_ptr + 2, grey_ptr + frame * 3 + 2, BLOCKS, BLOCKS_TILE)
    added = _whole(((grey / (SIZE * SIZE)).to(tl.float32) + 0.5) * PARTS).to(tl.int32)
    out_ptr += frame * stride_N + pixel // SIZE * stride_H + pixel % SIZE * stride_W
    matrix_ptr += frame * 9
    for c in tl.static_range(3):
        value = tl.load(matrix_ptr + 3 * c) * red
        value += tl.load(matrix_ptr + 3 * c + 1) * green
        value += tl.load(matrix_ptr + 3 * c + 2) * blue + added
        level = (tl.maximum(value, 0) // PARTS).to(tl.float32)
        _finish(out_ptr + c * stride_C, level, scale_ptr + c, offset_ptr + c, within)


@triton.jit
def _grey(sums_ptr, weight_ptr, BLOCKS, BLOCKS_TILE: tl.constexpr):
    block = tl.arange(0, BLOCKS_TILE)
    total = tl.sum(tl.load(sums_ptr + block * 3, block < BLOCKS, other=0), 0)
    return tl.load(weight_ptr) * total.to(tl.float64)


@triton.jit
def _resize(
    buffer_ptr,
    offset_ptr,
    row_start_ptr,
    row_weight_ptr,
    column_start_ptr,
    column_weight_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    stride_N,
    stride_C,
    stride_H,
    stride_W,
    height,
    width,
    row_taps,
    column_taps,
    ROWS,
    COLUMNS,
    BLOCK: tl.constexpr,
):
    # One program: BLOCK pixels of a frame. Taps beyond the border have no weight.
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = pixel < ROWS * COLUMNS
    row, column = pixel // COLUMNS, pixel % COLUMNS
    buffer_ptr += tl.load(offset_ptr + frame)
    top = tl.load(row_start_ptr + row, within, other=0)
    left = tl.load(column_start_ptr + column, within, other=0)
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    for i in range(row_taps):
        line = tl.minimum(top + i, height - 1).to(tl.int64) * width
        r = tl.zeros([BLOCK], tl.float32)
        g = tl.zeros([BLOCK], tl.float32)
        b = tl.zeros([BLOCK], tl.float32)
        for j in range(column_taps):
            weight = tl.load(column_weight_ptr + column * column_taps + j, within, other=0.0)
            source_ptr = buffer_ptr + (line + tl.minimum(left + j, width - 1)) * 3
            r += weight * tl.load(source_ptr, within, other=0).to(tl.float32)
            g += weight * tl.load(source_ptr + 1, within, other=0).to(tl.float32)
            b += weight * tl.load(source_ptr + 2, within, other=0).to(tl.float32)
        weight = tl.load(row_weight_ptr + row * row_taps + i, within, other=0.0)
        red += weight * _level(r)
        green += weight * _level(g)
        blue += weight * _level(b)
    out_ptr += frame * stride_N + row * stride_H + column * stride_W
    _finish(out_ptr, red, scale_ptr, shift_ptr, within)
    _finish(out_ptr + stride_C, green, scale_ptr + 1, shift_ptr + 1, within)
    _finish(out_ptr + 2 * stride_C, blue, scale_ptr + 2, shift_ptr + 2, within)


@triton.jit
def _whole(value):
    return (value + _ROUND_32) - _ROUND_32


@triton.jit
def _level(value):
    return tl.minimum(tl.maximum(_whole(value), 0.0), 255.0)


@triton.jit
def _finish(out_ptr, value, scale_ptr, offset_ptr, within):
    finished = _level(value) * tl.load(scale_ptr) - tl.load(offset_ptr)
    tl.store(out_ptr, finished.to(out_ptr.dtype.element_ty), within)
