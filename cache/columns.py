"""What is known of each video, as columns: arrays in memory, lists in JSON, tensors in a file.

A text that was read from a file is made only when it is asked for, so that the names of a million
videos cost no more than their bytes.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field, GetPydanticSchema, PlainSerializer, WrapValidator

VOTES_MAX = 1e9

Text = TypeVar("Text", str, str | None)
_MARKED_BYTES = 64


class Texts(Sequence[Text]):
    """Texts in UTF-8, one after the other; None has the length -1.

    Raises ValueError unless the lengths fit the bytes and every text is UTF-8.
    """

    def __init__(self, lengths_N: NDArray[np.int32], utf8: bytes) -> None:
        self.lengths_N, self.utf8 = lengths_N, utf8
        sizes_N = np.maximum(lengths_N, 0)
        self._ends_N = np.cumsum(sizes_N, dtype=np.int64)
        if lengths_N.min(initial=0) < -1 or sizes_N.sum(dtype=np.int64) != len(utf8):
            raise ValueError("the lengths of texts do not fit their bytes")
        if not utf8.isascii():
            utf8.decode()
            if (self.first_bytes() & 0xC0 == 0x80).any():
                raise ValueError("a text begins inside a character")

    @classmethod
    def of(cls, texts: Iterable[Text]) -> "Texts[Text]":
        """The same texts in this form."""
        if isinstance(texts, Texts):
            return texts
        parts = [None if text is None else text.encode() for text in texts]
        lengths = [-1 if part is None else len(part) for part in parts]
        return cls(np.array(lengths, np.int32), b"".join(filter(None, parts)))

    def __len__(self) -> int:
        return len(self.lengths_N)

    @overload
    def __getitem__(self, at: int) -> Text: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Text, ...]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return tuple(self._each(at))
        return self._text(int(self._ends_N[at]), int(self.lengths_N[at]))

    def __iter__(self) -> Iterator[Text]:
        for first in range(0, len(self), 4096):
            yield from self._each(slice(first, first + 4096))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    def first_bytes(self) -> NDArray[np.uint8]:
        """The first byte of every text that has one."""
        ends, lengths = (x[self.lengths_N > 0] for x in (self._ends_N, self.lengths_N))
        return np.frombuffer(self.utf8, np.uint8)[ends - lengths]

    def may_repeat(self) -> bool:
        """False if no two texts are equal; rarely True if none are."""
        marks_N = np.sort(self._marks())
        return bool((marks_N[1:] == marks_N[:-1]).any())

    def _each(self, part: slice) -> Iterator[Any]:
        return map(self._text, self._ends_N[part].tolist(), self.lengths_N[part].tolist())

    def _text(self, end: int, length: int) -> Any:
        return None if length < 0 else self.utf8[end - length : end].decode()

    def _marks(self) -> NDArray[np.uint64]:
        """A number for each text, of its length and its end: the same for equal texts."""
        padded = bytes(8) + self.utf8
        # At every place, the eight bytes before it.
        before: NDArray[np.uint64] = np.ndarray(len(self.utf8) + 1, "<u8", padded, strides=(1,))
        marks_N = self.lengths_N.astype(np.uint64)
        for back in range(0, _MARKED_BYTES, 8):
            own = np.flatnonzero(self.lengths_N > back)
            foreign = np.maximum(back + 8 - self.lengths_N[own], 0)  # bytes of the text before
            words = before[self._ends_N[own] - back] >> (8 * foreign).astype(np.uint64)
            marks_N[own] = (marks_N[own] ^ words) * np.uint64(0x9E3779B97F4A7C15)
        return marks_N


def _column(
    kind: type, in_json: Any, make: Callable[[Any], object], write: Callable[[Any], object]
) -> GetPydanticSchema:
    """A field that holds a ``kind``, made from the ``in_json`` that stands for it in JSON."""

    def validate(found: object, parse: Callable[[object], Any]) -> object:
        return found if isinstance(found, kind) else make(parse(found))

    column = Annotated[in_json, WrapValidator(validate), PlainSerializer(write)]
    return GetPydanticSchema(lambda _, handler: handler(column))


def _votes_array(rows: Sequence[Sequence[float] | None]) -> NDArray[np.float64]:
    votes_NK = np.full((len(rows), max((len(row or ()) for row in rows), default=0)), np.nan)
    for row, votes in enumerate(rows):
        if votes is not None:
            votes_NK[row, : len(votes)] = votes
    return votes_NK


def _votes_json(votes_NK: NDArray[np.float64]) -> list[list[float] | None]:
    return [None if np.isnan(row[0]) else row.tolist() for row in votes_NK]


_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
_Vote = Annotated[float, Field(ge=0, le=VOTES_MAX)]
_Row = Annotated[tuple[_Vote, ...], Field(min_length=1)]

# Labels, or rows of the store.
Counts = Annotated[
    NDArray[np.int32],
    _column(np.ndarray, tuple[_Count, ...], lambda own: np.array(own, np.int32), np.ndarray.tolist),
]
# One number per class, [video, class]; NaN where nothing is known.
Votes = Annotated[
    NDArray[np.float64], _column(np.ndarray, tuple[_Row | None, ...], _votes_array, _votes_json)
]
Names = Annotated[Sequence[str], _column(Texts, tuple[str, ...], tuple, list)]
KnownNames = Annotated[Sequence[str | None], _column(Texts, tuple[str | None, ...], tuple, list)]


def refuse_repeated(what: str, values: Collection[str]) -> None:
    """Raise ValueError if two values are equal."""
    if isinstance(values, Texts) and not values.may_repeat():
        return
    if len(set(values)) < len(values):
        raise ValueError(f"{what} {Counter(values).most_common(1)[0][0]} is listed twice")


def listed_once(rows: NDArray[np.int32], videos: int, where: str) -> NDArray[np.bool_]:
    """Which videos are listed, [video]; raises ValueError for a strange row or one listed twice."""
    if rows.size and not 0 <= rows.min() <= rows.max() < videos:
        strange = rows[(rows < 0) | (rows >= videos)][0]
        raise ValueError(f"row {strange} of a fold or a subset, but there are {videos} videos")
    times_N = np.bincount(rows, minlength=videos)
    if times_N.max() > 1:
        raise ValueError(f"row {times_N.argmax()} is listed twice{where}")
    return times_N > 0


def check_votes(votes_NK: NDArray[np.float64], videos: int, classes: int) -> None:
    """Raise ValueError unless they are those of some of the videos, for all classes."""
    known = votes_NK[~np.isnan(votes_NK).all(axis=1)]
    if len(votes_NK) != videos or not len(known):
        raise ValueError(f"{len(votes_NK)} votes of {videos} videos, {len(known)} of them known")
    in_range = ((known >= 0) & (known <= VOTES_MAX)).all(axis=1)
    wrong = known[~(in_range & (known.sum(axis=1) > 0))]
    if known.shape[1] != classes or len(wrong):
        first = (wrong if len(wrong) else known)[0]
        shown = first[~np.isnan(first)].tolist()
        raise ValueError(f"votes {shown}, expected {classes} numbers that are not all 0")


def check_sources(sources: Sequence[str]) -> None:
    """Raise ValueError for a name that does not start from the data set's root."""
    if isinstance(sources, Texts) and b".." not in sources.utf8:
        first_bytes = sources.first_bytes()
        if len(first_bytes) == len(sources) and not (first_bytes == ord("/")).any():
            return
    for name in sources:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"source {name!r} does not start from the data set's root")


