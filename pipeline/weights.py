"""A file of weights -> its tensors and their digest; imports no torch and executes nothing.

Read are safetensors and what torch.save and TorchScript write.  The digest covers names,
dtypes, shapes and values, so it is the same in each of these formats.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from cache.errors import RefusedError
from cache.files import canonical_json
from cache.outside import open_outside, parse_json, read_text
from pipeline.archive import (
    DTYPES,
    Stored,
    find_in_archive,
    find_in_legacy,
    has_constant,
    is_archive,
    is_legacy,
)

# What marks a digest of tensors.  Stores made before it existed have the sha256 of the file.
TENSORS = "tensors:"
_FILE_BYTES_MAX = 32 << 30  # open_clip's largest model takes 20 GB
_TENSOR_BYTES_MAX = 2 << 30
_HEADER_BYTES_MAX = 8 << 20
_CONFIG_BYTES_MAX = 1 << 20
# Constants and counters that some formats store beside the weights; no feature depends on them.
_NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
_NO_WEIGHTS |= {"attn_mask", "position_ids", "num_batches_tracked"}


class Weight(NamedTuple):
    """One tensor of a file, its values as little-endian bytes."""

    name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    data: bytearray


class Digest:
    """The digest of weights, given in the order of ``read_weights``, and of a configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._hash = hashlib.sha256(canonical_json(config) + b"\n")

    def add(self, weight: Weight) -> None:
        """Add one tensor."""
        kind = [_canonical(weight.name), weight.dtype, weight.shape]
        self._hash.update(canonical_json(kind) + b"\n")
        self._hash.update(weight.data)

    def __str__(self) -> str:
        return TENSORS + self._hash.hexdigest()


def digest_weights(path: Path, config: dict[str, Any], like: str = TENSORS) -> str:
    """The digest of the weights at ``path`` and of their model's configuration.

    If ``like`` is a sha256 of a file, as older stores have it, so is the result.  Raises
    RefusedError if the file cannot be read.
    """
    if not like.startswith(TENSORS):
        with open_weights(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = Digest(config)
    for weight in read_weights(path):
        digest.add(weight)
    return str(digest)


def traced_with(path: Path, value: float) -> bool:
    """Whether the file is a traced TorchScript archive whose code uses this number.

    Raises RefusedError if the file is no file of weights; their values are not read.
    """
    with _opened(path) as (file, _):
        return is_archive(file) and has_constant(file, value)


def read_weights(path: Path) -> Iterator[Weight]:
    """The weights at ``path``, one at a time.

    Raises RefusedError if they cannot be read, or if the file holds anything but tensors.
    """
    with _opened(path) as (file, ordered):
        for name, stored in ordered:
            yield Weight(name, stored.dtype, stored.shape, stored.read(file))


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object at ``path``; raises RefusedError if it is none, or larger than 1 MiB."""
    found = parse_json(read_text(path, "the configuration of a model", _CONFIG_BYTES_MAX), path)
    try:
        canonical_json(found)  # which knows no infinite numbers and no broken characters
    except ValueError as error:
        raise RefusedError(f"{path} is not valid JSON: {error}") from error
    return found


def is_no_weight(name: str) -> bool:
    """Whether a tensor of this name is a constant or a counter."""
    return name.rpartition(".")[2] in _NO_WEIGHTS


def open_weights(path: Path) -> BufferedReader:
    """Open a file of weights; raises RefusedError if there is none, or if it is a device."""
    return open_outside(path, "a file of weights", _FILE_BYTES_MAX)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, list[tuple[str, Stored]]]]:
    """The open file, and where its weights are, in the order of their digest."""
    with open_weights(path) as file:
        try:
            yield file, _in_order(_find(file), os.fstat(file.fileno()).st_size)
        except Exception as error:  # whatever a malformed file leads to
            reason = str(error) if isinstance(error, ValueError) else f"it is damaged ({error!r})"
            raise RefusedError(
                f"the weights {path} do not load: {reason[:500]}; "
                "pass safetensors or a plain state dict of this model"
            ) from error


def _find(file: BufferedReader) -> dict[str, Stored]:
    if is_archive(file):
        return find_in_archive(file)
    return find_in_legacy(file) if is_legacy(file) else _find_in_safetensors(file)


def _find_in_safetensors(file: BufferedReader) -> dict[str, Stored]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = 8 + int.from_bytes(file.read(8), "little")
    if not 8 < start <= min(size, _HEADER_BYTES_MAX):
        raise ValueError("it is neither safetensors nor a zip file of torch.save or TorchScript")
    header = parse_json(file.read(start - 8), "its header")
    header.pop("__metadata__", None)
    found = {name: _from_header(name, entry, start) for name, entry in header.items()}
    ends = sorted((x.start, x.start + x.bytes) for x in found.values())
    edges = [(start, start), *ends, (size, size)]
    if any(before[1] != after[0] for before, after in pairwise(edges)):
        raise ValueError("its tensors overlap, or leave gaps, or end before or after the file")
    return found


def _from_header(name: str, entry: Any, start: int) -> Stored:
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPES or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"its header describes {name[:80]!r} as {str(entry)[:200]}")
    stored = Stored(dtype, shape, start + begin)
    if stored.bytes != end - begin:
        raise ValueError(f"{name[:80]!r} has {end - begin} bytes, its shape needs {stored.bytes}")
    return stored


def _in_order(found: dict[str, Stored], size: int) -> list[tuple[str, Stored]]:
    """The weights among the tensors of a file, in the order of their digest."""
    if not all(isinstance(name, str) and name.isprintable() for name in found):
        raise ValueError("a tensor has a name that is no printable text")
    # As torch's DataParallel names them.
    prefix = "module." if all(name.startswith("module.") for name in found) else ""
    weights = {name.removeprefix(prefix): stored for name, stored in found.items()}
    weights = {name: w for name, w in weights.items() if not is_no_weight(name)}
    ordered = sorted(weights.items(), key=lambda item: _canonical(item[0]))
    if len({_canonical(name) for name in weights}) != len(weights) or not weights:
        raise ValueError("it holds no weights, or the text tower's twice")
    for name, stored in ordered:
        if not 0 < stored.bytes <= _TENSOR_BYTES_MAX:
            raise ValueError(f"{name[:80]} has {stored.bytes} bytes, no layer of an encoder has")
    if sum(stored.bytes for stored in weights.values()) > 2 * size:
        raise ValueError("its tensors share their storage")
    return ordered


def _canonical(name: str) -> str:
    # open_clip names the text tower's weights with or without this prefix.
    return name.removeprefix("text.")
