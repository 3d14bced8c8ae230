"""Runs that train as one program -> what that costs: seconds, and bytes of memory.

Both are counted from the shapes of the layers that a step passes. Seconds follow from the counts by
the rates of a kind of device in cost.json, where ``python -m benchmarks placement`` writes what it
has measured. Only their proportions matter: they decide which stack is trained where.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from cache.store import Store
from pipeline.config import (
    CLIPER_TEXTS,
    HeadConfig,
    MethodConfig,
    PromptConfig,
    Run,
    TemporalConfig,
    effective,
)
from pipeline.datasets.texts import ClassTexts, class_texts, padded_phrases

RATES = Path(__file__).with_name("cost.json")
SIZE_MAX = 1 << 20  # of what a text tower may say of itself
VOCABULARY = 49_408  # of CLIP's text towers
LOADED = 3  # times the weights of the text tower: as a file, as tensors, in the tower
COPIES = 4  # of a parameter: itself, gradient, velocity, that of the reported epoch
MOVED = 7  # times that a step of SGD reads or writes a parameter
TOKEN = re.compile(r"\w+|[^\w\s]")  # about what the tokenizer makes one token of


@dataclass(frozen=True)
class Sizes:
    """What a store says of the shapes of its runs."""

    frames: int  # T, of a view
    size: int  # D, features of a frame in the network
    texts: ClassTexts
    tower_width: int  # W
    tower_layers: int
    folds: Mapping[str, tuple[int, int]]  # numbers of training and test videos
    features: int = 0  # of a frame in the store, where that may be another number
    is_projected: bool = False  # to D, in networks that read texts
    tower_padding: int = 0  # positions that every prompt takes, unless they share a short sequence

    def of_head(self, head: HeadConfig) -> int:
        """D in a network: that of the texts, if it reads them, else that of a frame."""
        return self.size if head.reads_texts else self.features or self.size

    @property
    def tower_bytes(self) -> int:
        """Memory for the text tower, which the runs of a stack share, while it is loaded."""
        width = self.tower_width
        return LOADED * 4 * width * (VOCABULARY + 12 * width * self.tower_layers)


def sizes_of(store: Store) -> Sizes:
    """The sizes of a store."""
    texts = class_texts(store.classes, store.texts)
    tower = store.text_config.get("text_cfg")
    width, layers, length = (_said(tower, name) for name in ("width", "layers", "context_length"))
    is_packed = not (isinstance(tower, dict) and tower.get("no_causal_mask"))
    folds = {name: (len(train), len(test)) for name, train, test in store.folds}
    padding = 0 if is_packed else length
    return Sizes(
        store.frames,
        store.network_dim,
        texts,
        width,
        layers,
        folds,
        store.dim,
        store.has_texts and not store.is_aligned,
        padding,
    )


def _said(tower: object, name: str) -> int:
    """A size of the text tower; 0 if it cannot be, which loading the tower explains."""
    value = tower.get(name) if isinstance(tower, dict) else None
    return value if isinstance(value, int) and 0 < value < SIZE_MAX else 0


@dataclass(frozen=True)
class Rates:
    """Seconds on a kind of device."""

    step: float  # of a step, whatever it computes
    layer: float  # of a layer in a step, whatever it computes
    gflop: float  # of 10^9 operations of products
    million: float  # of 10^6 numbers read or written


def read_rates(kind: Literal["cpu", "cuda"]) -> Rates:
    """The rates of a kind of device."""
    return Rates(**json.loads(RATES.read_text())[kind]["seconds"])


class Work(NamedTuple):
    """What one run computes in a step, forward and backward."""

    layers: int
    gflop: float  # 10^9 operations of products
    million: float  # 10^6 numbers read or written


def seconds_of(stack: Sequence[Run], sizes: Sizes, rates: Rates) -> float:
    """Seconds in which runs with equal shapes train as one program, all their epochs."""
    method = stack[0].method
    work, batch = work_of(method, sizes), method.optimiser.batch
    train, test = (max(sizes.folds[run.fold][part] for run in stack) for part in (0, 1))
    steps = math.ceil(train / batch)
    evaluated = test / batch / 3  # in steps: there is no backward pass, which is twice the forward
    together = rates.step + rates.layer * work.layers
    each = rates.gflop * work.gflop + rates.million * work.million
    return method.optimiser.epochs * (steps * together + (steps + evaluated) * each * len(stack))


def work_of(method: MethodConfig, sizes: Sizes) -> Work:
    """The work of one run in a step."""
    layers, batch = _network(method, sizes), method.optimiser.batch
    products = sum(
        own.count * own.positions(batch) * (own.weights * own.passes + own.mixed * (3 - own.first))
        for own in layers
    )
    moved = 3 * _kept(layers, batch) + MOVED * _parameters(layers)
    return Work(sum(own.count for own in layers), 2e-9 * products, 1e-6 * moved)


def bytes_of(stack: Sequence[Run], sizes: Sizes) -> int:
    """Memory that each run of a stack needs: its parameters, and the numbers of a step."""
    from pipeline.evaluate.predictions import EVALUATION_VIDEOS

    method = stack[0].method
    layers, optimiser = _network(method, sizes), method.optimiser
    kept = _kept(layers, optimiser.micro_batch or optimiser.batch)
    # Nothing is kept of an evaluation, but one layer after the other has to be computed.
    tested = min(EVALUATION_VIDEOS, max(test for _, test in sizes.folds.values()))
    evaluated = max(own.positions(tested) * own.kept for own in layers)
    averaged = any(run.method.optimiser.average != "none" for run in stack)
    copies = COPIES + averaged + (optimiser.kind == "adamw")
    return 4 * (copies * _parameters(layers) + max(kept, evaluated))


def kept_bytes(method: MethodConfig, sizes: Sizes) -> int:
    """What the forward pass of a step keeps of each run for the backward pass."""
    return 4 * _kept(_network(method, sizes), method.optimiser.batch)


@dataclass(frozen=True)
class _Layers:
    """Equal layers, which positions pass one after the other."""

    count: int
    places: int  # positions of each video, or of each run if its videos share them
    weights: int  # numbers in the matrices of a layer; each is multiplied for every position
    mixed: int  # further multiplications for every position, those of attention
    kept: int  # numbers of every position that the backward pass needs
    shared: bool = False
    trained: bool = True
    first: bool = False  # of a network, whose input needs no gradient

    @property
    def passes(self) -> int:
        """How often its products are computed: forward, and backward for its input and weights."""
        return 3 - (not self.trained) - self.first

    def positions(self, videos: int) -> int:
        """Positions of a run in a step of so many videos."""
        return self.places * (1 if self.shared else videos)


def _kept(layers: Sequence[_Layers], videos: int) -> int:
    return sum(own.count * own.positions(videos) * own.kept for own in layers)


def _parameters(layers: Sequence[_Layers]) -> int:
    return sum(own.count * own.weights for own in layers if own.trained)


def _network(method: MethodConfig, sizes: Sizes) -> list[_Layers]:
    """All layers of a network that make a difference to its cost."""
    ours = method.head.kind == "tgdfer"
    parts = (_projection, *((_temporal, _label) if ours else (_head,)), _texts)
    return [own for part in parts for own in part(method, sizes) if own.count]


def _projection(method: MethodConfig, sizes: Sizes) -> Iterator[_Layers]:
    """What brings frames of another encoder than the texts' own to their D."""
    if sizes.is_projected and method.head.reads_texts:
        frames, inputs = len(method.input.chosen(sizes.frames)), sizes.features
        yield _Layers(1, frames, inputs * sizes.size, 0, inputs, first=True)


