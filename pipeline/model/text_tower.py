"""A store's frozen CLIP text tower: prompts -> text features.

The tower is open_clip's own TextTransformer with the weights that stage one put beside the
features, so text and image features always come from the same model.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.packing import Packing, pack


class TextTower(nn.Module):
    """Frozen text tower. Token width W, joint feature size D."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.tower = transformer.eval().requires_grad_(False)
        self.width: int = transformer.width
        self.context_length: int = transformer.context_length

    def tokenize(self, text: str) -> list[int]:
        """CLIP's byte-pair tokens of ``text`` from the start token to the end token, unpadded."""
        tokenizer = _tokenizer()
        return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., W], without positions."""
        embedded: Tensor = self.tower.token_embedding(tokens)
        return embedded

    def encode(self, embedded_RLW: Tensor, packing: Packing) -> Tensor:
        """Packed input embeddings of R runs -> features of the K packed prompts [R, K, D]."""
        tower = self.tower
        x = embedded_RLW + tower.positional_embedding[packing.position_L]
        mask_LL = packing.mask_LL.to(x.dtype)
        *layers, last = tower.transformer.resblocks
        for layer in layers:
            x = layer(x, attn_mask=mask_LL)
        # Of the last layer's output only the end tokens are read: the others are keys and values.
        normed = last.ln_1(x)
        ends = normed[:, packing.end_K], normed, normed
        x_RKW = x[:, packing.end_K] + last.ls_1(last.attention(*ends, mask_LL[packing.end_K]))
        x_RKW = tower.ln_final(x_RKW + last.ls_2(last.mlp(last.ln_2(x_RKW))))
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            x_RKW = projection(x_RKW)
        elif projection is not None:
            x_RKW = x_RKW @ projection
        features: Tensor = x_RKW.to(embedded_RLW.dtype)
        return features

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Plain texts -> features [K, D], not normalised."""
        packing = pack([self.tokenize(text) for text in texts], self.context_length)
        packing.to(self.tower.positional_embedding.device)
        with torch.no_grad():
            return self.encode(self.embed(packing.token_L)[None], packing)[0]


def load_text_tower(weights: bytes, config: dict[str, Any]) -> TextTower:
    """The tower from a store's ``text.safetensors`` and its configuration.

    ``config`` holds open_clip's ``embed_dim``, ``quick_gelu`` and ``text_cfg``.
    """
    from open_clip.transformer import QuickGELU, TextTransformer
    from safetensors.torch import load

    text = dict(config["text_cfg"])
    tower = TextTransformer(
        **text,
        output_dim=config["embed_dim"],
        act_layer=QuickGELU if config.get("quick_gelu") else nn.GELU,
    )
    tower.load_state_dict({name: value.float() for name, value in load(weights).items()})
    return TextTower(tower)


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
