"""All settings: TOML and KEY=VALUE -> the frozen configuration of a method or a run.

The defaults are the paper's values; see docs/method.md.
"""

import difflib
import math
import re
import reprlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache.errors import RefusedError
from cache.outside import read_text

CONFIG_BYTES_MAX = 1 << 20
SETTING_MAX = 2000  # characters of KEY=VALUE
FRAMES_MAX = VIEWS_MAX = 1000


class Settings(BaseModel):
    """Base class of all settings; refuses unknown keys, NaN, infinity, and ``true`` for 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class InputConfig(Settings):
    """How the encoder's features are scaled before the network; not in the paper."""

    scale: Literal["none", "layer_norm", "standardise", "whiten"] = Field(
        "none",
        description="none; each frame normalised; or by statistics of the run's training videos",
    )
    centre_text: bool = Field(
        False, description="subtract from every text feature their mean over the classes"
    )
    frames: int = Field(
        0,
        ge=0,
        le=FRAMES_MAX,
        description="frames of a view that are used, evenly spaced; 0: all in the store",
    )

    def chosen(self, frames: int) -> list[int]:
        """Which of a store's T frames are used: the middles of n equal segments of them.

        >>> InputConfig(frames=4).chosen(10), InputConfig().chosen(3)
        ([1, 3, 6, 8], [0, 1, 2])

        Raises RefusedError if the store has fewer.
        """
        count = self.frames or frames
        if count > frames:
            raise RefusedError(
                f"input.frames={count} is more than the {frames} frames of a view in the store; "
                f"choose at most {frames}, or extract again with --frames {count}"
            )
        return [(2 * n + 1) * frames // (2 * count) for n in range(count)]

    def refuse_leaving_out_the_only_frame(self, frames: int) -> None:
        """Raises RefusedError if only one of a store's T frames is used."""
        if len(self.chosen(frames)) == 1:
            raise RefusedError(
                "nothing is left of a video without the only frame that is used (input.frames); "
                "use 2 frames or more, or no --leave-one-out"
            )


class HeadConfig(Settings):
    """The network on the features: TG-DFER, or that of another publication (docs/baselines.md)."""

    kind: Literal[
        "tgdfer",
        "linear",
        "mlp",
        "bilstm",
        "transformer",
        "dfer_clip",
        "emoclip",
        "cliper",
        "m3dfel",
        "est",
        "s2d",
        "vadclip",
        "grace",
        "nr_dfernet",
        "dpcnet",
        "aen",
        "logo_former",
    ] = Field(
        "tgdfer", description="TG-DFER, or another publication's network on the same features"
    )
    layers: int = Field(
        0,
        ge=0,
        le=12,
        description="hidden, recurrent or encoder layers, or adapters; 0: as published",
    )
    hidden: int = Field(
        0,
        ge=0,
        le=8192,
        description="width of hidden layers, of an LSTM's direction, of an encoder's MLP; "
        "0: as published",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of each layer's output set to zero in training"
    )
    instance: int = Field(
        4,
        ge=1,
        le=FRAMES_MAX,
        description="frames per instance of m3dfel, snippet of est and nr_dfernet, or window of "
        "logo_former and vadclip",
    )

    @property
    def title(self) -> str:
        """What reports call it."""
        return "TG-DFER" if self.kind == "tgdfer" else f"head {self.kind}"

    @property
    def reads_texts(self) -> bool:
        """Whether its logits are cosines with class texts, divided by ``label.temperature``."""
        return self.kind in ("tgdfer", "dfer_clip", "emoclip", "cliper", "vadclip", "grace")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.layers or _PUBLISHED[self.kind][0]

    def width(self, size: int) -> int:
        """Hidden width at feature size D."""
        return self.hidden or math.ceil(_PUBLISHED[self.kind][1] * size)

    def refuse_misfit(self, frames: int, size: int) -> None:
        """Raises RefusedError for T frames or D features that it cannot divide."""
        if self.kind in _DIVIDING and (frames % self.instance or frames == self.instance):
            raise RefusedError(
                f"head.instance={self.instance} does not divide the {frames} frames that are used "
                "into two or more instances; choose another, or other input.frames"
            )
        heads = ATTENTION_HEADS.get(self.kind, 1)
        hidden = self.width(size)
        attended = {"m3dfel": 2 * hidden, "s2d": hidden}.get(self.kind, size)
        if attended % heads:
            raise RefusedError(
                f"head.kind={self.kind} has {heads} attention heads, which do not divide "
                f"{attended} features; choose another head.kind"
                + (", or another encoder" if attended == size else ", or another head.hidden")
            )


# As published, or ours where nothing is; nr_dfernet and aen have T-Former's.
ATTENTION_HEADS = {
    "transformer": 8,
    "dfer_clip": 8,
    "emoclip": 8,
    "m3dfel": 8,
    "est": 4,
    "nr_dfernet": 8,
    "aen": 8,
    "logo_former": 8,
    "s2d": 8,
    "vadclip": 1,
    "grace": 8,
}
# The frames, into instances, snippets or windows.
_DIVIDING = ("m3dfel", "est", "nr_dfernet", "logo_former", "vadclip")
SEVERAL_TEXTS = ("cliper", "grace")  # of each class
CLIPER_TEXTS = 5  # of each class, as published
# Layers, and hidden width as a multiple of D.
_PUBLISHED = {
    "linear": (0, 0),
    "mlp": (1, 1),
    "bilstm": (2, 1),
    "transformer": (3, 2),
    "dfer_clip": (1, 2),
    "emoclip": (2, 4),
    "cliper": (0, 0),
    "m3dfel": (2, 1),
    "est": (4, 4),
    "s2d": (1, 0.25),
    "vadclip": (2, 4),
    "grace": (1, 2),
    "nr_dfernet": (1, 2),  # not published
    "dpcnet": (1, 1 / 16),  # not published
    "aen": (1, 2),  # not published
    "logo_former": (4, 4),
}


class TemporalConfig(Settings):
    """The multi-grained temporal network (eqs. 2-5)."""

    fine_depth: int = Field(1, ge=0, le=12, description="encoder layers inside windows; 0: none")
    coarse_depth: int = Field(1, ge=0, le=12, description="encoder layers over all frames; 0: none")
    coarse_keys: int = Field(
        0,
        ge=0,
        le=FRAMES_MAX,
        description="segments whose means are the coarse layers' keys and values; 0: every frame",
    )
    window: int = Field(4, ge=1, le=FRAMES_MAX, description="frames per window of the fine module")
    stride: int = Field(
        1, ge=1, le=FRAMES_MAX, description="frames from one window's start to the next"
    )
    positions: Literal["shared", "per_window"] = Field(
        "shared", description="one positional table shared by all windows, or one per window"
    )
    merge: Literal["average", "last"] = Field(
        "average", description="a frame's output: the average over its windows, or the last one's"
    )
    norm: Literal["pre", "post"] = Field("pre", description="layer norm before or after each block")
    head_size: int = Field(
        64, ge=1, le=4096, description="features per attention head; 8 heads at D=512"
    )
    mlp_ratio: float = Field(
        2.0, gt=0, le=64, description="hidden width of each MLP, as a multiple of D"
    )
    residual: bool = Field(False, description="add the frame features to the network's output")
    init: Literal["random", "identity"] = Field(
        "random", description="identity: before the first step, X^I is the input plus positions"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of each block's output set to zero in training"
    )
    positions_std: float = Field(
        0.02, ge=0, le=100, description="standard deviation of the initial positional tables"
    )

    @model_validator(mode="after")
    def _refuse_identity_after_norm(self) -> "TemporalConfig":
        if self.init == "identity" and self.norm == "post":
            raise ValueError(
                "init identity needs norm pre: a post-norm layer is never the identity"
            )
        return self

    def heads(self, size: int) -> int:
        """Number of attention heads at feature size D; one if D is smaller than a head.

        Raises RefusedError if the head size does not divide D.
        """
        head_size = min(self.head_size, size)
        if size % head_size:
            raise RefusedError(
                f"temporal.head_size={self.head_size} does not divide {size} features; "
                "choose a divisor"
            )
        return size // head_size

    def window_starts(self, frames: int) -> list[int]:
        """First frame of each of the N = (T - w) // s + 1 windows (eq. 3).

        >>> TemporalConfig(window=4, stride=3).window_starts(16)
        [0, 3, 6, 9, 12]

        Raises RefusedError if the windows would leave a frame uncovered.
        """
        window, stride = self.window, self.stride
        if window > frames or stride > window or (frames - window) % stride:
            raise RefusedError(
                f"windows of {window} frames at stride {stride} do not cover {frames} frames "
                "without gaps; choose temporal.window and temporal.stride so that stride <= "
                "window <= frames and (frames - window) is a multiple of stride"
            )
        return list(range(0, frames - window + 1, stride))

    def refuse_more_keys(self, frames: int) -> None:
        """Raises RefusedError if there are more segments than frames."""
        if self.coarse_depth and self.coarse_keys > frames:
            raise RefusedError(
                f"temporal.coarse_keys={self.coarse_keys} is more than the {frames} frames that "
                f"are used; choose at most {frames}"
            )

    def tokens(self, frames: int) -> int:
        """Positions that pass through encoder layers per video, a measure of a step's cost."""
        windows = len(self.window_starts(frames)) if self.fine_depth else 0
        return self.fine_depth * windows * self.window + self.coarse_depth * frames


class PromptConfig(Settings):
    """Fine and coarse text of a class (eq. 6)."""

    fine_text: Literal["class", "descriptors"] = Field(
        "class", description="fine text: class names, or descriptions of facial movements"
    )
    fine_learnable: bool = Field(True, description="learnable context around the fine text")
    coarse_text: Literal["class", "descriptors"] = Field(
        "class", description="coarse text: class names, or descriptions of facial movements"
    )
    coarse_learnable: bool = Field(False, description="learnable context around the coarse text")
    context_length: int = Field(8, ge=1, le=64, description="number of learnable tokens (M)")
    context: Literal["class_specific", "shared"] = Field(
        "class_specific", description="learnable tokens per class, or shared by all classes"
    )
    position: Literal["end", "middle", "front"] = Field(
        "end", description="position of the text among the learnable tokens"
    )
    tower: Literal["trained", "random"] = Field(
        "trained", description="the text tower as it is, or with weights drawn anew (a control)"
    )
    texts: Literal["real", "permuted", "orthogonal"] = Field(
        "real", description="each class's text, another's, or orthogonal vectors (two controls)"
    )


class LabelConfig(Settings):
    """The enriched label and the bag prediction (eqs. 7-11)."""

    visual_prompt: Literal["none", "add", "prepend", "concat"] = Field(
        "add", description="how the visual prompt is combined with the fine text"
    )
    weighting: Literal["softmax", "linear"] = Field(
        "softmax", description="frame weights of the visual prompt: softmax of cosines, or cosines"
    )
    scope: Literal["per_class", "shared"] = Field(
        "per_class", description="one visual prompt per class, or one shared by all classes"
    )
    fusion: Literal["mlp", "none"] = Field(
        "mlp", description="MLP(enriched) + coarse text, or the enriched fine text as it is"
    )
    pooling: Literal[
        "mean_logits", "mean_feature", "mean_probability", "top_k", "log_sum_exp", "attention"
    ] = Field("mean_logits", description="how frames are pooled into the bag prediction")
    top_k: int = Field(
        4, ge=1, le=FRAMES_MAX, description="frames averaged per class if pooling is top_k"
    )
    temperature: float = Field(0.01, ge=1e-4, le=100, description="tau, which divides every cosine")
    init: Literal["random", "identity"] = Field(
        "random", description="identity: before the first step, the label is the coarse text"
    )
    quality: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="how much frames far from the training frames count less; 0: all count alike",
    )

    @model_validator(mode="after")
    def _refuse_what_needs_the_mlp(self) -> "LabelConfig":
        if self.init == "identity" and self.fusion == "none":
            raise ValueError("init identity needs fusion mlp, whose output it starts at zero")
        if self.visual_prompt == "concat" and self.fusion == "none":
            raise ValueError("visual_prompt concat needs fusion mlp, which brings 2D back to D")
        return self