def encode_columns(columns: Mapping[str, NDArray[Any] | Texts[Any]]) -> bytes:
    """The bytes of a safetensors file; texts are two tensors, ``lengths`` and ``utf8``."""
    from safetensors.numpy import save

    tensors = {}
    for name, column in columns.items():
        if isinstance(column, Texts):
            tensors[f"{name}.lengths"] = column.lengths_N
            tensors[f"{name}.utf8"] = np.frombuffer(column.utf8, np.uint8)
        else:
            tensors[name] = np.ascontiguousarray(column)
    return save(tensors)


class ColumnFile:
    """The columns of a file that anybody may have written; each is taken once.

    Every method raises ValueError for what ``encode_columns`` would not have written.
    """

    def __init__(self, data: bytes) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            self._left: dict[str, NDArray[Any]] = load(data)
        except (SafetensorError, KeyError) as error:  # KeyError: a type that NumPy lacks
            raise ValueError(f"it is no safetensors file of columns: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._left or f"{name}.lengths" in self._left

    def take(self, name: str, dtype: DTypeLike = np.int32, axes: int = 1) -> NDArray[Any]:
        """The column of numbers with this name."""
        column = self._left.pop(name, None)
        if column is None or column.dtype != dtype or column.ndim != axes:
            raise ValueError(f"column {name} is missing, or of another type")
        return column

    def take_texts(self, name: str, all_known: bool = True) -> Texts[Any]:
        """The column of texts with this name."""
        lengths = self.take(f"{name}.lengths")
        if all_known and lengths.min(initial=0) < 0:
            raise ValueError(f"column {name} lacks a text")
        return Texts(lengths, self.take(f"{name}.utf8", np.uint8).tobytes())

    def refuse_others(self) -> None:
        """Refuse columns that were not taken."""
        if self._left:
            raise ValueError(f"column {min(self._left)} is unknown")