def _head(method: MethodConfig, sizes: Sizes) -> Iterator[_Layers]:
    """The network of another publication, but for its texts."""
    head, D, K = method.head, sizes.of_head(method.head), len(sizes.texts.classes)
    frames, hidden = len(method.input.chosen(sizes.frames)), head.width(D)
    tokens = frames + 1  # the frames, and their mean or the class token
    if head.kind == "linear":
        yield _Layers(1, frames, K * D, 0, D, first=True)
    elif head.kind == "mlp":
        yield _Layers(1, tokens, D * hidden, 0, D + hidden, first=True)
        yield _Layers(head.depth - 1, tokens, hidden * hidden, 0, hidden)
        yield _Layers(1, tokens, K * hidden, 0, 0)
    elif head.kind == "bilstm":
        yield from _lstm(head.depth, frames, D, hidden)
        yield _Layers(1, frames, 2 * K * hidden, 0, 2 * hidden)
    elif head.kind == "m3dfel":
        instances, states = frames // head.instance, 2 * hidden
        yield from _lstm(head.depth, instances, D, hidden)
        yield _Layers(1, instances, 3 * states * states, 2 * instances * states, 8 * states)
        yield _Layers(1, instances, K * states, 0, 2 * states)
    elif head.kind == "s2d":
        weights = 4 * D * hidden + 4 * hidden * hidden
        yield _Layers(1, 0, frames * D, 0, 0)  # positions
        yield _Layers(head.depth, frames, weights, 2 * frames * hidden, 6 * D + 10 * hidden)
        yield _Layers(1, frames + 1, K * D, 0, D)
    elif head.kind == "vadclip":
        yield from _vadclip(head, frames, D, K)
    elif head.kind == "grace":
        yield from _grace(method, sizes, D, hidden)
    elif head.kind == "cliper":
        texts = CLIPER_TEXTS * K
        yield _Layers(1, tokens, 0, texts * D, D + texts, first=True)
        yield _Layers(1, 0, texts * method.prompts.context_length * sizes.tower_width, 0, 0)
    elif head.kind == "est":
        snippets = frames // head.instance
        yield _Layers(1, frames, 4 * D * D, 2 * head.instance * D, 9 * D)
        yield _encoder(head.depth, snippets, D, hidden, snippets)
        yield _Layers(head.depth, snippets, 2 * D * D, 0, 2 * D)
        yield _Layers(head.depth, 1, 4 * D * D + 2 * D * hidden, 2 * snippets * D, 14 * D + hidden)
        classifier = 128 * D + 64 * 128 + K * 64
        yield _Layers(1, snippets + 1, classifier, 0, 3 * D + 192)
    elif head.kind == "nr_dfernet":
        snippets, places = frames // head.instance, 1 + head.instance
        yield _Layers(1, frames, D * D, 0, 3 * D)
        yield _encoder(head.depth, snippets * places, D, hidden, places)
        yield _Layers(1, snippets, K * D, 0, D)
    elif head.kind == "dpcnet":
        yield _Layers(1, frames, 2 * D * hidden, 0, 5 * D + 3 * hidden)
        yield _Layers(1, frames, 2 * K * D, 0, 0)
    elif head.kind == "aen":
        yield _encoder(head.depth, tokens, D, hidden, tokens)
        yield _Layers(1, frames, K * D, 0, 2 * D)
    elif head.kind == "logo_former":
        windows = frames // head.instance
        mixed = 2 * (head.instance + windows) * D
        yield _Layers(head.depth, frames, D * (6 * D + 2 * hidden), mixed, 15 * D + 2 * hidden)
        yield _Layers(head.depth, windows, 2 * D * D, 0, 5 * D)
        yield _Layers(1, frames, K * D, 0, 2 * D)
    else:
        yield _encoder(head.depth, tokens, D, hidden, tokens)
        cosines = head.reads_texts
        yield _Layers(1, tokens, 0 if cosines else K * D, K * D if cosines else 0, 2 * D)


