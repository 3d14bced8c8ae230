"""Class texts, learnable context, visual prompts -> text features [R, K, D] (eq. 6)."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from cache.errors import RefusedError
from pipeline.config import PromptConfig
from pipeline.model.layers import normal, per_run
from pipeline.model.packing import Packing, context_slot
from pipeline.model.text_tower import TextTower

CONTEXT_STD = 0.02  # as in CoOp and the text tower's own embeddings
ORTHOGONAL_SEED = 0


class Prompts(nn.Module):
    """One text per class, plain or with learnable context, through the frozen tower.

    Learnable: [c]^1 ... [c]^M text, with M context vectors per class or M shared by all.
    With ``visual``, a token made from a video can be placed before all others. In runs with
    ``centre``, the mean over the classes is subtracted from their features.

    Two controls: ``permuted`` texts are those of the next class, of the first for the last one.
    With ``orthogonal`` ones, o_k, no class text is read: the feature is o_k + E(p) - E(p_0), with
    the tower E, the prompt p of context and visual token alone, and the context p_0 it began with.
    """

    plain_KD: Tensor | None
    offset_RKD: Tensor | None
    centre_R: Tensor | None

    def __init__(
        self,
        generators: Sequence[Generator],
        tower: TextTower,
        texts: Sequence[str],
        learnable: bool,
        config: PromptConfig,
        visual: bool = False,
        centre: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.tower = tower
        centre_R = torch.tensor(centre).float() if any(centre) else None
        self.register_buffer("centre_R", centre_R, persistent=False)
        if config.texts == "permuted":
            texts = [*texts[1:], texts[0]]
        read = [""] * len(texts) if config.texts == "orthogonal" else texts
        slots = _context_slots(len(texts), config) if learnable else [[] for _ in texts]
        tokens = [tower.tokenize(text) for text in read]
        contexts = len({slot for own in slots for slot in own})
        prompts = [_arrange(own, text, config) for own, text in zip(slots, tokens, strict=True)]
        self.packing = tower.lay_out(prompts)
        if visual:
            seeing = [
                [start, context_slot(contexts + k), *rest]
                for k, (start, *rest) in enumerate(prompts)
            ]
            self.packing_visual = tower.lay_out(seeing)
        draw = normal(contexts, tower.width, std=CONTEXT_STD)
        self.context_RCW = per_run(generators, draw) if learnable else None
        plain_KD = None if learnable else tower.encode_texts(read)
        self.register_buffer("plain_KD", plain_KD, persistent=False)
        self.register_buffer("offset_RKD", None, persistent=False)
        if config.texts == "orthogonal":
            self.to(tower.tower.positional_embedding.device)
            with torch.no_grad():
                goal_KD = orthogonal_texts(tower.encode_texts(texts))
                self.offset_RKD = goal_KD - self().expand(len(generators), -1, -1)

    def forward(self) -> Tensor:
        """Text features [R, K, D]; [1, K, D] if they are the same in all runs."""
        if self.context_RCW is None:
            assert self.plain_KD is not None
            return self._finished(self.plain_KD[None])
        return self._finished(self._encode(self.packing, self.context_RCW))

    def with_visual(self, visual_RBKD: Tensor) -> Tensor:
        """Text features [R, B, K, D], with the class's visual prompt as the first input token."""
        R, B, K, D = visual_RBKD.shape
        vectors = visual_RBKD
        if self.context_RCW is not None:
            context = self.context_RCW[:, None].expand(-1, B, -1, -1)
            vectors = torch.cat([context, visual_RBKD], dim=2)
        encoded = self._encode(self.packing_visual, vectors.flatten(0, 1))
        return self._finished(encoded.view(R, B, K, D))

    def _finished(self, texts: Tensor) -> Tensor:
        if self.offset_RKD is not None:
            texts = texts + (self.offset_RKD if texts.ndim == 3 else self.offset_RKD[:, None])
        if self.centre_R is None:
            return texts
        share = self.centre_R.to(texts.dtype).view(-1, *[1] * (texts.ndim - 1))
        return texts - share * texts.mean(-2, keepdim=True)

    def _encode(self, packing: Packing, vectors_NCW: Tensor) -> Tensor:
        tokens_LW = self.tower.embed(packing.token_L)
        tokens_NLW = tokens_LW.expand(len(vectors_NCW), -1, -1)
        placed = vectors_NCW[:, packing.slot_C].to(tokens_LW.dtype)
        return self.tower.encode(tokens_NLW.index_copy(1, packing.place_C, placed), packing)


def orthogonal_texts(texts_KD: Tensor) -> Tensor:
    """Orthogonal vectors, always the same ones, with the mean norm of these text features.

    Raises RefusedError if there are more classes than features.
    """
    K, D = texts_KD.shape
    if K > D:
        raise RefusedError(
            f"prompts.texts=orthogonal: {D} features have no {K} orthogonal directions, one for "
            "each class; use another encoder, or prompts.texts=permuted"
        )
    generator = torch.Generator().manual_seed(ORTHOGONAL_SEED)
    drawn_DK = torch.randn(D, K, generator=generator, dtype=torch.float64)
    axes_DK, triangle_KK = torch.linalg.qr(drawn_DK)
    axes_KD = (axes_DK * triangle_KK.diagonal().sign()).T  # the signs are otherwise a library's
    return axes_KD.to(texts_KD) * texts_KD.norm(dim=1).mean()


def _context_slots(classes: int, config: PromptConfig) -> list[list[int]]:
    length = config.context_length
    first = [k * length if config.context == "class_specific" else 0 for k in range(classes)]
    return [[context_slot(start + m) for m in range(length)] for start in first]


def _arrange(context: list[int], tokens: list[int], config: PromptConfig) -> list[int]:
    """Start token, context and text in the order given by ``position``, end token."""
    start, *text, end = tokens
    before = {"end": len(context), "middle": len(context) // 2, "front": 0}[config.position]
    return [start, *context[:before], *text, *context[before:], end]
