"""Blocks of features -> a store that survives being killed at any moment."""

import platform
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.chunks import chunk_name, encode_chunk, rows_name, view_files, zarr_metadata
from cache.errors import RefusedError, StorageError
from cache.files import (
    append_record,
    canonical_json,
    drop_torn_lines,
    locked,
    make_folders,
    remove_file,
    sha256,
    storage_errors,
    sweep,
    write_files,
)
from cache.identity import differences, side_by_side
from cache.journal import (
    FINAL,
    Commits,
    Files,
    all_unchanged,
    encode_journal,
    fingerprint_of,
    is_unchanged,
    journals,
    make_record,
    read_commits,
)
from cache.local import LocalPath
from cache.manifest import (
    FIXED,
    files_on_disk,
    fixed_fingerprints,
    make_manifest,
    read_manifest,
    refuse_undeclared,
)
from cache.plan import (
    ARRAY_VIDEOS,
    COLUMNS,
    Plan,
    Unit,
    VideoStatus,
    encode_plan_file,
    read_plan,
    refuse_contradiction,
)
from cache.remote import local_path

DIRECTORIES = ("features", "frame_index", "rows", "journal", "locks", ".tmp")


def create_store(path: Path | str, plan: Plan, fixed: Mapping[str, bytes]) -> "StoreWriter":
    """Create the store at ``path``, or reopen it to resume where it stopped.

    ``fixed`` holds the files that belong to the plan (``text.safetensors``, ``text.json`` and
    optionally ``truth.npy``).  An existing store must have the same plan; views that it lacks are
    added.  Raises RefusedError for another plan, showing the differing fields side by side, and
    for a URL.
    """
    path = local_path(path)
    refuse_foreign(path)
    make_folders(path, DIRECTORIES)
    root = LocalPath(path)
    with locked(root / "locks/plan", wait=True):
        is_new = not (root / "plan.json").is_file()
        if not is_new:
            plan = _agree(root, read_plan(path), plan)
        write_beside(root, plan, fixed)
        if is_new and (plan.arrays or len(plan.videos.ids) >= ARRAY_VIDEOS):
            plan, columns = plan.in_arrays()
            write_arrays(root, plan, columns)
        elif is_new:
            _write(root, {"plan.json": encode_plan_file(plan)})
    return StoreWriter(path, plan)


def write_arrays(root: LocalPath, plan: Plan, columns: bytes) -> None:
    """Write the two files of a plan, of which the last puts both into force."""
    _write(root, {COLUMNS: columns})
    _write(root, {"plan.json": encode_plan_file(plan)})


def refuse_foreign(path: Path) -> None:
    """Refuse a path that cannot become a store: a file, or a folder that holds other things."""
    lowest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not lowest.is_dir():
        raise RefusedError(f"{lowest} is a file, expected a directory for the store; check --store")
    if path.is_dir() and not (LocalPath(path) / "plan.json").is_file():
        strange = sorted(set(LocalPath(path).names()) - _own_names())
        if strange:
            raise RefusedError(
                f"{path} is not a feature store and is not empty (it holds {strange[0]}); "
                "choose another --store"
            )


def write_beside(root: LocalPath, plan: Plan, fixed: Mapping[str, bytes]) -> None:
    """Write the files beside the chunks, those that are missing or differ.

    Those of a finished store are left as they are: its manifest holds their sha256, and another
    version of zarr may write ``zarr.json`` differently.
    """
    if (root / "manifest.json").is_file():
        return
    beside = {**fixed, **zarr_metadata(plan)}
    _write(root, {n: d for n, d in beside.items() if not _holds(root / n, d)})


def check_same(path: Path | LocalPath, stored: Plan, asked: Plan) -> None:
    """Refuse to continue a store that has another plan, showing the differences side by side.

    The block size does not affect the features, so it may differ: the store keeps its own.
    """
    rows = differences(stored.identity, asked.identity)
    remedy = "choose another --store, or use the settings of this one"
    count = len(stored.videos.ids)
    names = [name for name, *_ in rows]
    if rows and set(names) <= {"view_rule", "decoder"}:
        remedy = (
            "other options, or other versions of tgdfer or its libraries, made it: train from it "
            "as it is, or choose another --store to extract anew"
        )
    if names == ["videos"] and stored.videos.ids == asked.videos.ids[:count]:
        remedy = (
            f"it holds the first {count} of these videos; to reuse their features, run the "
            f"same command with --store OTHER --reuse {path}"
        )
    if names == ["videos"] and _digest_with_sources(asked, stored) == stored.identity.videos:
        remedy = (
            "the frames would be read from other places: name those of the store with --root and "
            "--source, or choose another --store; with --reuse, files of the same bytes are not "
            "encoded again"
        )
    for name in ("frames", "dim"):
        if getattr(stored, name) != getattr(asked, name):
            rows.append((name, str(getattr(stored, name)), str(getattr(asked, name))))
    if "videos" in names:
        rows += _video_differences(stored, asked)
    if rows:
        raise RefusedError(f"{path} was made from something else:\n{side_by_side(rows)}\n{remedy}")


