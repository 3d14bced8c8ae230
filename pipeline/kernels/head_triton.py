"""GPU kernels of frame logits and visual prompts, which head.py defines, forward and backward.

A video's features are read in blocks along D, once for the cosines and once or twice for what
depends on them; they stay in the cache in between.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = tl.constexpr(1e-12)  # smallest length that torch's normalize divides by


class FrameLogits(torch.autograd.Function):
    """``frame_logits`` of instances [R, B, T, D] and labels [R, B, K, D]."""

    @staticmethod
    def forward(
        ctx: Any, instances_RBTD: Tensor, labels_RBKD: Tensor, temperature_R: Tensor
    ) -> Tensor:
        x, labels = instances_RBTD.contiguous(), labels_RBKD.contiguous()
        ctx.save_for_backward(x, labels, temperature_R)
        (R, B, T, _), K = x.shape, labels.shape[2]
        logits = x.new_empty(R, B, T, K)
        with torch.cuda.device_of(x):
            _logits_forward[(R * B,)](x, labels, logits, temperature_R, B, **_sizes(x, labels))
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        x, labels, temperature_R = ctx.saved_tensors
        grads = torch.empty_like(x), torch.empty_like(labels)
        inputs = x, labels, grad_logits.contiguous()
        R, B = x.shape[:2]
        with torch.cuda.device_of(x):
            _logits_backward[(R * B,)](*inputs, *grads, temperature_R, B, **_sizes(x, labels))
        return *grads, None


class VisualPrompt(torch.autograd.Function):
    """``visual_prompt`` of instances [R, B, T, D] and fine texts [R, K, D]."""

    @staticmethod
    def forward(
        ctx: Any, instances_RBTD: Tensor, fine_RKD: Tensor, temperature_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, fine = instances_RBTD.contiguous(), fine_RKD.contiguous()
        ctx.save_for_backward(x, fine, temperature_R)
        (R, B, T, D), K = x.shape, fine.shape[1]
        prompts, weights = x.new_empty(R, B, K, D), x.new_empty(R, B, T, K)
        with torch.cuda.device_of(x):
            outputs = prompts, weights
            _prompt_forward[(R * B,)](x, fine, *outputs, temperature_R, B, **_sizes(x, fine))
        return prompts, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_prompts: Tensor, grad_weights: Tensor) -> tuple[Tensor | None, ...]:
        x, fine, temperature_R = ctx.saved_tensors
        (R, B, _, D), K = x.shape, fine.shape[1]
        grad_x = torch.empty_like(x)
        # Each video writes its part of the texts' gradient; the parts are added in a fixed order.
        grad_fine = x.new_empty(R, B, K, D, dtype=torch.float32)
        inputs = x, fine, grad_prompts.contiguous(), grad_weights.contiguous()
        sizes = _sizes(x, fine)
        with torch.cuda.device_of(x):
            _prompt_backward[(R * B,)](*inputs, grad_x, grad_fine, temperature_R, B, **sizes)
        return grad_x, grad_fine.sum(1).to(fine.dtype), None


def _sizes(x_RBTD: Tensor, texts: Tensor) -> dict[str, int]:
    """Sizes that the kernels are compiled for; a dot needs tiles of a power of two, at least 16."""
    (T, D), K = x_RBTD.shape[2:], texts.shape[-2]
    return {
        "T": T,
        "K": K,
        "D": D,
        "T_TILE": max(16, triton.next_power_of_2(T)),
        "K_TILE": max(16, triton.next_power_of_2(K)),
        "D_TILE": min(64, max(16, triton.next_power_of_2(D))),
    }


@triton.jit
def _logits_forward(
    x_ptr,
    labels_ptr,
    logits_ptr,
    temperature_ptr,
    B,
    T: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
):
    # One program: the logits of all frames of one video.
    video = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + video // B).to(tl.float32)
    x_ptr += video * T * D
    labels_ptr += video * K * D
    cosines, _, _ = _cosines(x_ptr, labels_ptr, T, K, D, T_TILE, K_TILE, D_TILE)
    _store(logits_ptr + video * T * K, cosines / temperature, 0, T, K)


@triton.jit
def _logits_backward(
    x_ptr,
    labels_ptr,
    grad_logits_ptr,
    grad_x_ptr,
    grad_labels_ptr,
    temperature_ptr,
    B,
    T: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
):
    # One program: the gradients of all frames and labels of one video.
    video = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + video // B).to(tl.float32)
    x_ptr += video * T * D
    labels_ptr += video * K * D
    cosines, x_length, label_length = _cosines(x_ptr, labels_ptr, T, K, D, T_TILE, K_TILE, D_TILE)
    grad = _load(grad_logits_ptr + video * T * K, 0, T, K, T_TILE, K_TILE) / temperature
    for start in range(0, D, D_TILE):
        x = _load(x_ptr, start, T, D, T_TILE, D_TILE)
        labels = _load(labels_ptr, start, K, D, K_TILE, D_TILE)
        grad_x, grad_labels = _through_cosines(grad, cosines, x, labels, x_length, label_length)
        _store(grad_x_ptr + video * T * D, grad_x, start, T, D)
        _store(grad_labels_ptr + video * K * D, grad_labels, start, K, D)


@triton.jit
def _prompt_forward(
    x_ptr,
    fine_ptr,
    prompts_ptr,
    weights_ptr,
    temperature_ptr,
    B,
    T: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
):
    # One program: the visual prompts of all classes for one video.
    video = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + video // B).to(tl.float32)
    x_ptr += video * T * D
    fine_ptr += video // B * K * D
    cosines, _, _ = _cosines(x_ptr, fine_ptr, T, K, D, T_TILE, K_TILE, D_TILE)
    weights = _softmax(cosines / temperature, T)
    _store(weights_ptr + video * T * K, weights, 0, T, K)
    squares = tl.zeros([K_TILE], tl.float32)
    for start in range(0, D, D_TILE):
        x = _load(x_ptr, start, T, D, T_TILE, D_TILE)
        summed = tl.dot(tl.trans(weights), x, input_precision="ieee")
        squares += tl.sum(summed * summed, 1)
    length = tl.maximum(tl.sqrt(squares), EPS)
    for start in range(0, D, D_TILE):
        x = _load(x_ptr, start, T, D, T_TILE, D_TILE)
        summed = tl.dot(tl.trans(weights), x, input_precision="ieee")
        _store(prompts_ptr + video * K * D, summed / length[:, None], start, K, D)


@triton.jit
def _prompt_backward(
    x_ptr,
    fine_ptr,
    grad_prompts_ptr,
    grad_weights_ptr,
    grad_x_ptr,
    grad_fine_ptr,
    temperature_ptr,
    B,
    T: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
):
    # One program: the gradients of one video's frames, and its part of the texts' gradients.
    video = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + video // B).to(tl.float32)
    x_ptr += video * T * D
    fine_ptr += video // B * K * D
    grad_prompts_ptr += video * K * D
    cosines, x_length, fine_length = _cosines(x_ptr, fine_ptr, T, K, D, T_TILE, K_TILE, D_TILE)
    weights = _softmax(cosines / temperature, T)

    # For the sums u_k = sum_t a_tk x_t: |u|² and u·g, and the products of x with u and with g.
    squares = tl.zeros([K_TILE], tl.float32)
    along = tl.zeros([K_TILE], tl.float32)
    x_u = tl.zeros([T_TILE, K_TILE], tl.float32)
    x_g = tl.zeros([T_TILE, K_TILE], tl.float32)
    for start in range(0, D, D_TILE):
        x = _load(x_ptr, start, T, D, T_TILE, D_TILE)
        grad = _load(grad_prompts_ptr, start, K, D, K_TILE, D_TILE)
        summed = tl.dot(tl.trans(weights), x, input_precision="ieee")
        squares += tl.sum(summed * summed, 1)
        along += tl.sum(summed * grad, 1)
        x_u += tl.dot(x, tl.trans(summed), input_precision="ieee")
        x_g += tl.dot(x, tl.trans(grad), input_precision="ieee")

    # The gradient of u is (g - u (u·g) / |u|²) / |u|.
    length = tl.maximum(tl.sqrt(squares), EPS)
    share = along / (length * length)
    grad_weights = _load(grad_weights_ptr + video * T * K, 0, T, K, T_TILE, K_TILE)
    grad_weights += (x_g - x_u * share[None, :]) / length[None, :]
    grad_cosines = weights * (grad_weights - tl.sum(weights * grad_weights, 0)[None, :])
    grad_cosines /= temperature
    for start in range(0, D, D_TILE):
        x = _load(x_ptr, start, T, D, T_TILE, D_TILE)
        fine = _load(fine_ptr, start, K, D, K_TILE, D_TILE)
        grad = _load(grad_prompts_ptr, start, K, D, K_TILE, D_TILE)
        summed = tl.dot(tl.trans(weights), x, input_precision="ieee")
        grad_summed = (grad - summed * share[:, None]) / length[:, None]
        grad_x, grad_fine = _through_cosines(grad_cosines, cosines, x, fine, x_length, fine_length)
        grad_x += tl.dot(weights, grad_summed, input_precision="ieee")
        _store(grad_x_ptr + video * T * D, grad_x, start, T, D)
        _store(grad_fine_ptr + video * K * D, grad_fine, start, K, D)


@triton.jit
def _cosines(
    x_ptr,
    texts_ptr,
    T: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    T_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    D_TILE: tl.constexpr,
):
    # Cosines [T_TILE, K_TILE] of the rows of x [T, D] and texts [K, D], and the rows' lengths.
    products = tl.zeros([T_TILE, K_TILE], tl.float32)
    x_squares = tl.zeros([T_TILE], tl.float32)
    text_squares = tl.zeros([K_TILE], tl.float32)
    for start in range(0, D, D_TILE):
        x = _load(x_ptr, start, T, D, T_TILE, D_TILE)
        texts = _load(texts_ptr, start, K, D, K_TILE, D_TILE)
        products += tl.dot(x, tl.trans(texts), input_precision="ieee")
        x_squares += tl.sum(x * x, 1)
        text_squares += tl.sum(texts * texts, 1)
    x_length = tl.maximum(tl.sqrt(x_squares), EPS)
    text_length = tl.maximum(tl.sqrt(text_squares), EPS)
    return products / x_length[:, None] / text_length[None, :], x_length, text_length


@triton.jit
def _through_cosines(grad, cosines, x, texts, x_length, text_length):
    # Gradients of a block of x [T_TILE, D_TILE] and texts [K_TILE, D_TILE], given those of the
    # cosines; for x_t: sum_k g_tk (text_k / |text_k| - cos_tk x_t / |x_t|) / |x_t|.
    x = x / x_length[:, None]
    texts = texts / text_length[:, None]
    grad_x = tl.dot(grad, texts, input_precision="ieee")
    grad_x -= tl.sum(grad * cosines, 1)[:, None] * x
    grad_texts = tl.dot(tl.trans(grad), x, input_precision="ieee")
    grad_texts -= tl.sum(grad * cosines, 0)[:, None] * texts
    return grad_x / x_length[:, None], grad_texts / text_length[:, None]


@triton.jit
def _softmax(scores, T: tl.constexpr):
    # Over the first T rows of [T_TILE, K_TILE]; 0 in the rest.
    row = tl.arange(0, scores.shape[0])[:, None]
    scores = tl.where(row < T, scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 0)[None, :])
    return shares / tl.sum(shares, 0)[None, :]


@triton.jit
def _load(ptr, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    # [R, C] of a matrix [ROWS, COLUMNS] from column ``start`` on; 0 outside.
    row, column = tl.arange(0, R)[:, None], start + tl.arange(0, C)[None, :]
    mask = (row < ROWS) & (column < COLUMNS)
    return tl.load(ptr + row * COLUMNS + column, mask, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, tile, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    # The part of ``tile`` inside a matrix [ROWS, COLUMNS], from column ``start`` on.
    row = tl.arange(0, tile.shape[0])[:, None]
    column = start + tl.arange(0, tile.shape[1])[None, :]
    mask = (row < ROWS) & (column < COLUMNS)
    tl.store(ptr + row * COLUMNS + column, tile.to(ptr.dtype.element_ty), mask)