def _vadclip(head: HeadConfig, frames: int, D: int, K: int) -> Iterator[_Layers]:
    hidden, half = head.width(D), D // 2
    local = _encoder(head.depth, frames, D, hidden, head.instance)
    yield replace(local, kept=local.kept + hidden)  # QuickGELU keeps what its sigmoid gives
    yield _Layers(2, frames, 6 * D * half + half * half, 2 * frames * half, 10 * D)
    yield _Layers(1, frames, D * D + 2 * D * hidden, (2 + K) * D, 4 * D + 3 * hidden)
    yield _Layers(1, K, 2 * D * hidden, 0, 4 * D + 3 * hidden)


def _grace(method: MethodConfig, sizes: Sizes, D: int, hidden: int) -> Iterator[_Layers]:
    frames = len(method.input.chosen(sizes.frames))
    phrases = len(padded_phrases(sizes.texts.of(method.prompts.fine_text))[0])
    yield _encoder(method.head.depth, frames, D, hidden, frames)
    yield _Layers(1, frames, 0, phrases * D, 2 * D + 14 * phrases)


def _lstm(depth: int, frames: int, inputs: int, hidden: int) -> Iterator[_Layers]:
    """Bidirectional LSTMs: both directions at once, one frame after the other."""
    recurrent = 8 * hidden * hidden
    yield _Layers(1, frames, 8 * hidden * inputs, 0, inputs, first=True)
    yield _Layers(depth - 1, frames, 16 * hidden * hidden, 0, 2 * hidden)
    yield _Layers(depth * frames, 1, 0, recurrent, 14 * hidden)
    yield _Layers(depth, 0, recurrent, 0, 0)  # weights that the frames share


