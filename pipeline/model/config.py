"""What the method lets you choose, with the paper's values as defaults; see docs/method.md."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cache.errors import RefusedError


class Settings(BaseModel):
    """Base of every table of settings: unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TemporalConfig(Settings):
    """The multi-grained temporal network (eqs. 2-5)."""

    fine_depth: int = Field(1, ge=0, le=12, description="encoder layers inside windows; 0: none")
    coarse_depth: int = Field(1, ge=0, le=12, description="encoder layers over all frames; 0: none")
    window: int = Field(4, ge=1, description="frames in a window of the fine module")
    stride: int = Field(1, ge=1, description="frames between the starts of two windows")
    positions: Literal["shared", "per_window"] = Field(
        "shared", description="one positional table for all windows, or one for each"
    )
    merge: Literal["average", "last"] = Field(
        "average", description="a frame's output: over the windows that hold it, or the last one's"
    )
    norm: Literal["pre", "post"] = Field("pre", description="where a layer normalises")
    head_size: int = Field(64, ge=1, description="features in an attention head; 8 heads at D=512")
    mlp_ratio: float = Field(2.0, gt=0, description="hidden width of the layers' MLP over D")
    residual: bool = Field(False, description="add the frame features to the network's output")

    def heads(self, size: int) -> int:
        """Attention heads at feature size D; one head where D is smaller than a head.

        Raises RefusedError where the head size does not divide D.
        """
        head_size = min(self.head_size, size)
        if size % head_size:
            raise RefusedError(
                f"temporal.head_size={self.head_size} does not divide {size} features; "
                "choose a divisor"
            )
        return size // head_size

    def window_starts(self, frames: int) -> list[int]:
        """First frame of every window: N = (T - w) // s + 1 of them (eq. 3).

        >>> TemporalConfig(window=4, stride=3).window_starts(16)
        [0, 3, 6, 9, 12]

        Raises RefusedError where the windows would leave a frame uncovered.
        """
        window, stride = self.window, self.stride
        if window > frames or stride > window or (frames - window) % stride:
            raise RefusedError(
                f"windows of {window} frames at stride {stride} do not cover {frames} frames "
                "without gaps; choose temporal.window and temporal.stride so that stride <= "
                "window <= frames and (frames - window) is a multiple of stride"
            )
        return list(range(0, frames - window + 1, stride))

    def tokens(self, frames: int) -> int:
        """Positions that pass through encoder layers for one video: the cost of a step."""
        windows = len(self.window_starts(frames)) if self.fine_depth else 0
        return self.fine_depth * windows * self.window + self.coarse_depth * frames


class PromptConfig(Settings):
    """Fine and coarse text of a class (eq. 6)."""

    fine_text: Literal["class", "descriptors"] = "class"
    fine_learnable: bool = True
    coarse_text: Literal["class", "descriptors"] = "class"
    coarse_learnable: bool = False
    context_length: int = Field(8, ge=1, le=64, description="learnable tokens beside the text (M)")
    context: Literal["class_specific", "shared"] = "class_specific"
    position: Literal["end", "middle", "front"] = Field(
        "end", description="where the text stands among the context tokens"
    )


class LabelConfig(Settings):
    """The enriched label and the bag prediction (eqs. 7-11)."""

    visual_prompt: Literal["none", "add", "prepend", "concat"] = Field(
        "add", description="how the visual prompt meets the fine text"
    )
    weighting: Literal["softmax", "linear"] = Field(
        "softmax", description="frame weights of the visual prompt: softmax of cosines, or cosines"
    )
    scope: Literal["per_class", "shared"] = Field(
        "per_class", description="one visual prompt for each class, or one for all"
    )
    fusion: Literal["mlp", "none"] = Field(
        "mlp", description="MLP(enriched) + coarse text, or the enriched fine text as it is"
    )
    pooling: Literal[
        "mean_logits", "mean_feature", "mean_probability", "top_k", "log_sum_exp", "attention"
    ] = Field("mean_logits", description="frames -> bag prediction")
    top_k: int = Field(4, ge=1, description="frames that count where pooling is top_k")
    temperature: float = Field(0.01, gt=0, description="tau of every cosine")

    @model_validator(mode="after")
    def _refuse_concat_without_mlp(self) -> "LabelConfig":
        if self.visual_prompt == "concat" and self.fusion == "none":
            raise ValueError("visual_prompt concat needs fusion mlp, which brings 2D back to D")
        return self
