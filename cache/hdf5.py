"""A store <-> one HDF5 file, and other people's features -> a store.

An exported file holds ``features`` and ``frame_index`` as contiguous datasets, and under ``files``
every other file of the manifest, byte for byte, so that importing it gives the same store with the
same digest. The plan is always in one file there.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cache.chunks import DTYPES, array_shape, chunk_name, read_chunk, rows_name, zarr_metadata
from cache.errors import DamagedError, RefusedError
from cache.files import (
    canonical_json,
    locked,
    sha256,
    sha256_file,
    storage_errors,
    sync_directory,
)
from cache.journal import fingerprint_of, is_chunk
from cache.manifest import file_names, make_manifest, refuse_undeclared
from cache.plan import Plan, Unit, VideoStatus, encode_plan, parse_plan, parse_rows
from cache.remote import StorePath, inside
from cache.store import Store, create_store, open_store
from cache.writer import encode_unit

FORMAT = "tgdfer store"
IDS_MAX = 1 << 24
_AGAIN = "export the store again"
_OTHERS = "another process is working on it; run again"

Values = Any  # an array, or an HDF5 dataset that is read when it is used
ReadVideo = Callable[[str], Values]


def export_store(path: StorePath | str, file: Path) -> str:
    """Write the finished store at ``path`` into one HDF5 file; returns the store's digest.

    The file gets its name only when it is complete.  What a killed export left is overwritten.
    Raises RefusedError if the file exists already, or if another process is writing it.
    """
    store = open_store(path)
    if not file.parent.is_dir():
        raise RefusedError(f"{file.parent} is not a folder; make it, or choose another name")
    if isinstance(store.path, Path) and file.resolve().is_relative_to(store.path.resolve()):
        raise RefusedError(f"{file} would be inside the store; choose another folder")
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
    with _opened(file) as source:
        return bool(source.attrs.get("format") == FORMAT)


def import_store(file: Path, path: Path) -> str:
    """Write the store exported to ``file`` to ``path``; returns its digest.

    Raises DamagedError, before anything is written, unless it is the store that was exported.
    """
    with _opened(file) as source:
        with _reading(file):
            export = _Export(file, source)
            digest = export.checked_digest()
        writer = create_store(path, export.plan, export.fixed)
        for unit in writer.todo():
            with writer.claim(unit) as mine:
                if mine:
                    for view in unit.views:
                        one = Unit(unit.block, unit.start, unit.stop, (view,))
                        writer.commit(one, *export.read_unit(one))
        if writer.finalise() is None:
            raise RefusedError(f"{path} is unfinished: {_OTHERS}")
    return digest


class _Export:
    """An exported store, which may have been changed by anybody."""

    def __init__(self, file: Path, source: h5py.File) -> None:
        self._file, self._source = file, source
        what = f"{file} is not as it was exported"
        self.plan = parse_plan(self._read("plan.json"), what, _AGAIN)
        names = {name for name in file_names(self.plan) if not is_chunk(name)}
        found = set(_names(source["files"]))
        if found != names:
            strange = min(found ^ names)
            raise DamagedError(f"{what} ({strange} is missing or strange): {_AGAIN}")
        self._files = {name: self._read(name) for name in names}

    @property
    def fixed(self) -> dict[str, bytes]:
        """The files that belong to the plan."""
        own = ("text.json", "text.safetensors", "truth.npy")
        return {name: self._files[name] for name in own if name in self._files}

    def checked_digest(self) -> str:
        """The digest of the store; raises DamagedError unless it is the one that was exported."""
        beside = {"plan.json": encode_plan(self.plan), **self.fixed, **zarr_metadata(self.plan)}
        files = {name: fingerprint_of(name, data) for name, data in beside.items()}
        for full in self.plan.units():
            for view in full.views:
                unit = Unit(full.block, full.start, full.stop, (view,))
                written = encode_unit(self.plan, unit, *self.read_unit(unit))
                files |= {name: fingerprint_of(name, data) for name, data in written.items()}
        refuse_undeclared(self.plan, files, self._file)
        other = [n for n, data in self._files.items() if fingerprint_of(n, data) != files[n]]
        if other:
            raise DamagedError(f"{self._file}: {min(other)} is not as it was exported; {_AGAIN}")
        found = make_manifest(self.plan, files, self._files.__getitem__)["digest"]
        expected = self._source.attrs["digest"]
        if found != expected:
            raise DamagedError(
                f"{self._file} gives digest {found}, it was exported with {expected}; {_AGAIN}"
            )
        return str(found)

    def read_unit(
        self, unit: Unit
    ) -> tuple[NDArray[np.float16], NDArray[np.int32], list[VideoStatus]]:
        """One view of a block."""
        view = unit.views[0]
        arrays = (_dataset(self._source, name) for name in DTYPES)
        features, index = (array[unit.start : unit.stop, view : view + 1] for array in arrays)
        name = rows_name(unit.block, view)
        ids = self.plan.videos.ids[unit.start : unit.stop]
        what = f"{self._file}: {name} does not describe the videos of its block"
        return features, index, parse_rows(self._files[name], ids, what, _AGAIN)

    def _read(self, name: str) -> bytes:
        data = _dataset(self._source, f"files/{name}")
        # Not in compressed chunks, so that they are no larger than the file.
        if data.dtype != np.uint8 or data.ndim != 1 or data.chunks is not None:
            raise DamagedError(f"{self._file}: files/{name} are no bytes; {_AGAIN}")
        return bytes(data[()].tobytes())


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
    Raises RefusedError, before anything is written, if ids or shapes do not agree, naming them.
    """
    check_source(source)
    with _videos_of(source) as (ids, read):
        with _reading(source):
            if not ids:
                raise RefusedError(f"{source} holds no features")
            views, frames, dim = _shape(source, ids[0], read(ids[0]))
        plan = make_plan(views, frames, dim, source_digest(source))
        _check_ids(source, ids, plan.videos.ids)
        with _reading(source):
            for name in plan.videos.ids:
                _checked(source, name, read(name), plan)
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
        raise RefusedError(f"{path} is unfinished: {_OTHERS}")
    return digest