def _temporal(method: MethodConfig, sizes: Sizes) -> Iterator[_Layers]:
    """Fine and coarse module, and the layer that joins them."""
    temporal, D = method.temporal, sizes.size
    frames, hidden = len(method.input.chosen(sizes.frames)), max(1, round(D * temporal.mlp_ratio))
    if temporal.fine_depth:
        yield from _fine(temporal, frames, D, hidden)
    keys = temporal.coarse_keys or frames
    yield _encoder(temporal.coarse_depth, frames, D, hidden, keys)
    branches = (temporal.fine_depth > 0) + (temporal.coarse_depth > 0)
    yield _Layers(min(branches, 1), frames, branches * D * D, 0, D)


def _fine(temporal: TemporalConfig, frames: int, D: int, hidden: int) -> Iterator[_Layers]:
    window = temporal.window
    places = window * len(temporal.window_starts(frames))
    shared = temporal.positions == "shared"  # the first layer projects a frame once for all windows
    yield _encoder(temporal.fine_depth - shared, places, D, hidden, window)
    yield _Layers(int(shared), frames, 3 * D * D, 0, 3 * D)
    kept = 7 * D + 2 * hidden
    yield _Layers(int(shared), places, D * (D + 2 * hidden), 2 * window * D, kept)


def _encoder(depth: int, places: int, D: int, hidden: int, keys: int) -> _Layers:
    """Layers of attention to so many keys and an MLP."""
    return _Layers(depth, places, D * (4 * D + 2 * hidden), 2 * keys * D, 10 * D + 2 * hidden)


def _label(method: MethodConfig, sizes: Sizes) -> Iterator[_Layers]:
    """Cosines of frames and labels, and the MLP of eq. 10: for each video, if it changes labels."""
    visual, D, K = method.label.visual_prompt, sizes.size, len(sizes.texts.classes)
    frames = len(method.input.chosen(sizes.frames))
    yield _Layers(1, frames, 0, (1 if visual == "none" else 3) * K * D, 4 * D)
    if method.label.fusion == "mlp":
        inputs = 2 * D if visual == "concat" else D
        yield _Layers(1, K, 4 * D * (inputs + D), 0, 14 * D, shared=visual == "none")


def _texts(method: MethodConfig, sizes: Sizes) -> Iterator[_Layers]:
    """The frozen text tower, for prompts that change from step to step, or from video to video."""
    if not method.head.reads_texts:
        return
    prompts, label = effective(method).prompts, effective(method).label
    fine, coarse = sizes.texts.of(prompts.fine_text), sizes.texts.of(prompts.coarse_text)
    if method.head.kind == "cliper":
        fine = ("",) * CLIPER_TEXTS * len(fine)  # the words before what is learned are shared
    elif method.head.kind == "grace":
        fine = tuple(padded_phrases(fine)[0])
    length = prompts.context_length
    if prompts.fine_learnable:
        yield from _tower(sizes, _positions(sizes, fine, prompts, length), len(fine))
    if prompts.coarse_learnable and label.fusion == "mlp":
        yield from _tower(sizes, _positions(sizes, coarse, prompts, length), len(coarse))
    if label.visual_prompt == "prepend":
        length *= prompts.fine_learnable
        places = _positions(sizes, fine, prompts, length, visual=1)
        yield from _tower(sizes, places, len(fine), shared=False)


def _tower(sizes: Sizes, places: int, ends: int, shared: bool = True) -> Iterator[_Layers]:
    """Layers of the tower; the last one computes little but keys and values, and its ends."""
    W, last = sizes.tower_width, min(1, sizes.tower_layers)
    own = _Layers(last, places, 3 * W * W, 0, 4 * W, shared, trained=False)
    yield own
    mixed, kept = 2 * places * W, 14 * W
    yield replace(own, places=ends, weights=9 * W * W, mixed=mixed, kept=kept - 4 * W)
    yield replace(own, count=sizes.tower_layers - last, weights=12 * W * W, mixed=mixed, kept=kept)


def _positions(
    sizes: Sizes, texts: Sequence[str], prompts: PromptConfig, context: int, visual: int = 0
) -> int:
    """About how many positions the prompts take."""
    if sizes.tower_padding:
        return len(texts) * sizes.tower_padding
    tokens = sum(len(TOKEN.findall(text)) + 1 for text in texts)  # and the token at the end
    once = prompts.context == "shared" and prompts.position == "end" and not visual
    return 1 + tokens + context * (1 if once else len(texts)) + visual * len(texts)
