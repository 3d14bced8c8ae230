"""TG-DFER in slow NumPy float64, written from the paper's equations for one run and one video.

Shares no code with the package: plain loops over windows, frames, heads and classes.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import erf

Array = np.ndarray
Weights = Mapping[str, Array]


def part(weights: Weights, prefix: str) -> dict[str, Array]:
    return {n[len(prefix) :]: w for n, w in weights.items() if n.startswith(prefix)}


def linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight_RIO"] + weights[f"{name}.bias_RO"]


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    out = np.empty_like(x)
    for i, row in enumerate(x):
        scaled = (row - row.mean()) / math.sqrt(((row - row.mean()) ** 2).mean() + 1e-5)
        out[i] = scaled * weights[f"{name}.weight_RD"] + weights[f"{name}.bias_RD"]
    return out


def softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max())
    return shifted / shifted.sum()


def attention(x: Array, weights: Weights, heads: int) -> Array:
    length, size = x.shape
    q, k, v = np.split(linear(x, weights, "qkv"), 3, axis=1)
    out = np.zeros_like(x)
    width = size // heads
    for h in range(heads):
        cols = slice(h * width, (h + 1) * width)
        for i in range(length):
            scores = np.array([q[i, cols] @ k[j, cols] / math.sqrt(width) for j in range(length)])
            for j, share in enumerate(softmax(scores)):
                out[i, cols] += share * v[j, cols]
    return linear(out, weights, "out")


def encoder_layer(x: Array, weights: Weights, heads: int) -> Array:
    x = x + attention(layer_norm(x, weights, "norm_attention"), weights, heads)
    hidden = linear(layer_norm(x, weights, "norm_mlp"), weights, "up")
    hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
    return x + linear(hidden, weights, "down")


def encoder(x: Array, weights: Weights, depth: int, heads: int) -> Array:
    for n in range(depth):
        x = encoder_layer(x, part(weights, f"layers.{n}."), heads)
    return x


def fine_module(
    x: Array, weights: Weights, depth: int, heads: int, window: int, stride: int
) -> Array:
    """Eqs. 2-3; a frame's output is the mean over the windows that hold it."""
    frames = len(x)
    outputs: list[list[Array]] = [[] for _ in range(frames)]
    for n in range((frames - window) // stride + 1):
        inside = x[n * stride : n * stride + window] + weights["positions_RwD"]
        for j, row in enumerate(encoder(inside, weights, depth, heads)):
            outputs[n * stride + j].append(row)
    return np.array([sum(rows) / len(rows) for rows in outputs])


def temporal(
    x: Array, weights: Weights, fine: int, coarse: int, heads: int, window: int, stride: int
) -> Array:
    """Eqs. 2-5."""
    branches = []
    if fine:
        own = part(weights, f"branches.{len(branches)}.")
        branches.append(fine_module(x, own, fine, heads, window, stride))
    if coarse:
        own = part(weights, f"branches.{len(branches)}.")
        branches.append(encoder(x + own["positions_RTD"], own, coarse, heads))
    return linear(np.concatenate(branches, axis=1), weights, "join") if branches else x


def cos(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def label(
    instances: Array, fine_k: Array, coarse_k: Array, weights: Weights, tau: float, visual: bool
) -> Array:
    """Eqs. 7-10 for one class."""
    enriched = fine_k
    if visual:
        shares = softmax(np.array([cos(row, fine_k) / tau for row in instances]))
        summed = sum(share * row for share, row in zip(shares, instances, strict=True))
        enriched = fine_k + summed / np.linalg.norm(summed)
    hidden = linear(enriched, weights, "up")
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return linear(hidden, weights, "down") + coarse_k


def tgdfer(
    x: Array,
    fine: Array,
    coarse: Array,
    weights: Weights,
    *,
    depths: tuple[int, int] = (1, 1),
    heads: int = 1,
    window: int = 4,
    stride: int = 1,
    tau: float = 0.01,
    visual: bool = True,
) -> tuple[Array, Array]:
    """Features [T, D], text features [K, D] -> bag logits [K] (eq. 11), frame logits [T, K]."""
    instances = temporal(x, part(weights, "temporal."), *depths, heads, window, stride)
    own = part(weights, "label.")
    frame_logits = np.zeros((len(x), len(fine)))
    for k in range(len(fine)):
        label_k = label(instances, fine[k], coarse[k], own, tau, visual)
        frame_logits[:, k] = [cos(row, label_k) / tau for row in instances]
    return frame_logits.mean(axis=0), frame_logits


def cross_entropy(logits: Array, target: int) -> float:
    return float(-np.log(softmax(logits)[target]))
