"""A store <-> one HDF5 file, and other people's features -> a store.

An exported file holds ``features`` and ``frame_index`` as contiguous datasets, and under ``files``
every other file of the manifest, byte for byte, so that importing it gives the same store with the
same digest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cache.chunks import DTYPES, array_shape, chunk_name, read_chunk, rows_name
from cache.errors import DamagedError, RefusedError
from cache.files import (
    canonical_json,
    locked,
    sha256,
    sha256_file,
    storage_errors,
    sync_directory,
)
from cache.journal import is_chunk
from cache.plan import Plan, Unit, VideoStatus
from cache.remote import StorePath
from cache.store import Store, create_store, open_store

FORMAT = "tgdfer store"

ReadVideo = Callable[[str], NDArray[Any]]


def export_store(path: StorePath | str, file: Path) -> str:
    """Write the finished store at ``path`` into one HDF5 file; returns the store's digest.

    The file gets its name only when it is complete.  What a killed export left is overwritten.
    Raises RefusedError if the file exists already, or if another process is writing it.
    """
    store = open_store(path)
    temporary = file.with_name(f".{file.name}.unfinished")
    with storage_errors(file), locked(temporary, wait=False) as mine:
        if not mine:
            raise RefusedError(f"another process is writing {file}; wait, or choose another name")
        try:
            if file.exists():
                raise RefusedError(f"{file} exists already; remove it or choose another name")
            # Its own lock would be at odds with ours.
            with h5py.File(temporary, "w", locking=False) as out:
                _write_hdf5(store, out)
            _make_durable(temporary)
            os.replace(temporary, file)
            sync_directory(file.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return store.digest


def is_export(file: Path) -> bool:
    """Whether ``file`` is an HDF5 file that ``export_store`` wrote."""
    if not file.is_file() or not h5py.is_hdf5(file):
        return False
    with h5py.File(file, "r") as source:
        return bool(source.attrs.get("format") == FORMAT)


def import_store(file: Path, path: Path) -> str:
    """Write the store exported to ``file`` to ``path``; returns its digest.

    Raises DamagedError unless every file has the sha256 given in the exported manifest.
    """
    with h5py.File(file, "r") as source:
        files = {name: data[()].tobytes() for name, data in _datasets(source["files"])}
        plan = Plan.model_validate_json(files["plan.json"])
        writer = create_store(path, plan, {n: files[n] for n in files if _is_fixed(n)})
        for unit in writer.todo():
            with writer.claim(unit) as mine:
                if mine:
                    for view in unit.views:
                        one = Unit(unit.block, unit.start, unit.stop, (view,))
                        writer.commit(one, *_read_unit(source, one, files))
        digest = writer.finalise()
        expected = str(source.attrs["digest"])
    if digest != expected:
        raise DamagedError(f"{file} gives digest {digest}, it was exported with {expected}")
    return expected


def import_features(
    source: Path,
    path: Path,
    make_plan: Callable[[int, int, int, str], Plan],
    fixed: Mapping[str, bytes],
) -> str:
    """Other people's features -> a store; returns its digest.

    ``source`` is a folder with one ``ID.npy`` per video, or an HDF5 file with one dataset per video
    or with ``features`` [video, ...] and ``ids``; each video is [frame, dim] or [view, frame, dim].
    ``make_plan`` gets (views, frames, dim, sha256 of the source's files) and knows the videos.
    Raises RefusedError if ids or shapes do not agree, naming them.
    """
    with _videos_of(source) as (ids, read):
        if not ids:
            raise RefusedError(f"{source} holds no features")
        views, frames, dim = _views_first(read(ids[0])).shape
        plan = make_plan(views, frames, dim, source_digest(source))
        _check_ids(source, ids, plan.videos.ids)
        writer = create_store(path, plan, fixed)
        for unit in writer.todo():
            with writer.claim(unit) as mine:
                if mine:
                    names = plan.videos.ids[unit.start : unit.stop]
                    block = np.stack([_checked(source, name, read(name), plan) for name in names])
                    index = np.full(block[:, list(unit.views)].shape[:3], -1, np.int32)
                    rows = [
                        VideoStatus(id=name, status="ok", flags=("imported",)) for name in names
                    ]
                    writer.commit(unit, block[:, list(unit.views)], index, rows)
        digest = writer.finalise()
    if digest is None:
        raise RefusedError(f"{path} is unfinished: another process is working on it; run again")
    return digest


def _read_unit(
    source: h5py.File, unit: Unit, files: Mapping[str, bytes]
) -> tuple[NDArray[np.float16], NDArray[np.int32], list[VideoStatus]]:
    view = unit.views[0]
    features, index = (source[array][unit.start : unit.stop, view : view + 1] for array in DTYPES)
    rows = json.loads(files[rows_name(unit.block, view)])
    return features, index, [VideoStatus.model_validate(row) for row in rows]


def source_digest(source: Path) -> str:
    """sha256 of a file, or of the names and sha256 of a folder's .npy files."""
    if source.is_file():
        return sha256_file(source)
    digest = hashlib.sha256()
    for file in sorted(source.glob("*.npy")):
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _write_hdf5(store: Store, out: h5py.File) -> None:
    out.attrs["format"] = FORMAT
    out.attrs["schema_version"] = store.plan.schema_version
    out.attrs["digest"] = store.digest
    out.attrs["identity"] = canonical_json(store.identity.model_dump(mode="json")).decode()
    for array, dtype in DTYPES.items():
        data = out.create_dataset(array, array_shape(store.plan, array), dtype)
        for unit in store.plan.units():
            for view in unit.views:
                name = chunk_name(array, unit.block, view)
                values = read_chunk(store.path / name, array, store.manifest["files"][name][2])
                shape = (-1, *data.shape[2:])
                rows = values.reshape(shape)[: unit.stop - unit.start]
                data[unit.start : unit.stop, view] = rows
    for name, (_, expected, *_) in store.manifest["files"].items():
        if not is_chunk(name):
            content = (store.path / name).read_bytes()
            if sha256(content) != expected:
                raise DamagedError(
                    f"{store.path / name} is damaged; see tgdfer store verify --deep"
                )
            out.create_dataset(f"files/{name}", data=np.frombuffer(content, np.uint8))


def _make_durable(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    group.visititems(
        lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None
    )
    return iter(found)


def _is_fixed(name: str) -> bool:
    return name in ("text.json", "text.safetensors", "truth.npy")


@contextmanager
def _videos_of(source: Path) -> Iterator[tuple[Sequence[str], ReadVideo]]:
    """(ids, function that reads one video) of a source."""
    if source.is_dir():
        files = {file.stem: file for file in sorted(source.glob("*.npy"))}
        yield list(files), lambda video: np.load(files[video], allow_pickle=False)
        return
    if not source.is_file() or not h5py.is_hdf5(source):
        raise RefusedError(f"{source} is neither an HDF5 file nor a folder of .npy files")
    with h5py.File(source, "r") as file:
        if "features" in file and "ids" in file:
            ids = [x.decode() if isinstance(x, bytes) else str(x) for x in file["ids"][()]]
            row = {video: n for n, video in enumerate(ids)}
            yield ids, lambda video: file["features"][row[video]]
        else:
            named = dict(_datasets(file))
            yield list(named), lambda video: named[video][()]


def _views_first(values: NDArray[Any]) -> NDArray[Any]:
    return values[None] if values.ndim == 2 else values


def _check_ids(source: Path, ids: Sequence[str], expected: Sequence[str]) -> None:
    twice = len(ids) - len(set(ids))
    lacking = sorted(set(expected) - set(ids))
    unknown = sorted(set(ids) - set(expected))
    if twice or lacking or unknown:
        raise RefusedError(
            f"{source}: {len(lacking)} videos of the list have no features{_such(lacking)}, "
            f"{len(unknown)} features belong to no video{_such(unknown)}, {twice} ids repeat"
        )


def _such(ids: Sequence[str]) -> str:
    return f" ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})" if ids else ""


def _checked(source: Path, video: str, values: NDArray[Any], plan: Plan) -> NDArray[np.float16]:
    values = _views_first(values)
    shape = (plan.views, plan.frames, plan.dim)
    if values.shape != shape or not np.issubdtype(values.dtype, np.floating):
        raise RefusedError(
            f"{source}: video {video} has {values.dtype} {values.shape}, expected floating {shape} "
            "(views, frames, dim); every video needs the same number of frames"
        )
    with np.errstate(over="ignore"):
        kept = values.astype(np.float16)
    if not np.isfinite(kept).all():
        raise RefusedError(f"{source}: video {video} has features that are not finite in float16")
    return kept
