"""Heads of other publications in slow NumPy float64, for one run and one video.

Written from the publications. Weights have the names and shapes of the authors' PyTorch modules: a
linear layer's weight is [outputs, inputs]. Heads return (logits [K], frame logits [T, K]).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from support.oracle import Array, Weights, cos, part, softmax

HEADS = 8


def linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def layer_norm(x: Array, weights: Weights, name: str) -> Array:
    rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-5) for row in x]
    return np.array(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear_probe(x: Array, weights: Weights) -> tuple[Array, Array]:
    """``fc`` on the mean of the frames."""
    return linear(sum(x) / len(x), weights, "fc"), np.array(
        [linear(row, weights, "fc") for row in x]
    )


def mlp(x: Array, weights: Weights, layers: int) -> tuple[Array, Array]:
    """Hidden layers 0, 1, … and ``fc`` on the mean of the frames."""

    def logits(row: Array) -> Array:
        for n in range(layers):
            row = np.maximum(linear(row, weights, str(n)), 0)
        return linear(row, weights, "fc")

    return logits(sum(x) / len(x)), np.array([logits(row) for row in x])


def lstm(x: Array, weights: Weights, layers: int) -> Array:
    """The bidirectional torch.nn.LSTM: [T, I] -> [T, 2H]."""
    for layer in range(layers):
        directions = []
        for reverse in ("", "_reverse"):
            w_ih, w_hh, b_ih, b_hh = (
                weights[f"{kind}_l{layer}{reverse}"]
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h, c, states = np.zeros(w_hh.shape[1]), np.zeros(w_hh.shape[1]), []
            for row in x[::-1] if reverse else x:
                i, f, g, o = np.split(w_ih @ row + b_ih + w_hh @ h + b_hh, 4)
                c = logistic(f) * c + logistic(i) * np.tanh(g)
                h = logistic(o) * np.tanh(c)
                states.append(h)
            directions.append(np.array(states[::-1] if reverse else states))
        x = np.concatenate(directions, 1)
    return x


def bilstm(x: Array, weights: Weights, layers: int) -> tuple[Array, Array]:
    """The mean over the frames of ``fc`` on the states of ``lstm``."""
    states = lstm(x, part(weights, "lstm."), layers)
    frames = np.array([linear(state, weights, "fc") for state in states])
    return sum(frames) / len(frames), frames


def attention(x: Array, weights: Weights, name: str) -> Array:
    """Self-attention of 8 heads, without biases and without a layer after it."""
    return heads(*np.split(linear(x, weights, name), 3, axis=1))


def heads(q: Array, k: Array, v: Array) -> Array:
    """What 8 heads mix of the values."""
    width = q.shape[1] // HEADS
    out = np.zeros_like(q)
    for h in range(HEADS):
        cols = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            scores = np.array([q[i, cols] @ key[cols] for key in k]) / math.sqrt(width)
            out[i, cols] = softmax(scores) @ v[:, cols]
    return out


def encoder(x: Array, weights: Weights, layers: int, name: str) -> Array:
    """Former-DFER's T-Former and DFER-CLIP's temporal model: [T, D] -> class token and frames."""
    tokens = np.concatenate([weights["cls_token"][0], x]) + weights["pos_embedding"][0]
    for n in range(layers):
        attend, feed = f"{name}.layers.{n}.0.fn", f"{name}.layers.{n}.1.fn"
        normed = layer_norm(tokens, weights, f"{attend}.norm")
        mixed = attention(normed, weights, f"{attend}.fn.to_qkv")
        tokens = tokens + linear(mixed, weights, f"{attend}.fn.to_out.0")
        hidden = linear(layer_norm(tokens, weights, f"{feed}.norm"), weights, f"{feed}.fn.net.0")
        cubic = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        tokens = tokens + linear(0.5 * hidden * (1 + np.tanh(cubic)), weights, f"{feed}.fn.net.3")
    return tokens


def former_dfer(x: Array, weights: Weights, layers: int) -> tuple[Array, Array]:
    tokens = encoder(x, part(weights, "t_former."), layers, "spatial_transformer")
    first, *frames = (linear(token, weights, "fc") for token in tokens)
    return first, np.array(frames)


def dfer_clip(
    x: Array, weights: Weights, layers: int, texts: Array, tau: float
) -> tuple[Array, Array]:
    tokens = encoder(x, part(weights, "temporal_net."), layers, "temporal_transformer")
    first, *frames = (np.array([cos(token, text) / tau for text in texts]) for token in tokens)
    return first, np.array(frames)


def emoclip(
    x: Array, weights: Weights, layers: int, texts: Array, tau: float
) -> tuple[Array, Array]:
    """As DFER-CLIP, with a learned scale of the class token's cosines."""
    tokens = encoder(x, part(weights, "temporal."), layers, "temporal_transformer")
    first, *frames = (np.array([cos(token, text) for text in texts]) for token in tokens)
    return math.exp(weights["logit_scale"]) * first, np.array(frames) / tau


