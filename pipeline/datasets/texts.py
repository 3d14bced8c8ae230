"""Class names -> what the text tower reads for each of them."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from cache.errors import RefusedError
from cache.outside import MIB, read_text

LETTERS_MAX = 300  # of a text; the text tower reads 77 tokens
CLASSES_MAX = 100

Texts = tuple[tuple[str, str], ...]  # a name and a sentence per class


@dataclass(frozen=True)
class ClassTexts:
    """What the text tower reads for each class: its name, and a sentence of facial movements."""

    classes: tuple[str, ...]
    descriptors: tuple[str, ...]

    def of(self, kind: Literal["class", "descriptors"]) -> tuple[str, ...]:
        """The K texts of one kind."""
        return self.classes if kind == "class" else self.descriptors


def class_texts(classes: Sequence[str], own: Sequence[tuple[str, str]] | None = None) -> ClassTexts:
    """Texts of the named classes: a data set's own, or those of ``texts.toml``.

    Raises RefusedError for a class that has neither.
    """
    unknown = [name for name in classes if name not in _known()]
    if own is None and unknown:
        raise RefusedError(f"no text for class {unknown[0]}; texts.toml has {', '.join(_known())}")
    texts = own or tuple(_known()[name] for name in classes)
    return ClassTexts(tuple(name for name, _ in texts), tuple(sentence for _, sentence in texts))


def texts_of(classes: Sequence[str], given: Mapping[str, tuple[str, str]] | None) -> Texts | None:
    """A data set's own texts: those given, then those of ``texts.toml``, then plain ones.

    None if all of them are in ``texts.toml`` as they are.
    """
    known = _known() | dict(given or {})
    own = tuple(known.get(name) or plain_text(name) for name in classes)
    return None if own == tuple(_known().get(name) for name in classes) else own


def plain_text(name: str) -> tuple[str, str]:
    """The texts of a class of which nothing but the name is known.

    >>> plain_text("deep_boredom")
    ('deep boredom', 'an expression of deep boredom')
    """
    words = name.replace("_", " ")
    return words, f"an expression of {words}"


def padded_phrases(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """K texts -> the parts between commas, M of each text in turn, and how many each has.

    One with fewer than M repeats its last.

    >>> padded_phrases(["raised cheeks, a smiling mouth", "a still face"])
    (['raised cheeks', 'a smiling mouth', 'a still face', 'a still face'], [2, 1])
    """
    parts = [[part.strip() for part in text.split(",") if part.strip()] or [text] for text in texts]
    counts = [len(own) for own in parts]
    padded = [own + own[-1:] * (max(counts) - len(own)) for own in parts]
    return [phrase for own in padded for phrase in own], counts


def read_texts(path: Path) -> dict[str, tuple[str, str]]:
    """Texts of one's own from a TOML file with a table per class, in the order of their labels.

        [boredom]
        name = "boredom"
        descriptors = "drooping eyelids, slack lips, a still face, a head resting on a hand"

    Either may be left out. Raises RefusedError for anything else.
    """
    try:
        tables = tomllib.loads(read_text(path, "a TOML file of class texts", MIB))
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{path}: {error}") from None
    if not 2 <= len(tables) <= CLASSES_MAX:
        raise RefusedError(f"{path}: {len(tables)} classes, expected 2 to {CLASSES_MAX}")
    return {name: _own_text(path, name, table) for name, table in tables.items()}


def _own_text(path: Path, name: str, table: object) -> tuple[str, str]:
    if not isinstance(table, dict) or not {*table} <= {"name", "descriptors"}:
        raise RefusedError(f"{path}: [{name}] has keys other than name and descriptors")
    plain = _known().get(name) or plain_text(name)
    texts = table.get("name", plain[0]), table.get("descriptors", plain[1])
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text.strip()) <= LETTERS_MAX:
            raise RefusedError(f"{path}: [{name}] needs texts of 1 to {LETTERS_MAX} letters")
    return texts


@cache
def _known() -> dict[str, tuple[str, str]]:
    tables = tomllib.loads(files("pipeline.datasets").joinpath("texts.toml").read_text("utf-8"))
    return {
        name: (text["name"], text["descriptors"])
        for table in tables.values()
        for name, text in table.items()
    }