class OptimiserConfig(Settings):
    """SGD with momentum and a multi-step schedule (§4.2 of the paper), and alternatives."""

    kind: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    epochs: int = Field(50, ge=1, le=10_000, description="passes over the training videos")
    batch: int = Field(48, ge=1, le=65_536, description="videos per step")
    lr: float = Field(
        1e-2, gt=0, le=1000, description="learning rate of all but prompts and encoder"
    )
    lr_prompts: float = Field(
        1e-3, gt=0, le=1000, description="learning rate of the learnable tokens"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD, or beta_1 of AdamW")
    weight_decay: float = Field(1e-4, ge=0, le=1000, description="weight decay, on every parameter")
    milestones: tuple[float, ...] = Field(
        (0.6, 0.8),
        strict=False,  # TOML has lists
        description="when the learning rates decay: fractions of the epochs, or whole epochs",
    )
    gamma: float = Field(0.1, gt=0, le=1, description="decay factor at each milestone")
    schedule: Literal["steps", "cosine"] = Field(
        "steps", description="decay at the milestones, or along half a cosine to zero"
    )
    warm_up: float = Field(
        0.0, ge=0, lt=1, description="share of all steps in which the rates rise from zero"
    )
    average: Literal["none", "ema", "last_epochs"] = Field(
        "none", description="evaluate an average of the weights instead of the latest"
    )
    average_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="share of the average that each step keeps, if it is ema",
    )
    average_epochs: int = Field(
        5, ge=1, le=10_000, description="epochs whose ends are averaged, if average is last_epochs"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the cross-entropy")
    target: Literal["hard", "votes"] = Field(
        "hard", description="what the loss compares with: the label, or the shares of the votes"
    )
    loss: Literal[
        "cross_entropy", "class_balanced", "logit_adjusted", "focal", "intensity_aware"
    ] = Field(
        "cross_entropy",
        description="cross-entropy as it is, corrected for rare classes, or for what is hard",
    )
    balance_beta: float = Field(
        0.999, ge=0, lt=1, description="beta of class_balanced; 0: none, near 1: by 1/n_k"
    )
    adjust_tau: float = Field(
        1.0, ge=0, le=100, description="factor of the log class shares in logit_adjusted"
    )
    focal_gamma: float = Field(
        2.0, ge=1, le=10, description="gamma of focal: how much less count videos that are learned"
    )
    intensity: float = Field(
        0.1, ge=0, le=100, description="factor of the second term of intensity_aware"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=100,
        description="alpha of the shares in which pairs of videos are mixed in training; 0: none",
    )
    oversample: float = Field(
        0.0, ge=0, le=1, description="draw rare classes more often; 1: all classes alike, 0: no"
    )
    text_rarity: float = Field(
        0.0, ge=0, le=10, description="context of class k learns at (mean n / n_k)^this rate"
    )
    augment: bool = Field(True, description="train on augmented views; if false, on the test view")
    views: int = Field(
        0, ge=0, le=VIEWS_MAX, description="augmented views to train on; 0: all in the store"
    )
    micro_batch: int = Field(
        0,
        ge=0,
        le=65_536,
        description="videos whose gradients are computed at once; 0: the whole batch",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="precision of matrix products; auto: bf16 on a GPU, else fp32"
    )
    lr_encoder: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="learning rate of the encoder; 0: frozen, above 0: --no-cached only",
    )

    @model_validator(mode="after")
    def _refuse_milestones_beyond_the_end(self) -> "OptimiserConfig":
        for milestone in self.milestones:
            if milestone <= 0 or (milestone > 1 and milestone != int(milestone)):
                raise ValueError(
                    f"milestones has {milestone:g}, expected fractions of the epochs between 0 and "
                    "1, such as 0.6, or whole epochs"
                )
            if milestone >= max(self.epochs, 1):
                raise ValueError(
                    f"milestone {milestone:g} is not before the end of {self.epochs} epochs, so "
                    "the rate would never decay; use fractions, such as milestones=[0.6, 0.8]"
                )
        return self

    def decays(self) -> tuple[int, ...]:
        """Epochs after which the learning rates decay.

        >>> OptimiserConfig(epochs=20).decays(), OptimiserConfig(milestones=(30, 40)).decays()
        ((12, 16), (30, 40))
        """
        return tuple(round(m * self.epochs) if m < 1 else int(m) for m in self.milestones)

    def resolved_precision(self, device: str) -> Literal["fp32", "bf16"]:
        """Precision of matrix products on a kind of device, ``cpu`` or ``cuda``."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if device == "cuda" else "fp32"


class SelectionConfig(Settings):
    """Which epoch of a run is reported.

    ``best_on_test`` is common in the field; its figures are optimistic, and tables say so.
    """

    rule: Literal["last", "best_on_val", "best_on_test"] = Field(
        "last", description="which epoch is reported; best_on_test is optimistic"
    )
    validation_share: float = Field(
        0.1, gt=0, le=0.5, description="share of the training videos that are held out, if any"
    )
    tested_on: Literal["test", "held_out"] = Field(
        "test",
        description="held_out: score on held-out training videos; test videos are not looked at",
    )

    @model_validator(mode="after")
    def _refuse_selection_on_what_is_scored(self) -> "SelectionConfig":
        if self.tested_on == "held_out" and self.rule != "last":
            raise ValueError("tested_on held_out needs rule last: nothing is left to select by")
        return self


class StoreConfig(Settings):
    """What the store must contain; "" and 0 accept anything."""

    encoder: str = Field("", description="name of the encoder, such as ViT-B-32-quickgelu")
    weights_sha256: str = Field("", description="sha256 of its weights")
    frames: int = Field(0, ge=0, le=FRAMES_MAX, description="frames per view")
    videos: str = Field("", description="digest of the video list")

    def requirements(self) -> dict[str, Any]:
        """Dotted fields of a store's identity -> the values that are required."""
        fields = {
            "encoder.name": self.encoder,
            "encoder.weights_sha256": self.weights_sha256,
            "frames": self.frames,
            "videos": self.videos,
        }
        return {name: value for name, value in fields.items() if value}