def cliper(x: Array, texts: Array, tau: float) -> tuple[Array, Array]:
    """Mean cosines of an image's feature, here a mean of frames, with the texts [K, M, D]."""

    def logits(row: Array) -> Array:
        return np.array([sum(cos(row, text) / tau for text in own) / len(own) for own in texts])

    return logits(sum(x) / len(x)), np.array([logits(row) for row in x])


def dmin(x: Array, weights: Weights) -> Array:
    """Dynamic multi-instance normalisation of instances [N, E]."""
    means = sum(x) / len(x)
    variances = sum((x - means) ** 2) / (len(x) - 1)
    bag_mean = means.mean()
    bag_variance = (variances + means**2).mean() - bag_mean**2
    of_mean, of_variance = softmax(weights["mean_weight"]), softmax(weights["var_weight"])
    mean = of_mean[0] * means + of_mean[1] * bag_mean
    variance = of_variance[0] * variances + of_variance[1] * bag_variance
    normed = (x - mean) / np.sqrt(variance + 1e-5)
    return normed * weights["weight"][0, :, 0] + weights["bias"][0, :, 0]


def m3dfel(x: Array, weights: Weights, layers: int, instance: int) -> tuple[Array, Array]:
    """M3DFEL after its 3-D network, in whose place instances are means of frames.

    A frame's logits are those of N times the share of its instance in the convolution.
    """
    instances = np.array([rows.mean(0) for rows in np.split(x, len(x) // instance)])
    states = lstm(instances, part(weights, "lstm."), layers)
    gates = logistic(dmin(attention(states, weights, "to_qkv"), part(weights, "norm.")))
    gated = np.pad(states * gates, [(0, 0), (1, 1)])
    kernel, bias = weights["pwconv.weight"][0], weights["pwconv.bias"][0]

    def logits(share: Array) -> Array:
        joined = [
            (share[:, None] * kernel * gated[:, e : e + 3]).sum() for e in range(states.shape[1])
        ]
        return linear(np.array(joined) + bias, weights, "fc")

    frames = [logits(len(kernel) * row) for row in np.eye(len(kernel))]
    return logits(np.ones(len(kernel))), np.repeat(frames, instance, axis=0)


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def s2d(x: Array, weights: Weights, layers: int) -> tuple[Array, Array]:
    """S2D's adapters between its blocks, which are left out, and its classifier."""
    x = x + weights["temporal_embedding"][0]
    for n in range(layers):
        own = f"prompt_blocks.{n}.TMA"
        hidden = layer_norm(x, weights, f"prompt_norms.{n}")
        hidden = gelu(linear(hidden, weights, f"{own}.T_Adapter.D_fc1"))
        mixed = attention(hidden, weights, f"{own}.T_Adapter.attn.qkv")
        mixed = linear(mixed, weights, f"{own}.T_Adapter.attn.proj")
        mixed = linear(mixed, weights, f"{own}.T_Adapter.D_fc2")
        hidden = linear(
            layer_norm(mixed, weights, f"{own}.norm"), weights, f"{own}.S_Adapter.D_fc1"
        )
        x = x + linear(gelu(hidden), weights, f"{own}.S_Adapter.D_fc2")
    mean, *frames = (linear(row, weights, "head.fc_cls") for row in (sum(x) / len(x), *x))
    return mean, np.array(frames)


def attended(q: Array, memory: Array, weights: Weights, name: str, heads: int = 4) -> Array:
    """torch.nn.MultiheadAttention: queries [L, D] and keys and values of [N, D]."""
    w_q, w_k, w_v = np.split(weights[f"{name}.in_proj_weight"], 3)
    b_q, b_k, b_v = np.split(weights[f"{name}.in_proj_bias"], 3)
    q, k, v = q @ w_q.T + b_q, memory @ w_k.T + b_k, memory @ w_v.T + b_v
    out, width = np.zeros_like(q), q.shape[1] // heads
    for h in range(heads):
        cols = slice(h * width, (h + 1) * width)
        for i in range(len(q)):
            scores = np.array([q[i, cols] @ key[cols] for key in k]) / math.sqrt(width)
            out[i, cols] = softmax(scores) @ v[:, cols]
    return linear(out, weights, f"{name}.out_proj")


def feed_forward(x: Array, weights: Weights, name: str) -> Array:
    hidden = np.maximum(linear(x, weights, f"{name}.linear1"), 0)
    return linear(hidden, weights, f"{name}.linear2")


def est(x: Array, weights: Weights, layers: int, instance: int) -> tuple[Array, Array]:
    """EST after its ResNet, without the task of ordering snippets."""
    snippets = []
    for n, rows in enumerate(np.split(x, len(x) // instance)):
        y = layer_norm(rows + attended(rows, rows, weights, "attn"), weights, "norm1")
        shares = np.array([max(cos(row, y.max(axis=0)), 1e-8) for row in y])
        place = np.arange(x.shape[1])
        angle = n / 10000 ** (2 * (place // 2) / x.shape[1])
        wave = np.where(place % 2, np.cos(angle), np.sin(angle))
        snippets.append(shares @ y / shares.sum() + wave)
    memory, name = np.array(snippets), "transformer.encoder"
    for n in range(layers):
        own = f"{name}.layers.{n}"
        mixed = attended(memory, memory, weights, f"{own}.self_attn")
        memory = layer_norm(memory + mixed, weights, f"{own}.norm1")
        memory = layer_norm(memory + feed_forward(memory, weights, own), weights, f"{own}.norm2")
    memory, name = layer_norm(memory, weights, f"{name}.norm"), "transformer.decoder"
    q = weights["query_embed.weight"]
    for n in range(layers):
        own = f"{name}.layers.{n}"
        q = layer_norm(q + attended(q, q, weights, f"{own}.self_attn"), weights, f"{own}.norm1")
        asked = attended(q, memory, weights, f"{own}.multihead_attn")
        q = layer_norm(q + asked, weights, f"{own}.norm2")
        q = layer_norm(q + feed_forward(q, weights, own), weights, f"{own}.norm3")
    tokens = np.concatenate([layer_norm(q, weights, f"{name}.norm"), memory])
    for layer in ("classifier.0", "classifier.2"):
        tokens = np.maximum(linear(tokens, weights, layer), 0)
    logits = linear(tokens, weights, "classifier.5.0")
    return logits[0], np.repeat(logits[1:], instance, axis=0)


def quick_gelu(x: Array) -> Array:
    return x * logistic(1.702 * x)


def graph_convolved(x: Array, edges: Array, weights: Weights, names: tuple[str, str]) -> Array:
    """VadCLIP's layers gc1 and gc2, or gc3 and gc4, each with its residual."""
    first, second = names
    kernel, padded = weights[f"{first}.residual.weight"], np.pad(x, [(2, 2), (0, 0)])
    taps = [np.einsum("oij,ji->o", kernel, padded[t : t + 5]) for t in range(len(x))]
    beside = np.array(taps) + weights[f"{first}.residual.bias"]
    y = quick_gelu(edges @ (x @ weights[f"{first}.weight"]) + beside)
    return quick_gelu(edges @ (y @ weights[f"{second}.weight"]) + y)


def vadclip(
    x: Array, weights: Weights, layers: int, window: int, texts: Array, tau: float
) -> tuple[Array, Array]:
    """VadCLIP without the branch that tells videos of the class "normal" from others."""

    def mlp(x: Array, name: str) -> Array:
        hidden = quick_gelu(linear(x, weights, f"{name}.c_fc"))
        return linear(hidden, weights, f"{name}.c_proj")

    x = x + weights["frame_position_embeddings.weight"]
    for n in range(layers):
        own = f"temporal.resblocks.{n}"
        normed = layer_norm(x, weights, f"{own}.ln_1")
        parts = np.split(normed, len(x) // window)
        x = x + np.concatenate([attended(p, p, weights, f"{own}.attn", heads=1) for p in parts])
        x = x + mlp(layer_norm(x, weights, f"{own}.ln_2"), f"{own}.mlp")
    cosines = np.array([[cos(a, b) for b in x] for a in x])
    similar = np.array([softmax(row) for row in np.where(cosines > 0.7, cosines, 0)])
    near = np.array(
        [[math.exp(-abs(i - j) / math.e) for j in range(len(x))] for i in range(len(x))]
    )
    paths = [
        graph_convolved(x, similar, weights, ("gc1", "gc2")),
        graph_convolved(x, near, weights, ("gc3", "gc4")),
    ]
    x = linear(np.concatenate(paths, 1), weights, "linear")
    scores = linear(x + mlp(x, "mlp2"), weights, "classifier")[:, 0]
    visual = scores @ x
    labels = texts + visual / np.linalg.norm(visual)
    labels = labels + mlp(labels, "mlp1")
    frames = np.array([[cos(row, label) / tau for label in labels] for row in x])
    return np.sort(frames, axis=0)[-(len(x) // 16 + 1) :].mean(axis=0), frames


def sinkhorn(cosines: Array, rows: Array, epsilon: float = 0.1, iterations: int = 5) -> Array:
    """Cuturi's iterations: the plan from frames to phrases [T, M], which weigh the same."""
    kernel, u = np.exp(-(1 - cosines) / epsilon), rows
    for _ in range(iterations):
        v = 1 / cosines.shape[1] / (kernel.T @ u)
        u = rows / (kernel @ v)
    return u[:, None] * kernel * v


def grace(
    x: Array, weights: Weights, layers: int, texts: Sequence[Array], tau: float
) -> tuple[Array, Array]:
    """GRACE's alignment of frames with the phrases of each class; no code was published."""
    moved = np.array([0, *(np.linalg.norm(b - a) for a, b in pairwise(x))])
    rows = softmax(weights["gain"] * moved / moved.mean())
    x = x + weights["positions"]
    for n in range(layers):
        own = f"layers.{n}"
        normed = layer_norm(x, weights, f"{own}.norm1")
        x = x + attended(normed, normed, weights, f"{own}.self_attn", heads=8)
        hidden = gelu(linear(layer_norm(x, weights, f"{own}.norm2"), weights, f"{own}.linear1"))
        x = x + linear(hidden, weights, f"{own}.linear2")
    classes = []
    for phrases in texts:
        cosines = np.array([[cos(row, phrase) for phrase in phrases] for row in x])
        classes.append((sinkhorn(cosines, rows) * cosines).sum(axis=1) / tau)
    paid = np.array(classes).T
    return paid.sum(axis=0), paid / rows[:, None]


def nr_dfernet(x: Array, weights: Weights, layers: int, instance: int) -> tuple[Array, Array]:
    """NR-DFERNet's changes, class tokens and filter around T-Former; class 2 is neutral."""
    changes = [np.maximum(weights["change.bias"], 0)]
    for before, after in pairwise(x):
        changes.append(np.maximum(linear(after - before, weights, "change"), 0))
    snippets = []
    for start in range(0, len(x), instance):
        own = np.array(changes[start : start + instance])
        token = weights["encoder.cls_token"] + own.mean(0)
        tokens = encoder(
            x[start : start + instance] + own,
            {**part(weights, "encoder."), "cls_token": token},
            layers,
            "spatial_transformer",
        )
        snippets.append(linear(tokens[0], weights, "fc"))
    heard = [logits for logits in snippets if logits.argmax() != 2] or snippets
    return np.mean(heard, axis=0), np.repeat(snippets, instance, axis=0)


def over_frames(x: Array, weights: Weights, name: str) -> Array:
    """A convolution of 3 taps [3, C] over the frames of each channel [T, C]."""
    padded, kernel = np.pad(x, [(1, 1), (0, 0)]), weights[f"{name}.weight"]
    rows = [(padded[t : t + 3] * kernel).sum(0) for t in range(len(x))]
    return np.array(rows) + weights[f"{name}.bias"]


def divergence(one: Array, other: Array) -> float:
    """Both Kullback-Leibler divergences of two predictions, given their logits."""
    p, q = softmax(one), softmax(other)
    return float((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum())


def dpcnet(x: Array, weights: Weights) -> tuple[Array, Array, float]:
    """DPCNet's excitations of frames and of channels, and what keeps its two paths together."""
    gates = logistic(over_frames(linear(x, weights, "frame"), weights, "frame_join"))
    first = x * (1 + gates)
    hidden = over_frames(linear(first, weights, "down"), weights, "channel_join")
    second = first * (1 + logistic(linear(np.maximum(hidden, 0), weights, "up")))
    paths = (
        linear(first, weights, "frame_classifier"),
        linear(second, weights, "channel_classifier"),
    )
    one, other = (path.mean(0) for path in paths)
    return (one + other) / 2, (paths[0] + paths[1]) / 2, divergence(one, other)


def aen(
    x: Array, weights: Weights, layers: int, groups: Sequence[int]
) -> tuple[Array, Array, float]:
    """T-Former's class token -> group, then emotion; frames, and what keeps them with the video."""
    token = encoder(x, part(weights, "encoder."), layers, "spatial_transformer")[0]
    of_groups, scores = softmax(linear(token, weights, "groups")), linear(token, weights, "fc")
    logits = []
    for k, group in enumerate(groups):
        members = [j for j, other in enumerate(groups) if other == group]
        within = softmax(scores[members])[members.index(k)]
        logits.append(np.log(of_groups[group] * within))
    frames = linear(x, weights, "frame")
    kept = np.log(sum(map(softmax, frames)) / len(frames))
    return np.array(logits), frames, divergence(np.array(logits), kept)


def logo_former(x: Array, weights: Weights, layers: int, instance: int) -> tuple[Array, Array]:
    """LOGO-Former over time; the names are those of its public port, which lacks two norms."""
    x = x + weights["time_embed"]
    for n in range(layers):
        name = f"transformer_layers.layers.{n}"
        near, far, feed = f"{name}.attentions.0", f"{name}.attentions.1", f"{name}.ffns.0"
        normed = layer_norm(x, weights, f"{near}.norm")
        mixed = [
            attention(rows, weights, f"{near}.qkv") for rows in np.split(normed, len(x) // instance)
        ]
        x = x + linear(np.concatenate(mixed), weights, f"{near}.proj")
        normed = layer_norm(x, weights, f"{far}.q_norm")
        kernel = weights[f"{far}.sr.weight"]  # [D, frames of a window]
        pooled = [
            sum(kernel[:, j] * row for j, row in enumerate(rows)) + weights[f"{far}.sr.bias"]
            for rows in np.split(normed, len(x) // instance)
        ]
        memory = linear(layer_norm(np.array(pooled), weights, f"{far}.norm"), weights, f"{far}.kv")
        asked = heads(linear(normed, weights, f"{far}.q"), *np.split(memory, 2, axis=1))
        x = x + linear(asked, weights, f"{far}.proj")
        hidden = linear(layer_norm(x, weights, f"{feed}.norm"), weights, f"{feed}.layers.0")
        erf = np.vectorize(math.erf)(hidden / math.sqrt(2))
        x = x + linear(hidden * (1 + erf) / 2, weights, f"{feed}.layers.3")
    frames = linear(layer_norm(x, weights, "norm"), weights, "fc")
    return sum(frames) / len(frames), frames


def unpublished(weights: Weights) -> dict[str, Array]:
    """Our own names without axes, where no code was published; matrices are [outputs, inputs]."""
    parts = [(name.rpartition("_"), value) for name, value in weights.items()]
    return {name: value.T if axes == "RIO" else value for (name, _, axes), value in parts}


def published(kind: str, weights: Weights) -> dict[str, Array]:
    """The parameters of one run of ``head.kind``, by the authors' names and in their shapes."""
    if kind in _ENCODERS:
        prefix, name = _ENCODERS[kind]
        own = part(weights, "encoder.")
        found = {
            f"{prefix}cls_token": own["token_RD"][None, None],
            f"{prefix}pos_embedding": own["positions_RLD"][None],
        }
        for n in range(sum(key.endswith("up.bias_RO") for key in own)):
            found |= _layer(part(own, f"layers.{n}."), f"{prefix}{name}.layers.{n}")
    elif kind == "est":
        return _est(weights)
    elif kind == "s2d":
        return _s2d(weights)
    elif kind == "vadclip":
        return _vadclip(weights)
    elif kind == "grace":
        return _grace(weights)
    elif kind == "cliper":
        return {}
    elif kind == "logo_former":
        return _logo_former(weights)
    elif kind == "dpcnet":
        return unpublished(weights)
    elif kind in ("linear", "mlp"):
        found = {}
        for n in range(sum(key.endswith("bias_RO") for key in weights) - 1):
            found |= _linear(weights, f"hidden.{n}", str(n))
    else:
        found = published_lstm(part(weights, "lstm.layers."))
    for name in ("change", "groups", "frame"):
        found |= _linear(weights, name, name) if f"{name}.bias_RO" in weights else {}
    if kind == "m3dfel":
        found |= {
            "to_qkv.weight": weights["qkv.weight_RIO"].T,
            "norm.mean_weight": weights["norm.mean_R2"],
            "norm.var_weight": weights["norm.variance_R2"],
            "norm.weight": weights["norm.weight_RE"][None, :, None],
            "norm.bias": weights["norm.bias_RE"][None, :, None],
            "pwconv.weight": weights["join_RNJ"][None],
            "pwconv.bias": weights["join_bias_R"][None],
        }
    if kind == "emoclip":
        found["logit_scale"] = weights["scale_R"]
    reads_texts = kind in ("dfer_clip", "emoclip")
    return found if reads_texts else found | _linear(weights, "classifier", "fc")


_ENCODERS = {
    "transformer": ("t_former.", "spatial_transformer"),
    "dfer_clip": ("temporal_net.", "temporal_transformer"),
    "emoclip": ("temporal.", "temporal_transformer"),
    "nr_dfernet": ("encoder.", "spatial_transformer"),
    "aen": ("encoder.", "spatial_transformer"),
}


def _linear(weights: Weights, ours: str, theirs: str) -> dict[str, Array]:
    weight, bias = weights[f"{ours}.weight_RIO"], weights[f"{ours}.bias_RO"]
    return {f"{theirs}.weight": weight.T, f"{theirs}.bias": bias}


def _layer(weights: Weights, name: str) -> dict[str, Array]:
    """A layer of Former-DFER's and DFER-CLIP's transformer."""
    found = {f"{name}.0.fn.fn.to_qkv.weight": weights["qkv.weight_RIO"].T}
    linears = {"out": "0.fn.fn.to_out.0", "up": "1.fn.fn.net.0", "down": "1.fn.fn.net.3"}
    for ours, theirs in linears.items():
        found |= _linear(weights, ours, f"{name}.{theirs}")
    for ours, theirs in {"norm_attention": "0.fn.norm", "norm_mlp": "1.fn.norm"}.items():
        found[f"{name}.{theirs}.weight"] = weights[f"{ours}.weight_RD"]
        found[f"{name}.{theirs}.bias"] = weights[f"{ours}.bias_RD"]
    return found


def _norm(weights: Weights, ours: str, theirs: str) -> dict[str, Array]:
    weight, bias = weights[f"{ours}.weight_RD"], weights[f"{ours}.bias_RD"]
    return {f"{theirs}.weight": weight, f"{theirs}.bias": bias}


def _attention(weights: Weights, ours: Sequence[str], out: str, theirs: str) -> dict[str, Array]:
    """One of torch.nn.MultiheadAttention; zeros for queries and keys that change nothing."""
    weight = np.concatenate([weights[f"{own}.weight_RIO"].T for own in ours])
    bias = np.concatenate([weights[f"{own}.bias_RO"] for own in ours])
    lacking = 3 * weight.shape[1] - len(weight)
    found = _linear(weights, out, f"{theirs}.out_proj")
    found[f"{theirs}.in_proj_weight"] = np.pad(weight, [(lacking, 0), (0, 0)])
    found[f"{theirs}.in_proj_bias"] = np.pad(bias, (lacking, 0))
    return found


def _est(weights: Weights) -> dict[str, Array]:
    found = {"query_embed.weight": weights["query_RD"][None]}
    found |= _attention(weights, ["snippets.qkv"], "snippets.out", "attn")
    found |= _norm(weights, "snippets.norm", "norm1")
    depth = sum(key.endswith("memory.bias_RO") for key in weights)
    for n in range(depth):
        ours, theirs = f"encoder.{n}", f"transformer.encoder.layers.{n}"
        found |= _attention(weights, [f"{ours}.qkv"], f"{ours}.out", f"{theirs}.self_attn")
        found |= _norm(weights, f"{ours}.norm_attention", f"{theirs}.norm1")
        found |= _norm(weights, f"{ours}.norm_mlp", f"{theirs}.norm2")
        found |= _linear(weights, f"{ours}.up", f"{theirs}.linear1")
        found |= _linear(weights, f"{ours}.down", f"{theirs}.linear2")
        ours, theirs = f"decoder.{n}", f"transformer.decoder.layers.{n}"
        found |= _attention(weights, [f"{ours}.value"], f"{ours}.value_out", f"{theirs}.self_attn")
        asking = [f"{ours}.query", f"{ours}.memory"]
        found |= _attention(weights, asking, f"{ours}.out", f"{theirs}.multihead_attn")
        for m in range(3):
            found |= _norm(weights, f"{ours}.norms.{m}", f"{theirs}.norm{m + 1}")
        found |= _linear(weights, f"{ours}.up", f"{theirs}.linear1")
        found |= _linear(weights, f"{ours}.down", f"{theirs}.linear2")
    found |= _norm(weights, f"encoder.{depth}", "transformer.encoder.norm")
    found |= _norm(weights, "norm", "transformer.decoder.norm")
    layers = {"first": "0", "second": "2", "classifier": "5.0"}
    for ours, theirs in layers.items():
        found |= _linear(weights, ours, f"classifier.{theirs}")
    return found


def _s2d(weights: Weights) -> dict[str, Array]:
    found = {"temporal_embedding": weights["positions_RTD"][None]}
    for n in range(sum(key.endswith("last_up.bias_RO") for key in weights)):
        ours, theirs = f"adapters.{n}", f"prompt_blocks.{n}.TMA"
        found |= _norm(weights, f"{ours}.norm_in", f"prompt_norms.{n}")
        found |= _norm(weights, f"{ours}.norm", f"{theirs}.norm")
        found[f"{theirs}.T_Adapter.attn.qkv.weight"] = weights[f"{ours}.qkv.weight_RIO"].T
        layers = {"down": "T_Adapter.D_fc1", "out": "T_Adapter.attn.proj", "up": "T_Adapter.D_fc2"}
        layers |= {"last_down": "S_Adapter.D_fc1", "last_up": "S_Adapter.D_fc2"}
        for own, other in layers.items():
            found |= _linear(weights, f"{ours}.{own}", f"{theirs}.{other}")
    return found | _linear(weights, "classifier", "head.fc_cls")


def _vadclip(weights: Weights) -> dict[str, Array]:
    found = {"frame_position_embeddings.weight": weights["positions_RTD"]}
    for n in range(sum(key.endswith("qkv.bias_RO") for key in weights)):
        ours, theirs = f"local.{n}", f"temporal.resblocks.{n}"
        found |= _attention(weights, [f"{ours}.qkv"], f"{ours}.out", f"{theirs}.attn")
        found |= _norm(weights, f"{ours}.norm_attention", f"{theirs}.ln_1")
        found |= _norm(weights, f"{ours}.norm_mlp", f"{theirs}.ln_2")
        found |= _linear(weights, f"{ours}.up", f"{theirs}.mlp.c_fc")
        found |= _linear(weights, f"{ours}.down", f"{theirs}.mlp.c_proj")
    for ours, (first, second) in {"similar": ("gc1", "gc2"), "near": ("gc3", "gc4")}.items():
        found[f"{first}.weight"] = weights[f"{ours}.first.weight_RIO"]
        found[f"{second}.weight"] = weights[f"{ours}.second.weight_RIO"]
        kernel = weights[f"{ours}.beside.weight_RIO"].T  # features, then taps
        found[f"{first}.residual.weight"] = kernel.reshape(len(kernel), -1, 5)
        found[f"{first}.residual.bias"] = weights[f"{ours}.beside.bias_RO"]
    for ours, theirs in {"text_mlp": "mlp1", "score_mlp": "mlp2"}.items():
        found |= _linear(weights, f"{ours}.up", f"{theirs}.c_fc")
        found |= _linear(weights, f"{ours}.down", f"{theirs}.c_proj")
    return found | _linear(weights, "join", "linear") | _linear(weights, "score", "classifier")


def _grace(weights: Weights) -> dict[str, Array]:
    found = {"positions": weights["positions_RTD"], "gain": weights["motion_R"]}
    for n in range(sum(key.endswith("qkv.bias_RO") for key in weights)):
        own = f"layers.{n}"
        found |= _attention(weights, [f"{own}.qkv"], f"{own}.out", f"{own}.self_attn")
        found |= _norm(weights, f"{own}.norm_attention", f"{own}.norm1")
        found |= _norm(weights, f"{own}.norm_mlp", f"{own}.norm2")
        found |= _linear(weights, f"{own}.up", f"{own}.linear1")
        found |= _linear(weights, f"{own}.down", f"{own}.linear2")
    return found


def _logo_former(weights: Weights) -> dict[str, Array]:
    found = {"time_embed": weights["positions_RTD"]} | _norm(weights, "norm", "norm")
    for n in range(sum(key.endswith("pool_RwD") for key in weights)):
        own, name = part(weights, f"layers.{n}."), f"transformer_layers.layers.{n}"
        near, far, feed = f"{name}.attentions.0", f"{name}.attentions.1", f"{name}.ffns.0"
        for ours, theirs in {
            "qkv": f"{near}.qkv",
            "query": f"{far}.q",
            "memory": f"{far}.kv",
        }.items():
            found[f"{theirs}.weight"] = own[f"{ours}.weight_RIO"].T
        found |= {f"{far}.sr.weight": own["pool_RwD"].T, f"{far}.sr.bias": own["pool_bias_RD"]}
        linears = {"local_out": f"{near}.proj", "global_out": f"{far}.proj"}
        linears |= {"up": f"{feed}.layers.0", "down": f"{feed}.layers.3"}
        for ours, theirs in linears.items():
            found |= _linear(own, ours, theirs)
        norms = {"norms.0": f"{near}.norm", "norms.1": f"{far}.q_norm", "norms.2": f"{feed}.norm"}
        for ours, theirs in (norms | {"pool_norm": f"{far}.norm"}).items():
            found |= _norm(own, ours, theirs)
    return found | _linear(weights, "classifier", "fc")


def published_lstm(weights: Weights) -> dict[str, Array]:
    """The layers of a bidirectional LSTM, as torch.nn.LSTM has them in a module ``lstm``."""
    found = {}
    for n in range(sum(key.endswith("bias_R2G") for key in weights)):
        own = part(weights, f"{n}.")
        weights_ih = np.split(own["given.weight_RIO"], 2, axis=1)
        biases_ih = np.split(own["given.bias_RO"], 2)
        for d, reverse in enumerate(("", "_reverse")):
            end = f"l{n}{reverse}"
            found[f"lstm.weight_ih_{end}"] = weights_ih[d].T
            found[f"lstm.bias_ih_{end}"] = biases_ih[d]
            found[f"lstm.weight_hh_{end}"] = own["weight_R2HG"][d].T
            found[f"lstm.bias_hh_{end}"] = own["bias_R2G"][d]
    return found