class StoreWriter:
    """An unfinished store, open for writing; several processes may each have one."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self._root = LocalPath(path)
        self._journal = self._root / f"journal/{uuid.uuid4().hex}.jsonl"
        self._identity = plan.identity.digest
        self._committed: Commits = {}
        self._learn()

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
        if self._rest(unit).views != unit.views:
            yield False
            return
        with locked(self._root / f"locks/{unit.block}", wait=False) as got:
            if got and (self._root / rows_name(unit.block, unit.views[0])).is_file():
                self._learn()
            yield got and self._rest(unit).views == unit.views

    def commit(
        self,
        unit: Unit,
        features: NDArray[np.float16],
        frame_index: NDArray[np.int32],
        rows: Sequence[VideoStatus],
    ) -> None:
        """Commit a unit: features [video, view, frame, dim], frame_index [video, view, frame].

        Durable on return.  Raises ValueError for a wrong shape or dtype or a value that is not
        finite, StorageError if the disk fails.
        """
        files = encode_unit(self.plan, unit, features, frame_index, rows)
        _write(self._root, files)
        prints = {name: fingerprint_of(name, data) for name, data in files.items()}
        views = {v: {n: prints[n] for n in view_files(unit.block, v)} for v in unit.views}
        append_record(self._journal, make_record(self._identity, unit.block, views))
        self._committed |= {(unit.block, view): files for view, files in views.items()}

    def finalise(self) -> str | None:
        """Write the manifest and return the store's digest.

        None while a unit is left to do, or if another process has added views to the store.
        Hashes every file again and raises StorageError if one changed since its commit.
        """
        root = self._root
        with locked(root / "locks/plan", wait=True), storage_errors(root, "read"):
            if not _holds(root / "plan.json", encode_plan_file(self.plan)):
                return None
            if not (root / "manifest.json").is_file():
                self._learn()
                if self.todo():
                    return None
                manifest = make_manifest(self.plan, self._hash_all(), self._read)
                write_journal(root, self.plan, self._committed)
                tidy(root)
                _write(root, {"manifest.json": canonical_json(manifest) + b"\n"})
            # The process that wrote it may have been killed before the name was durable.
            with storage_errors(root):
                root.sync()
            tidy(root)
            return str(read_manifest(root, self.plan)["digest"])

    def decoding_mark(self, row: int) -> LocalPath:
        """A file that exists while the video of a row is being decoded.

        If it exists before decoding begins, a process died while decoding that video.
        """
        return self._root / f"locks/decoding.{row}"

    def note(self, **details: Any) -> None:
        """Append a line to ``provenance.jsonl``: when, where, with what; not part of the digest."""
        host = {"time": time.time(), "host": platform.node(), "python": platform.python_version()}
        append_record(self._root / "provenance.jsonl", host | details)

    def _read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def _rest(self, unit: Unit) -> Unit:
        views = tuple(view for view in unit.views if (unit.block, view) not in self._committed)
        return Unit(unit.block, unit.start, unit.stop, views)

    def _learn(self) -> None:
        """Accept what the journals say was committed, if the files are unchanged."""
        with storage_errors(self._root, "read"):
            for place, files in read_commits(self._root, self.plan):
                if place not in self._committed and all_unchanged(self._root, files):
                    self._committed[place] = files

    def _hash_all(self) -> Files:
        files: Files = {}
        for unit in self.plan.units():
            for view in unit.views:
                files |= self._committed[unit.block, view]
        for name, fingerprint in {**files, **files_on_disk(self.plan, {})}.items():
            if not is_unchanged(self._root / name, fingerprint):
                raise StorageError(
                    f"{self._root / name} changed on disk since it was written; check the disk, "
                    "then run tgdfer extract again to redo it"
                )
        files |= fixed_fingerprints(self._root, self.plan)
        refuse_undeclared(self.plan, files, self._root)
        return files


def encode_unit(
    plan: Plan,
    unit: Unit,
    features: NDArray[np.float16],
    frame_index: NDArray[np.int32],
    rows: Sequence[VideoStatus],
) -> dict[str, bytes]:
    """The files of a unit, by their path inside the store; arguments and errors as ``commit``."""
    _check(plan, unit, features, frame_index, rows)
    files: dict[str, bytes] = {}
    for i, view in enumerate(unit.views):
        files[rows_name(unit.block, view)] = encode_rows(rows)
        for array, values in (("features", features), ("frame_index", frame_index)):
            name = chunk_name(array, unit.block, view)
            files[name] = encode_chunk(array, values[:, i], plan.block_videos)
    return files


def write_journal(root: LocalPath, plan: Plan, commits: Commits) -> None:
    """Write ``commits`` as one journal, the only one that ``tidy`` keeps."""
    _write(root, {f"journal/{FINAL}": encode_journal(plan, commits)})


def tidy(root: LocalPath) -> None:
    """Remove what is of no use once all is committed and in one journal.

    Call it only with the plan locked.
    """
    for journal in journals(root):
        if journal.name != f"journal/{FINAL}":
            remove_file(journal)
    drop_torn_lines(root / "provenance.jsonl", root / ".tmp")
    sweep(root / ".tmp")


def _agree(root: LocalPath, stored: Plan, asked: Plan) -> Plan:
    """The plan to continue with: the stored one, with views added if more are asked for."""
    check_same(root, stored, asked)
    refuse_contradiction(stored, root)
    if asked.views <= stored.views:
        return stored
    # Remove the manifest first: whatever happens next, the store counts as unfinished.
    remove_file(root / "manifest.json")
    grown = stored.with_views(asked.views)
    _write(root, {"plan.json": encode_plan_file(grown)})
    return grown


def _video_differences(stored: Plan, asked: Plan) -> list[tuple[str, str, str]]:
    ours, theirs = stored.videos, asked.videos
    rows = [
        (f"number of {name}", str(len(getattr(ours, name))), str(len(getattr(theirs, name))))
        for name in ("ids", "classes", "folds", "subsets")
        if len(getattr(ours, name)) != len(getattr(theirs, name))
    ]
    places = (ours.sources or (), theirs.sources or ())
    for what, pairs in (("video", (ours.ids, theirs.ids)), ("source of video", places)):
        for index, (a, b) in enumerate(zip(*pairs, strict=False)):
            if a != b:
                rows.append((f"{what} {index}", a, b))
                break
    return rows


def _digest_with_sources(asked: Plan, stored: Plan) -> str:
    """The digest of the videos as asked for, with the sources of the store."""
    return asked.videos.model_copy(update={"sources": stored.videos.sources}).digest


def _own_names() -> set[str]:
    # Left by a writer killed before plan.json, or in a store whose damaged plan was deleted.
    return {*DIRECTORIES, *FIXED, COLUMNS, "provenance.jsonl"}


def _write(root: LocalPath, files: Mapping[str, bytes]) -> None:
    write_files({root / name: data for name, data in files.items()}, root / ".tmp")


def _holds(path: LocalPath, data: bytes) -> bool:
    return is_unchanged(path, [len(data), sha256(data)])


def encode_rows(rows: Sequence[VideoStatus]) -> bytes:
    return canonical_json([row.model_dump(mode="json") for row in rows]) + b"\n"


def _check(
    plan: Plan,
    unit: Unit,
    features: NDArray[np.float16],
    frame_index: NDArray[np.int32],
    rows: Sequence[VideoStatus],
) -> None:
    shape = (unit.stop - unit.start, len(unit.views), plan.frames)
    if features.shape != (*shape, plan.dim) or features.dtype != np.float16:
        raise ValueError(
            f"block {unit.block}: features are {features.dtype} {features.shape}, "
            f"expected float16 {(*shape, plan.dim)}"
        )
    if frame_index.shape != shape or frame_index.dtype != np.int32:
        raise ValueError(f"block {unit.block}: frame_index is {frame_index.shape}, not {shape}")
    if [row.id for row in rows] != list(plan.videos.ids[unit.start : unit.stop]):
        raise ValueError(f"block {unit.block}: the rows are not those of the plan, in order")
    ok = np.array([row.status == "ok" for row in rows])
    finite = np.array([np.isfinite(video).all() for video in features])
    if not finite[ok].all() or not np.isnan(features[~ok]).all():
        bad = rows[int(np.flatnonzero(finite != ok)[0])].id
        raise ValueError(f"block {unit.block}: features of video {bad} are not finite")