class MethodConfig(Settings):
    """Everything that defines a training run except its fold and seed."""

    input: InputConfig = InputConfig()
    head: HeadConfig = HeadConfig()
    temporal: TemporalConfig = TemporalConfig()
    prompts: PromptConfig = PromptConfig()
    label: LabelConfig = LabelConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    selection: SelectionConfig = SelectionConfig()
    store: StoreConfig = StoreConfig()

    @property
    def visual_prompt(self) -> Literal["none", "add", "prepend", "concat"]:
        """How the visual prompt is combined with the fine text; only TG-DFER has one."""
        return self.label.visual_prompt if self.head.kind == "tgdfer" else "none"

    @property
    def influence_scale(self) -> float:
        """What frame logits are multiplied by to be an influence: so that cosines are cosines."""
        return self.label.temperature if self.head.reads_texts else 1.0

    @model_validator(mode="after")
    def _refuse_rates_without_contexts_of_classes(self) -> "MethodConfig":
        prompts, rarity = self.prompts, self.optimiser.text_rarity
        fused = self.head.kind == "tgdfer" and self.label.fusion == "mlp"
        coarse = prompts.coarse_learnable and fused  # which alone reads it
        if not self.head.reads_texts:
            lack = f"head.kind={self.head.kind} reads no text; set head.kind=tgdfer"
        elif self.head.kind in SEVERAL_TEXTS:
            kind = self.head.kind
            lack = f"head.kind={kind} reads several texts of a class; set head.kind=dfer_clip"
        elif prompts.context == "shared":
            lack = "prompts.context=shared; set prompts.context=class_specific"
        elif not prompts.fine_learnable and not coarse:
            lack = "no prompt that is used is learnable; set prompts.fine_learnable=true"
        else:
            return self
        if rarity:
            raise ValueError(
                f"optimiser.text_rarity={rarity:g} needs context vectors of each class, but "
                f"{lack}, or optimiser.text_rarity=0"
            )
        return self

    @model_validator(mode="after")
    def _refuse_quality_without_statistics(self) -> "MethodConfig":
        if self.label.quality and self.input.scale not in ("standardise", "whiten"):
            raise ValueError(
                f"label.quality={self.label.quality:g} measures how far a frame is from the "
                f"training frames, which input.scale={self.input.scale} does not know; set "
                "input.scale to standardise or whiten"
            )
        return self


