"""Class texts and learnable context -> text features [R, K, D] (eq. 6)."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from torch import Generator, Tensor, nn

from cache.errors import RefusedError
from pipeline.model.config import PromptConfig
from pipeline.model.layers import normal, per_run
from pipeline.model.packing import context_slot, pack
from pipeline.model.text_tower import TextTower

CONTEXT_STD = 0.02  # as CoOp and the text tower's own embeddings


@dataclass(frozen=True)
class ClassTexts:
    """What the text tower reads for each class: its name, and a sentence of facial movements."""

    classes: tuple[str, ...]
    descriptors: tuple[str, ...]

    def of(self, kind: Literal["class", "descriptors"]) -> tuple[str, ...]:
        """The K texts of one kind."""
        return self.classes if kind == "class" else self.descriptors


def class_texts(classes: Sequence[str]) -> ClassTexts:
    """Texts of the named classes from ``texts.toml``.

    Raises RefusedError for a class that the file does not describe.
    """
    texts = tomllib.loads(files("pipeline.model").joinpath("texts.toml").read_text())
    known = {name: text for table in texts.values() for name, text in table.items()}
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise RefusedError(f"no text for class {unknown[0]}; texts.toml has {', '.join(known)}")
    return ClassTexts(
        tuple(known[name]["name"] for name in classes),
        tuple(known[name]["descriptors"] for name in classes),
    )


class FixedPrompts(nn.Module):
    """Text features computed once: nothing to learn, the same for every run."""

    features_KD: Tensor

    def __init__(self, tower: TextTower, texts: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("features_KD", tower.encode_texts(texts), persistent=False)

    def forward(self) -> Tensor:
        return self.features_KD[None]


class LearnablePrompts(nn.Module):
    """[c]^1 ... [c]^M text, through the frozen tower; the context vectors are learned.

    One set of M context vectors per class, or one set shared by all classes.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        tower: TextTower,
        texts: Sequence[str],
        config: PromptConfig,
    ) -> None:
        super().__init__()
        length = config.context_length
        sets = len(texts) if config.context == "class_specific" else 1
        prompts = []
        for k, text in enumerate(texts):
            start, *rest = tower.tokenize(text)
            first = k * length if config.context == "class_specific" else 0
            context = [context_slot(first + m) for m in range(length)]
            prompts.append([start, *context, *rest])
        self.tower = tower
        self.packing = pack(prompts, tower.context_length)
        self.context_RCW = per_run(generators, normal(sets * length, tower.width, std=CONTEXT_STD))

    def forward(self) -> Tensor:
        packing = self.packing
        tokens_LW = self.tower.embed(packing.token_L)
        tokens_RLW = tokens_LW.expand(len(self.context_RCW), -1, -1)
        context_RCW = self.context_RCW[:, packing.slot_C].to(tokens_LW.dtype)
        return self.tower.encode(tokens_RLW.index_copy(1, packing.place_C, context_RCW), packing)


def make_prompts(
    generators: Sequence[Generator],
    tower: TextTower,
    texts: Sequence[str],
    learnable: bool,
    config: PromptConfig,
) -> FixedPrompts | LearnablePrompts:
    """The fine or the coarse prompts of a method."""
    if learnable:
        return LearnablePrompts(generators, tower, texts, config)
    return FixedPrompts(tower, texts)
