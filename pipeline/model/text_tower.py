"""A store's frozen CLIP text tower: prompts -> text features.

The tower is open_clip's own TextTransformer with the weights that stage one stored beside the
features, so text and image features always come from the same model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import RefusedError
from cache.store import NO_TEXTS
from pipeline.device import is_out_of_memory
from pipeline.model.packing import PADDING, Packing, pack, pad

REDRAWN_SEED = 251_110_958  # unlikely to be where a trained tower began
VOCABULARY = 49_408  # tokens of CLIP's tokenizer
PROBE = "a happy face"
TOLERANCE = 1e-3  # of the largest feature; float32 rounds a hundredth of that

# How prompts are laid out: those of a causal tower share one short sequence.
Layout = Literal["packed", "padded"]
LAYOUTS: tuple[Layout, ...] = ("packed", "padded")


class TextTower(nn.Module):
    """Frozen text tower. Token width W, joint feature size D.

    ``layout`` is the first of LAYOUTS that gives a text the feature that the tower itself gives it.
    Raises RefusedError if none does.
    """

    def __init__(self, transformer: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self._config = config
        self.tower = transformer.eval().requires_grad_(False)
        self.width: int = transformer.width
        self.size: int = transformer.output_dim
        self.is_own = "features" not in config  # the frames' encoder is of the same CLIP
        self.features: int = config.get("features", self.size)  # D of a frame
        self.context_length: int = transformer.context_length
        self.layout = self._find_layout()

    def redrawn(self) -> "TextTower":
        """The same architecture with open_clip's initial weights, always the same ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(REDRAWN_SEED)
            drawn = _transformer(self._config)
        return TextTower(drawn.to(self.tower.positional_embedding), self._config)

    def tokenize(self, text: str) -> list[int]:
        """CLIP's byte-pair tokens of ``text`` from the start token to the end token, unpadded."""
        tokenizer = _tokenizer()
        return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]

    def lay_out(self, prompts: Sequence[Sequence[int]]) -> Packing:
        """The layout of prompts, lists of token ids and context slots, for this tower.

        Raises RefusedError for a prompt that is too long.
        """
        return self._lay_out(prompts, self.layout)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., W], without positions."""
        embedded: Tensor = self.tower.token_embedding(tokens)
        return embedded

    def encode(self, embedded_RLW: Tensor, packing: Packing) -> Tensor:
        """Input embeddings, laid out, of R runs -> features of the K prompts [R, K, D]."""
        tower = self.tower
        x = embedded_RLW + tower.positional_embedding[packing.position_L]
        mask_LL = packing.mask_LL.to(x.dtype)
        *layers, last = tower.transformer.resblocks
        for layer in layers:
            x = _through(layer, x, mask_LL)
        x_RKW = tower.ln_final(_through(last, x, mask_LL, packing.end_K))
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            x_RKW = projection(x_RKW)
        elif projection is not None:
            x_RKW = x_RKW @ projection
        features: Tensor = x_RKW.to(embedded_RLW.dtype)
        return features

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Plain texts -> features [K, D], not normalised."""
        return self._encode_plain(self.lay_out([self.tokenize(text) for text in texts]))

    def _lay_out(self, prompts: Sequence[Sequence[int]], layout: Layout) -> Packing:
        if layout == "packed":
            return pack(prompts, self.context_length)
        mask_NN = self.tower.attn_mask
        if mask_NN is None:
            mask_NN = torch.zeros(self.context_length, self.context_length)
        return pad(prompts, mask_NN.cpu(), reads_last=self.tower.pool_type == "last")

    def _encode_plain(self, packing: Packing) -> Tensor:
        packing.to(self.tower.positional_embedding.device)
        with torch.no_grad():
            return self.encode(self.embed(packing.token_L)[None], packing)[0]

    def _find_layout(self) -> Layout:
        tokens = self.tokenize(PROBE)
        padded = [*tokens, *[PADDING] * (self.context_length - len(tokens))]
        device = self.tower.positional_embedding.device
        with torch.no_grad():
            expected = self.tower(torch.tensor([padded], device=device))
        if isinstance(expected, tuple):  # the states of all tokens come second
            expected = expected[0]
        for layout in LAYOUTS:
            found = self._encode_plain(self._lay_out([tokens], layout))
            if (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
                return layout
        raise RefusedError(
            "the store's text tower reads prompts neither as CLIP's does nor as one without its "
            "mask; extract with another encoder"
        )


def _through(layer: Any, x_RLW: Tensor, mask_LL: Tensor, kept_K: Tensor | None = None) -> Tensor:
    """One of open_clip's layers, with its own weights; only the outputs ``kept_K``, if given.

    nn.MultiheadAttention would compute gradients as small products with the weights repeated for
    every run. Flattened rows make one product, in 0.7 of the time for a stack of five.
    """
    attention = layer.attn
    heads = attention.num_heads
    qkv = _linear(layer.ln_1(x_RLW), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # each [R, H, L, W / H]
    if kept_K is not None:
        x_RLW, q, mask_LL = x_RLW[:, kept_K], q[:, :, kept_K], mask_LL[kept_K]
    mixed = F.scaled_dot_product_attention(q, k, v, mask_LL).transpose(1, 2).flatten(2)
    projected = _linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
    x_RLW = x_RLW + layer.ls_1(projected)
    output: Tensor = x_RLW + layer.ls_2(layer.mlp(layer.ln_2(x_RLW)))
    return output


def _linear(x_RLW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x_RLW.flatten(0, 1), weight, bias).unflatten(0, x_RLW.shape[:2])


@dataclass(frozen=True)
class NoTexts:
    """In place of the text tower of an encoder that has none."""

    features: int  # D of a frame
    layout: None = None

    def to(self, device: torch.device) -> "NoTexts":
        """Itself, as there is nothing to move."""
        return self


def find_text_tower(weights: bytes, config: dict[str, Any]) -> TextTower | NoTexts:
    """The tower from a store's ``text.safetensors`` and its configuration, if there is one.

    Errors as in ``load_text_tower``.
    """
    if config.get("text_cfg", {}) is None:
        return NoTexts(config["embed_dim"])
    return load_text_tower(weights, config)


def load_text_tower(weights: bytes, config: dict[str, Any]) -> TextTower:
    """The tower from a store's ``text.safetensors`` and its configuration.

    ``config`` holds open_clip's ``embed_dim``, ``quick_gelu`` and ``text_cfg``, and perhaps
    ``features``, the size of those of another encoder that are to be projected.  Raises
    RefusedError, before memory is taken for the tower, if there is none, or if the weights are not
    those of such a one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if config.get("text_cfg", {}) is None:
        raise RefusedError(f"the store has no text tower: {NO_TEXTS}")
    try:
        _refuse_tokenizer(config["text_cfg"])
        tensors = {name: value.float() for name, value in load(weights).items()}
        if config["text_cfg"]["layers"] > len(tensors):
            raise ValueError("there are fewer weights than layers")
        with torch.device("meta"):
            _transformer(config).load_state_dict(tensors, assign=True)
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError("the weights are not finite")
    except (SafetensorError, *_NOT_A_TOWER) as error:
        if is_out_of_memory(error):
            raise
        raise RefusedError(
            f"text.json and text.safetensors of the store are no text tower ({_short(error)}); "
            "copy the store again from an intact one, or extract it again"
        ) from error
    tower = _transformer(config)
    tower.load_state_dict(tensors)
    return TextTower(tower, config)


# What open_clip and torch raise for a configuration or for weights that they cannot use.
_NOT_A_TOWER = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _refuse_tokenizer(text: dict[str, Any]) -> None:
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise ValueError("it does not read the tokens of CLIP's own tokenizer")
    if text.get("vocab_size", VOCABULARY) < VOCABULARY:
        raise ValueError(f"it knows fewer than the {VOCABULARY} tokens of CLIP's tokenizer")


def _transformer(config: dict[str, Any]) -> Any:
    from open_clip.model import _build_text_tower

    return _build_text_tower(config["embed_dim"], config["text_cfg"], config.get("quick_gelu"))


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