class Run(Settings):
    """One training run: a configuration, a fold of the data set and a seed."""

    method: MethodConfig
    fold: str
    seed: int = Field(ge=0, lt=1 << 32)


# Settings that may differ between runs of one program: they change values, no operation.
_OF_A_RUN: dict[str, Any] = {
    "input": {"centre_text"},
    "optimiser": {
        "lr",
        "lr_prompts",
        "momentum",
        "weight_decay",
        "milestones",
        "gamma",
        "schedule",
        "warm_up",
        "average",
        "average_decay",
        "average_epochs",
        "label_smoothing",
        "target",
        "loss",
        "balance_beta",
        "adjust_tau",
        "focal_gamma",
        "intensity",
        "mixup",
        "oversample",
        "text_rarity",
        "augment",
        "views",
    },
    "temporal": {"init", "positions_std", "dropout"},
    "label": {"temperature", "init", "quality"},
    "selection": True,
    "store": True,
}


def stack_key(method: MethodConfig) -> str:
    """Equal for methods whose runs can be stacked, as HFTA splits a grid (Wang et al. 2021)."""
    method = effective(method)
    # Nothing to weight, to drop or to mix is another program, and so are losses of other terms.
    weighted, dropped = method.label.quality > 0, method.temporal.dropout > 0
    loss, mixed = method.optimiser.loss, method.optimiser.mixup > 0
    terms = loss if loss in ("focal", "intensity_aware") else "cross_entropy"
    return f"{method.model_dump_json(exclude=_OF_A_RUN)} {weighted} {dropped} {mixed} {terms}"


