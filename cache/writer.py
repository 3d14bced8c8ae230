"""Blocks of features -> a store that survives being killed at any moment."""

import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.chunks import chunk_name, encode_chunk, zarr_metadata
from cache.errors import RefusedError, StorageError
from cache.files import (
    append_record,
    canonical_json,
    locked,
    make_directories,
    read_records,
    remove_file,
    sha256,
    sha256_file,
    write_files,
)
from cache.identity import differences, side_by_side
from cache.plan import Plan, Row, Unit, encode_plan, read_plan

_DIRECTORIES = ("features", "frame_index", "rows", "journal", "locks", ".tmp")


def create_store(path: Path, plan: Plan, fixed: Mapping[str, bytes]) -> "StoreWriter":
    """Create the store at ``path``, or open it again to go on where it stopped.

    ``fixed`` holds the files that belong to the plan (``text.safetensors``, ``text.json`` and
    optionally ``truth.npy``).  An existing store must have been planned the same; more views than
    it has are added to it.  Raises RefusedError with the differing fields side by side.
    """
    path = Path(path)
    _refuse_foreign_directory(path)
    make_directories(*(path / name for name in _DIRECTORIES))
    with locked(path / "locks" / "plan", wait=True):
        if (path / "plan.json").exists():
            plan = _agree(path, read_plan(path), plan)
        beside = {**fixed, **zarr_metadata(plan)}
        _write(path, {n: d for n, d in beside.items() if not _same(path / n, len(d), sha256(d))})
        if not (path / "plan.json").exists():
            _write(path, {"plan.json": encode_plan(plan)})
    return StoreWriter(path, plan)


def check_same(path: Path, stored: Plan, asked: Plan) -> None:
    """Refuse to go on with a store that was planned otherwise, showing the fields side by side."""
    rows = differences(stored.identity, asked.identity)
    for name in ("frames", "dim", "block_videos"):
        if getattr(stored, name) != getattr(asked, name):
            rows.append((name, str(getattr(stored, name)), str(getattr(asked, name))))
    if stored.videos != asked.videos:
        rows += _video_differences(stored, asked)
    if rows:
        raise RefusedError(
            f"{path} was made from something else:\n{side_by_side(rows)}\n"
            "choose another --store, or ask for the same"
        )


