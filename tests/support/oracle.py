"""TG-DFER in slow NumPy float64, written from the paper's equations for one run and one video.

Shares no code with the package: plain loops over windows, frames, heads and classes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


def means_of_segments(x: Array, count: int) -> Array:
    """Means of ``count`` runs of neighbouring rows, as equal in length as whole rows can be."""
    rows = [[row for t, row in enumerate(x) if t * count // len(x) == n] for n in range(count)]
    return np.array([sum(own) / len(own) for own in rows])


def attention(x: Array, weights: Weights, heads: int, keys: int = 0) -> Array:
    length, size = x.shape
    q = np.split(linear(x, weights, "qkv"), 3, axis=1)[0]
    read = means_of_segments(x, keys) if keys else x
    _, k, v = np.split(linear(read, weights, "qkv"), 3, axis=1)
    out = np.zeros_like(x)
    width = size // heads
    for h in range(heads):
        cols = slice(h * width, (h + 1) * width)
        for i in range(length):
            scores = np.array([q[i, cols] @ key[cols] / math.sqrt(width) for key in k])
            for j, share in enumerate(softmax(scores)):
                out[i, cols] += share * v[j, cols]
    return linear(out, weights, "out")


def mlp(x: Array, weights: Weights) -> Array:
    hidden = linear(x, weights, "up")
    return linear(hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))), weights, "down")


def encoder_layer(
    x: Array,
    weights: Weights,
    heads: int,
    norm: str,
    keys: int = 0,
    kept: tuple[Array, Array] | tuple[float, float] = (1.0, 1.0),
) -> Array:
    """``kept`` multiplies the outputs of attention and MLP: 0 where dropped, else 1 / (1 - p)."""
    if norm == "pre":
        x = x + kept[0] * attention(layer_norm(x, weights, "norm_attention"), weights, heads, keys)
        return x + kept[1] * mlp(layer_norm(x, weights, "norm_mlp"), weights)
    x = layer_norm(x + kept[0] * attention(x, weights, heads, keys), weights, "norm_attention")
    return layer_norm(x + kept[1] * mlp(x, weights), weights, "norm_mlp")


def encoder(x: Array, weights: Weights, depth: int, o: "Options", keys: int = 0) -> Array:
    for n in range(depth):
        x = encoder_layer(x, part(weights, f"layers.{n}."), o.heads, o.norm, keys)
    return x


def fine_module(x: Array, weights: Weights, o: "Options") -> Array:
    """Eqs. 2-3; a frame's output is the mean over the windows that hold it, or the last one's."""
    frames = len(x)
    outputs: list[list[Array]] = [[] for _ in range(frames)]
    for n in range((frames - o.window) // o.stride + 1):
        table = weights["positions_RNwD"][n if o.positions == "per_window" else 0]
        inside = x[n * o.stride : n * o.stride + o.window] + table
        for j, row in enumerate(encoder(inside, weights, o.depths[0], o)):
            outputs[n * o.stride + j].append(row)
    if o.merge == "last":
        return np.array([rows[-1] for rows in outputs])
    return np.array([sum(rows) / len(rows) for rows in outputs])


def temporal(x: Array, weights: Weights, o: "Options") -> Array:
    """Eqs. 2-5."""
    branches: list[Array] = []
    if o.depths[0]:
        branches.append(fine_module(x, part(weights, f"branches.{len(branches)}."), o))
    if o.depths[1]:
        own = part(weights, f"branches.{len(branches)}.")
        branches.append(encoder(x + own["positions_RTD"], own, o.depths[1], o, o.coarse_keys))
    if not branches:
        return x
    return linear(np.concatenate(branches, axis=1), weights, "join") + (x if o.residual else 0)


def scaled(x: Array, kind: str, training: Array) -> Array:
    """X^v [T, D] by ``input.scale``, with statistics of the frames ``training`` [N, D]."""
    if kind == "none":
        return x
    if kind == "layer_norm":
        return np.array(
            [(r - r.mean()) / math.sqrt(((r - r.mean()) ** 2).mean() + 1e-5) for r in x]
        )
    mean = training.sum(axis=0) / len(training)
    variances = ((training - mean) ** 2).sum(axis=0) / len(training)
    if kind == "standardise":
        return (x - mean) / np.sqrt(variances + 1e-5 * variances.mean())
    _, lengths, axes = np.linalg.svd((training - mean) / math.sqrt(len(training)))
    deviations = np.sqrt(lengths**2 + 1e-2 * variances.mean())
    return sum(
        np.outer((x - mean) @ axis, axis) / d for axis, d in zip(axes, deviations, strict=True)
    )


def cos(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def visual_prompt(instances: Array, prior: Array, fine: Array, k: int, o: "Options") -> Array:
    """Eqs. 7-8 for class k; ``prior`` [T] says how much each frame counts before it is seen."""
    scores = []
    for row in instances:
        own = [cos(row, fine_j) / o.tau for fine_j in fine]
        scores.append(sum(own) / len(own) if o.scope == "shared" else own[k])
    if o.weighting == "softmax":
        shares = prior * np.exp(np.array(scores) - max(scores))
        shares = shares / shares.sum()
    else:
        shares = prior * np.array(scores)
    summed = sum(share * row for share, row in zip(shares, instances, strict=True))
    return summed / np.linalg.norm(summed)


def label(
    instances: Array,
    prior: Array,
    fine: Array,
    coarse: Array,
    k: int,
    weights: Weights,
    o: "Options",
) -> Array:
    """Eqs. 9-10 for class k."""
    enriched = fine[k]
    if o.visual != "none":
        seen = visual_prompt(instances, prior, fine, k, o)
        if o.visual == "add":
            enriched = fine[k] + seen
        elif o.visual == "concat":
            enriched = np.concatenate([seen, fine[k]])
        else:
            assert o.encode is not None
            enriched = o.encode(k, seen)
    if o.fusion == "none":
        return enriched
    hidden = linear(enriched, weights, "up")
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return linear(hidden, weights, "down") + coarse[k]


def pool(
    instances: Array, prior: Array, labels: Array, frames: Array, weights: Weights, o: "Options"
) -> Array:
    """Frame logits [T, K] -> bag logits [K]; means over frames are weighted by ``prior`` [T]."""
    K = frames.shape[1]
    if o.pooling == "mean_feature":
        return np.array([cos(prior @ instances, row) / o.tau for row in labels])
    if o.pooling == "mean_probability":
        return np.log(sum(p * softmax(row) for p, row in zip(prior, frames, strict=True)))
    if o.pooling == "top_k":
        best = [np.argsort(frames[:, k])[-o.top_k :] for k in range(K)]
        means = [prior[own] @ frames[own, k] / prior[own].sum() for k, own in enumerate(best)]
        return np.array(means)
    if o.pooling == "log_sum_exp":
        return np.array([np.log(prior @ np.exp(frames[:, k])) for k in range(K)])
    if o.pooling == "attention":
        hidden = np.tanh(linear(instances, weights, "hidden"))
        shares = prior * np.exp(linear(hidden, weights, "score")[:, 0])
        return shares @ frames / shares.sum()
    return prior @ frames


@dataclass(frozen=True)
class Options:
    """The switches of the method, by the names of the paper's discussion in docs/method.md."""

    depths: tuple[int, int] = (1, 1)
    heads: int = 1
    window: int = 4
    stride: int = 1
    positions: str = "shared"
    merge: str = "average"
    norm: str = "pre"
    residual: bool = False
    coarse_keys: int = 0
    tau: float = 0.01
    visual: str = "add"
    weighting: str = "softmax"
    scope: str = "per_class"
    fusion: str = "mlp"
    pooling: str = "mean_logits"
    top_k: int = 4
    quality: float = 0
    # Text features of class k with a visual token before its prompt, for ``prepend``.
    encode: Callable[[int, Array], Array] | None = None