def effective(method: MethodConfig) -> MethodConfig:
    """The same method with every setting that has no effect beside the others at its default."""
    changed: dict[str, Settings] = {}
    for table, names in _idle(method):
        own, default = getattr(method, table), MethodConfig.model_fields[table].default
        values = {name: getattr(default, name) for name in names.split()}
        changed[table] = changed.get(table, own).model_copy(update=values)
    return method.model_copy(update=changed)


def _idle(method: MethodConfig) -> Iterator[tuple[str, str]]:
    """Tables and the names of their settings that nothing reads."""
    temporal, prompts, label = method.temporal, method.prompts, method.label
    optimiser, selection = method.optimiser, method.selection
    yield from _idle_for(method.head)
    if not temporal.fine_depth:
        yield "temporal", "window stride positions merge"
    if not temporal.coarse_depth:
        yield "temporal", "coarse_keys"
    if not temporal.fine_depth and not temporal.coarse_depth:
        yield "temporal", "norm head_size mlp_ratio residual init dropout positions_std"
    coarse_learnable = prompts.coarse_learnable and method.head.kind == "tgdfer"
    fine_learnable = prompts.fine_learnable or method.head.kind == "cliper"
    if not fine_learnable and not coarse_learnable:
        yield "prompts", "context_length context position"
        yield "optimiser", "lr_prompts"
    if label.fusion == "none":
        yield "prompts", "coarse_text"
    if label.visual_prompt == "none":
        yield "label", "weighting scope"
    if label.pooling != "top_k":
        yield "label", "top_k"
    if optimiser.schedule != "steps":
        yield "optimiser", "milestones gamma"
    if optimiser.average != "ema":
        yield "optimiser", "average_decay"
    if optimiser.average != "last_epochs":
        yield "optimiser", "average_epochs"
    if optimiser.loss != "class_balanced":
        yield "optimiser", "balance_beta"
    if optimiser.loss != "logit_adjusted":
        yield "optimiser", "adjust_tau"
    if optimiser.loss != "focal":
        yield "optimiser", "focal_gamma"
    if optimiser.loss != "intensity_aware":
        yield "optimiser", "intensity"
    if not optimiser.augment:
        yield "optimiser", "views"
    if selection.rule != "best_on_val" and selection.tested_on != "held_out":
        yield "selection", "validation_share"