class StoreWriter:
    """An unfinished store, open for writing; several processes may hold one each."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self._journal = path / "journal" / f"{uuid.uuid4().hex}.jsonl"
        self._committed = self._verified_records()

    def todo(self, shard: tuple[int, int] = (0, 1)) -> list[Unit]:
        """Units not committed yet, of the blocks with ``block % n == i`` for shard (i, n)."""
        i, n = shard
        return [
            unit
            for full in self.plan.units()
            if full.block % n == i and (unit := self._rest(full)).views
        ]

    @contextmanager
    def claim(self, unit: Unit) -> Iterator[bool]:
        """Own a unit while the context lasts; False if another process has it or has done it."""
        with locked(self.path / "locks" / str(unit.block), wait=False) as got:
            if got and (self.path / _rows_name(unit)).exists():
                self._committed = self._verified_records(known=self._committed)
            yield got and self._rest(unit).views == unit.views

    def commit(
        self,
        unit: Unit,
        features: NDArray[np.float16],
        frame_index: NDArray[np.int32],
        rows: Sequence[Row],
    ) -> None:
        """Keep a unit: features [video, view, frame, dim], frame_index [video, view, frame].

        Durable on return.  Raises ValueError for a wrong shape, dtype or a value that is not
        finite, StorageError if the disk fails.
        """
        self._check(unit, features, frame_index, rows)
        files = {_rows_name(unit): _encode_rows(rows)}
        for i, view in enumerate(unit.views):
            for array, values in (("features", features), ("frame_index", frame_index)):
                name = chunk_name(array, unit.block, view)
                files[name] = encode_chunk(array, values[:, i], self.plan.block_videos)
        _write(self.path, files)
        record = {
            "block": unit.block,
            "views": list(unit.views),
            "files": {name: [len(data), sha256(data)] for name, data in files.items()},
        }
        append_record(self._journal, record)
        self._remember(self._committed, record)

    def finalise(self) -> str | None:
        """Write the manifest and return the store's digest; None while a unit is still to do.

        Hashes every file again and raises StorageError where one changed since its commit.
        """
        with locked(self.path / "locks" / "plan", wait=True):
            self._committed = self._verified_records(known=self._committed)
            if self.todo():
                return None
            files = self._hash_all()
            missing = self._missing(sorted(name for name in files if name.startswith("rows/")))
            digest = sha256(canonical_json(files))
            manifest = {
                "schema_version": self.plan.schema_version,
                "identity": self.plan.identity.digest,
                "counts": {"videos": len(self.plan.videos.ids), "missing": len(missing)},
                "missing": missing,
                "files": files,
                "digest": digest,
            }
            _write(self.path, {"manifest.json": canonical_json(manifest) + b"\n"})
            # Nothing is being written any more: what lies here was left by killed writers.
            for litter in (self.path / ".tmp").iterdir():
                litter.unlink(missing_ok=True)
        return digest

    def note(self, **facts: Any) -> None:
        """Append a line to ``provenance.jsonl``: when, where, with what; not part of the digest."""
        host = {"time": time.time(), "host": platform.node(), "python": platform.python_version()}
        append_record(self.path / "provenance.jsonl", host | facts)

    def _rest(self, unit: Unit) -> Unit:
        done = self._committed.get(unit.block, {})
        return Unit(
            unit.block, unit.start, unit.stop, tuple(v for v in unit.views if v not in done)
        )

    def _verified_records(
        self, known: dict[int, dict[int, dict[str, list[Any]]]] | None = None
    ) -> dict[int, dict[int, dict[str, list[Any]]]]:
        """{block: {view: {file: [size, sha256]}}} of the records whose files are still the same."""
        committed = {block: dict(views) for block, views in (known or {}).items()}
        for journal in sorted((self.path / "journal").glob("*.jsonl")):
            for record in read_records(journal):
                views = [v for v in record["views"] if v not in committed.get(record["block"], {})]
                if views and all(_same(self.path / f, *s) for f, s in record["files"].items()):
                    self._remember(committed, record)
        return committed

    @staticmethod
    def _remember(
        committed: dict[int, dict[int, dict[str, list[Any]]]], record: dict[str, Any]
    ) -> None:
        views = committed.setdefault(record["block"], {})
        views.update(dict.fromkeys(record["views"], record["files"]))

    def _check(
        self,
        unit: Unit,
        features: NDArray[np.float16],
        frame_index: NDArray[np.int32],
        rows: Sequence[Row],
    ) -> None:
        shape = (unit.stop - unit.start, len(unit.views), self.plan.frames)
        if features.shape != (*shape, self.plan.dim) or features.dtype != np.float16:
            raise ValueError(
                f"block {unit.block}: features are {features.dtype} {features.shape}, "
                f"expected float16 {(*shape, self.plan.dim)}"
            )
        if frame_index.shape != shape or frame_index.dtype != np.int32:
            raise ValueError(f"block {unit.block}: frame_index is {frame_index.shape}, not {shape}")
        if [row.id for row in rows] != list(self.plan.videos.ids[unit.start : unit.stop]):
            raise ValueError(f"block {unit.block}: the rows are not those of the plan, in order")
        ok = np.array([row.status == "ok" for row in rows])
        finite = np.array([np.isfinite(video).all() for video in features])
        if not finite[ok].all() or not np.isnan(features[~ok]).all():
            bad = rows[int(np.flatnonzero(finite != ok)[0])].id
            raise ValueError(f"block {unit.block}: features of video {bad} are not finite")

    def _hash_all(self) -> dict[str, list[Any]]:
        files: dict[str, list[Any]] = {}
        for views in self._committed.values():
            for view in range(self.plan.views):
                files |= views[view]
        for name, expected in files.items():
            if not _same(self.path / name, *expected):
                raise StorageError(
                    f"{self.path / name} changed on disk since it was written; check the disk, "
                    "then run tgdfer extract again to redo it"
                )
        fixed = ["plan.json", "zarr.json", "text.json", "text.safetensors", "truth.npy"]
        fixed += ["features/zarr.json", "frame_index/zarr.json"]
        for path in (self.path / name for name in fixed):
            if path.exists():
                name = path.relative_to(self.path).as_posix()
                files[name] = [path.stat().st_size, sha256_file(path)]
        return dict(sorted(files.items()))

    def _missing(self, names: Sequence[str]) -> dict[str, str]:
        missing: dict[str, str] = {}
        for name in names:
            for row in json.loads((self.path / name).read_bytes()):
                if row["status"] == "failed":
                    missing.setdefault(row["id"], row["reason"])
        return missing


def _agree(path: Path, stored: Plan, asked: Plan) -> Plan:
    """The plan to go on with: the stored one, with views added if more are asked for."""
    check_same(path, stored, asked)
    if asked.views <= stored.views:
        return stored
    # The manifest goes first: whatever happens after, the store counts as unfinished.
    remove_file(path / "manifest.json")
    grown = stored.model_copy(update={"views": asked.views})
    _write(path, {"plan.json": encode_plan(grown)})
    return grown


def _video_differences(stored: Plan, asked: Plan) -> list[tuple[str, str, str]]:
    ours, theirs = stored.videos, asked.videos
    rows = [
        (f"number of {name}", str(len(getattr(ours, name))), str(len(getattr(theirs, name))))
        for name in ("ids", "classes", "folds", "subsets")
        if len(getattr(ours, name)) != len(getattr(theirs, name))
    ]
    for index, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=False)):
        if a != b:
            rows.append((f"video {index}", a, b))
            break
    return rows


def _refuse_foreign_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RefusedError(f"{path} is a file, expected a directory for the store; check --store")
    if path.is_dir() and not (path / "plan.json").exists():
        strange = sorted({p.name for p in path.iterdir()} - _own_names())
        if strange:
            raise RefusedError(
                f"{path} is not a feature store and is not empty (it has {strange[0]}); "
                "choose another --store"
            )


def _own_names() -> set[str]:
    # What a creation that was killed before its plan.json leaves behind.
    return {*_DIRECTORIES, "zarr.json", "text.json", "text.safetensors", "truth.npy"}


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    write_files({root / name: data for name, data in files.items()}, root / ".tmp")


def _same(path: Path, size: int, digest: str) -> bool:
    try:
        return os.stat(path).st_size == size and sha256_file(path) == digest
    except FileNotFoundError:
        return False


def _rows_name(unit: Unit) -> str:
    return f"rows/{unit.block}.{unit.views[0]}"


def _encode_rows(rows: Sequence[Row]) -> bytes:
    return canonical_json([row.model_dump(mode="json") for row in rows]) + b"\n"
