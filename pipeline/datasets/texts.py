"""Class names -> what the text tower reads for each of them."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from cache.errors import RefusedError


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
    texts = tomllib.loads(files("pipeline.datasets").joinpath("texts.toml").read_text())
    known = {name: text for table in texts.values() for name, text in table.items()}
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise RefusedError(f"no text for class {unknown[0]}; texts.toml has {', '.join(known)}")
    return ClassTexts(
        tuple(known[name]["name"] for name in classes),
        tuple(known[name]["descriptors"] for name in classes),
    )