def source_digest(source: Path) -> str:
    """sha256 of a file, or of the names and sha256 of a folder's .npy files."""
    if source.is_file():
        return sha256_file(source)
    digest = hashlib.sha256()
    for file in _npy_files(source).values():
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _write_hdf5(store: Store, out: h5py.File) -> None:
    root = inside(store.path)
    out.attrs["format"] = FORMAT
    out.attrs["schema_version"] = store.plan.schema_version
    out.attrs["digest"] = store.digest
    out.attrs["identity"] = canonical_json(store.identity.model_dump(mode="json")).decode()
    for array, dtype in DTYPES.items():
        data = out.create_dataset(array, array_shape(store.plan, array), dtype)
        for unit in store.plan.units():
            for view in unit.views:
                name = chunk_name(array, unit.block, view)
                values = read_chunk(root / name, array, store.manifest["files"][name][2])
                shape = (-1, *data.shape[2:])
                rows = values.reshape(shape)[: unit.stop - unit.start]
                data[unit.start : unit.stop, view] = rows
    for name, (_, expected, *_) in store.manifest["files"].items():
        if not is_chunk(name):
            in_two = name == "plan.json" and store.plan.arrays
            content = encode_plan(store.plan) if in_two else (root / name).read_bytes()
            if sha256(content) != expected:
                raise DamagedError(f"{root / name} is damaged; see tgdfer store verify --deep")
            out.create_dataset(f"files/{name}", data=np.frombuffer(content, np.uint8))


