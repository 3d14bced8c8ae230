"""What each data set is, from ``known.toml``: its classes and what was published about it."""

import tomllib
from functools import cache
from importlib.resources import files

from pydantic import Field

from cache.identity import FrozenModel

# How lists, folders and files spell the classes.
WORDS = {
    "happiness": ("happy", "happiness", "joy", "hap", "ha"),
    "sadness": ("sad", "sadness", "sa"),
    "neutral": ("neutral", "neutrality", "neu", "ne"),
    "anger": ("angry", "anger", "ang", "an"),
    "surprise": ("surprise", "surprised", "sur", "su"),
    "disgust": ("disgust", "disgusted", "dis", "di"),
    "fear": ("fear", "fearful", "afraid", "fea", "fe"),
    "contempt": ("contempt", "contemptuous"),
    "anxiety": ("anxiety", "anxious"),
    "helplessness": ("helplessness", "helpless"),
    "disappointment": ("disappointment", "disappointed"),
    "calm": ("calm",),
}
_CLASS_OF = {word: name for name, words in WORDS.items() for word in words}


class Known(FrozenModel):
    """A data set and what was published about it; see ``known.toml``."""

    title: str
    protocol: str
    licence: str
    obtain: str
    tree: tuple[str, ...]
    classes: tuple[str, ...] = ()
    orders: tuple[tuple[str, ...], ...] = ()
    videos: int | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    part_counts: dict[str, int] = Field(default_factory=dict)
    counts_of: str = ""
    folds: dict[str, tuple[int, int]] = Field(default_factory=dict)

    @property
    def counted_part(self) -> tuple[str, str]:
        """The fold, and its part, whose classes ``part_counts`` are of."""
        fold, _, part = self.counts_of.rpartition(" ")
        return fold or "1", part


@cache
def known_datasets() -> dict[str, Known]:
    """Every data set by the name that the command line gives it."""
    text = files("pipeline.datasets").joinpath("known.toml").read_text("utf-8")
    return {name: Known.model_validate(table) for name, table in tomllib.loads(text).items()}


def class_of_word(word: str) -> str | None:
    """The class that a word or an abbreviation names in any data set here.

    >>> class_of_word("Angry"), class_of_word("an"), class_of_word("bored")
    ('anger', 'anger', None)
    """
    return _CLASS_OF.get(word.lower())


def full_class_name(word: str) -> str:
    """The class that a whole word names, or else the word itself: a class of one's own.

    >>> full_class_name("Happy"), full_class_name("an"), full_class_name("Bored")
    ('happiness', 'an', 'Bored')
    """
    is_whole = len(word) > 3 or word.lower() in ("sad", "joy")
    return (class_of_word(word) if is_whole else None) or word