def _idle_for(head: HeadConfig) -> Iterator[tuple[str, str]]:
    """Settings that a kind of head does not read."""
    if head.kind == "tgdfer":
        yield "head", "layers hidden dropout instance"
        return
    if head.kind not in _DIVIDING:
        yield "head", "instance"
    if head.kind == "dpcnet":
        yield "head", "layers"
    if head.kind in ("linear", "cliper"):
        yield "head", "layers hidden dropout"
    if head.kind == "cliper":
        yield "prompts", "fine_text fine_learnable context position texts"
    yield "temporal", " ".join(TemporalConfig.model_fields)
    yield "label", " ".join(LabelConfig.model_fields.keys() - {"temperature"})
    yield "prompts", "coarse_text coarse_learnable"
    if not head.reads_texts:
        yield "label", "temperature"
        yield "prompts", " ".join(PromptConfig.model_fields)
        yield "optimiser", "lr_prompts"
        yield "input", "centre_text"


def runs_of(method: MethodConfig, folds: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """One run per fold and seed."""
    return [Run(method=method, fold=fold, seed=seed) for seed in seeds for fold in folds]


PRESETS = ("paper", "equations", "dfer-clip", "tuned")


def load_method(config: Path | str = "paper", overrides: Sequence[str] = ()) -> MethodConfig:
    """A preset by name or a TOML file, then ``KEY=VALUE`` overrides with dotted keys.

    Raises RefusedError for a file that cannot be read, an unknown key (with the nearest known one)
    or a value out of range.
    """
    settings = _read_toml(config)
    for override in overrides:
        _apply(settings, override)
    return method_from(settings, str(config), overrides)


def method_from(
    settings: Mapping[str, Any], where: str, overrides: Sequence[str] = ()
) -> MethodConfig:
    """Nested settings -> MethodConfig; error messages name their origin.

    That is ``where``, or ``--set`` for those that are in ``overrides``.
    """
    try:
        return MethodConfig.model_validate(settings)
    except ValidationError as error:
        raise RefusedError(_explain(error, _origin(error, where, overrides))) from None


def known_keys() -> list[str]:
    """Every dotted key that ``--set`` and TOML files may use."""
    return list(_keys(MethodConfig, ""))


def unknown_setting(key: str) -> str:
    """What to say of a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known_keys())}"
    return f"unknown setting {key}{hint}"


def _read_toml(config: Path | str) -> dict[str, Any]:
    if config in PRESETS:
        preset = files("pipeline").joinpath(f"presets/{config}.toml")
        return tomllib.loads(preset.read_text())
    expected = f"a TOML file or one of the presets {', '.join(PRESETS)}"
    return parse_toml(read_text(Path(config), expected, CONFIG_BYTES_MAX), str(config))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """TOML -> its tables; ``where`` names its origin in error messages."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise RefusedError(f"{where}: not valid TOML: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{where}: not valid TOML: {error}") from error
    except ValueError:
        raise RefusedError(f"{where}: a number of more digits than can be read") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE`` -> (dotted key, value parsed as TOML); a bare word is a string."""
    if len(text) > SETTING_MAX:
        raise RefusedError(f"{text[:40]}…: {len(text)} characters, expected at most {SETTING_MAX}")
    key, equals, value = text.partition("=")
    if not equals:
        raise RefusedError(f"{text}: expected KEY=VALUE, e.g. --set temporal.window=8")
    return key.strip(), _parse_value(key, value.strip())


def _apply(settings: dict[str, Any], override: str) -> None:
    key, value = parse_setting(override)
    *path, last = key.split(".")
    table = settings
    for name in path:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RefusedError(f"--set {override}: {name} is a value, not a table of settings")
    table[last] = value


def _parse_value(key: str, text: str) -> Any:
    try:
        found = parse_toml(f"value = {text}", f"--set {key}")
    except RefusedError as error:
        # A bare word is a string, so that --set prompts.context=shared needs no quotes.
        if isinstance(error.__cause__, tomllib.TOMLDecodeError):
            return text
        raise
    return found["value"] if len(found) == 1 else text


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        key = _key_of(problem)
        if problem["type"] == "extra_forbidden":
            lines.append(unknown_setting(key))
            continue
        given = (
            "" if isinstance(problem["input"], Mapping) else f" = {_shortened(problem['input'])}"
        )
        said = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "literal_error":
            said += _nearest(problem["input"], problem["ctx"]["expected"])
        lines.append(f"{key}{given}: {said}" if key else said)
    return f"{where}: " + "; ".join(lines)


def _origin(error: ValidationError, where: str, overrides: Sequence[str]) -> str:
    """Whether what ``where`` names, the overrides or both are wrong."""
    given = [parse_setting(override)[0] for override in overrides]
    keys = [_key_of(problem) for problem in error.errors()]
    set_here = [
        any(f"{key}.".startswith(f"{own}.") or own.startswith(f"{key}.") for own in given)
        for key in keys
        if key
    ]
    if not any(set_here):
        return where
    return "--set" if len(set_here) == len(keys) and all(set_here) else f"{where} and --set"


def _key_of(problem: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in problem["loc"])


def _nearest(value: object, expected: str) -> str:
    """A hint at the nearest of the values that pydantic lists as ``'a', 'b' or 'c'``."""
    near = difflib.get_close_matches(str(value).lower(), re.findall(r"'([^']*)'", expected), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _shortened(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of thousands of digits
        return "a huge number"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