def _make_durable(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    with _reading(file):
        opened = h5py.File(file, "r")
    with opened:
        yield opened


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Turn whatever HDF5 and NumPy raise for bad input into one sentence."""
    try:
        yield
    except RefusedError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RefusedError(
            f"{source} cannot be imported ({why}); export the store again, or write the features "
            "as tgdfer store import --help says"
        ) from error


def _names(group: h5py.Group) -> list[str]:
    """Paths of all datasets below, without those behind links."""
    found: list[str] = []
    group.visititems(
        lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return found


def _dataset(source: h5py.File, name: str) -> h5py.Dataset:
    """A dataset; raises RefusedError if it is a link, or if its data is not in this file."""
    item: Any = source
    for part in name.split("/"):
        whole = isinstance(item, h5py.Group)
        if not whole or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise RefusedError(f"{source.filename}: there is no dataset {name}, or it is a link")
        item = item[part]
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise RefusedError(f"{source.filename}: {name} is kept in other files; copy it into one")
    if item.chunks is None and item.id.get_storage_size() < item.nbytes:
        raise RefusedError(f"{source.filename}: {name} was never written")
    return item


def check_source(source: Path) -> None:
    """Raise RefusedError unless there are features at ``source``; looks at none of them."""
    if source.is_dir():
        if not _npy_files(source):
            raise RefusedError(f"{source} holds no features: no .npy files")
    elif not source.is_file() or not h5py.is_hdf5(source):
        raise RefusedError(f"{source} is neither an HDF5 file nor a folder of .npy files")


@contextmanager
def _videos_of(source: Path) -> Iterator[tuple[Sequence[str], ReadVideo]]:
    """(ids, function that gives one video, to be read when it is used) of a source."""
    if source.is_dir():
        files = _npy_files(source)
        # Mapped, so that a header cannot ask for more memory than the file has bytes.
        yield list(files), lambda video: np.load(files[video], mmap_mode="r", allow_pickle=False)
        return
    with _opened(source) as file:
        with _reading(source):
            ids, read = _ids_of(file)
        yield ids, read


def _ids_of(file: h5py.File) -> tuple[Sequence[str], ReadVideo]:
    if "features" not in file or "ids" not in file:
        return _names(file), lambda video: _dataset(file, video)
    listed, features = _dataset(file, "ids"), _dataset(file, "features")
    if listed.ndim != 1 or listed.shape != features.shape[:1] or listed.size > IDS_MAX:
        raise RefusedError(
            f"{file.filename}: ids are {listed.shape} and features {features.shape}, expected one "
            "id for each video"
        )
    ids = [x.decode() if isinstance(x, bytes) else str(x) for x in listed[()]]
    row = {video: n for n, video in enumerate(ids)}
    return ids, lambda video: features[row[video]]


def _npy_files(folder: Path) -> dict[str, Path]:
    """The folder's .npy files by the ids that their names give."""
    return {file.stem: file for file in sorted(folder.glob("*.npy")) if file.is_file()}


def _shape(source: Path, video: str, values: Values) -> tuple[int, ...]:
    """(views, frames, dim) of a video."""
    shape = (1, *values.shape) if len(values.shape) == 2 else values.shape
    if len(shape) != 3:
        raise RefusedError(
            f"{source}: video {video} has shape {shape}, expected (frames, dim) or (views, frames, "
            "dim)"
        )
    return shape


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


def _checked(source: Path, video: str, values: Values, plan: Plan) -> NDArray[np.float16]:
    shape = (plan.views, plan.frames, plan.dim)
    found = _shape(source, video, values)
    if found != shape or not np.issubdtype(values.dtype, np.floating):
        raise RefusedError(
            f"{source}: video {video} has {values.dtype} {found}, expected floating {shape} "
            "(views, frames, dim); every video needs the same number of frames"
        )
    with np.errstate(over="ignore"):
        kept = np.asarray(values[()]).reshape(shape).astype(np.float16)
    if not np.isfinite(kept).all():
        raise RefusedError(f"{source}: video {video} has features that are not finite in float16")
    return kept