def tgdfer(
    x: Array, fine: Array, coarse: Array, weights: Weights, o: Options
) -> tuple[Array, Array]:
    """Features [T, D], text features [K, D] -> bag logits [K] (eq. 11), frame logits [T, K].

    With weights of a projection, the features are first brought from any size to D.
    """
    prior = softmax(np.array([-o.quality * (row @ row) / len(row) for row in x]))
    if "project.weight_RIO" in weights:
        x = x @ weights["project.weight_RIO"] + weights["project.bias_RO"]
    instances = temporal(x, part(weights, "temporal."), o)
    own = part(weights, "label.")
    labels = np.array([label(instances, prior, fine, coarse, k, own, o) for k in range(len(fine))])
    frames = np.array([[cos(row, label_k) / o.tau for label_k in labels] for row in instances])
    return pool(instances, prior, labels, frames, part(weights, "bag."), o), frames


def cross_entropy(logits: Array, target: int) -> float:
    return float(-np.log(softmax(logits)[target]))


def imbalanced_loss(
    logits: Array, target: int, counts: Array, kind: str, beta: float, tau: float, smoothing: float
) -> float:
    """``optimiser.loss`` of one video, with the numbers of training videos per class."""
    shares = softmax(
        logits + (tau * np.log(counts / counts.sum()) if kind == "logit_adjusted" else 0)
    )
    loss = -(1 - smoothing) * np.log(shares[target]) - smoothing * np.log(shares).mean()
    if kind != "class_balanced":
        return float(loss)
    effective = [sum(beta**i for i in range(int(n))) for n in counts]  # (1 - beta^n) / (1 - beta)
    mean = sum(n / e for n, e in zip(counts, effective, strict=True)) / counts.sum()
    return float(loss / effective[target] / mean)


def focal_loss(logits: Array, target: int, gamma: float, smoothing: float) -> float:
    """Lin et al. (2017, eq. 4); smoothed, all of a label's part is weighted by its focus."""
    shares = softmax(logits)
    loss = -(1 - smoothing) * np.log(shares[target]) - smoothing * np.log(shares).mean()
    return float((1 - shares[target]) ** gamma * loss)


def intensity_aware_term(logits: Array, target: int) -> float:
    """Li et al. (2023): cross-entropy between the label and the strongest of the other classes."""
    strongest = max(logit for k, logit in enumerate(logits) if k != target)
    return float(-np.log(np.exp(logits[target]) / (np.exp(logits[target]) + np.exp(strongest))))


def voted_loss(logits: Array, votes: Array, *given: Any) -> float:
    """The mean over the annotators of the loss with the label that each gave."""
    said = [k for k, count in enumerate(votes) for _ in range(int(count))]
    return float(np.mean([imbalanced_loss(logits, k, *given) for k in said]))
