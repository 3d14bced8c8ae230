"""Committed views of blocks <-> the lines of the journals.

A record names the files of one or more views of a block with their sizes and checksums, and the
identity they were made under, so that it is never taken for a commit of another plan.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cache.chunks import chunk_bytes, view_files
from cache.errors import DamagedError
from cache.files import encode_record, is_scratch, read_records, sha256, sha256_file
from cache.local import LocalPath
from cache.plan import Plan

Place = tuple[int, int]  # (block, view), the smallest piece that is committed or redone
Fingerprint = list[Any]  # [size in bytes, sha256], and for a chunk also its crc32c
Files = dict[str, Fingerprint]  # by path inside the store
Commits = dict[Place, Files]

_DIGITS = "0123456789abcdef"
FINAL = "final.jsonl"  # the one journal of a finished store


def fingerprint_of(name: str, data: bytes) -> Fingerprint:
    """Size and checksums of a file's bytes; a chunk's last four bytes are its crc32c."""
    plain: Fingerprint = [len(data), sha256(data)]
    return [*plain, data[-4:].hex()] if is_chunk(name) else plain


def is_chunk(name: str) -> bool:
    """Whether a path inside the store names a chunk."""
    return name.startswith(("features/c.", "frame_index/c."))


def place_of(name: str) -> Place | None:
    """The place that a chunk or a rows file belongs to; None for any other path."""
    found = re.fullmatch(r"(?:features/c|frame_index/c|rows/)\.?(\d+)\.(\d+)(?:\.0){0,2}", name)
    place = (int(found[1]), int(found[2])) if found else None
    return place if place and name in view_files(*place) else None


def is_fingerprint(name: str, found: object, plan: Plan) -> bool:
    """Whether a value read from disk is the fingerprint of a file of this name."""
    if not isinstance(found, list) or len(found) != 2 + is_chunk(name):
        return False
    size, content, *crc32c = found
    if type(size) is not int or size < 0 or not _has_digits(content, 64):
        return False
    if not crc32c:
        return True
    return size == chunk_bytes(plan, name.partition("/")[0]) and _has_digits(crc32c[0], 8)


def _has_digits(found: object, count: int) -> bool:
    return isinstance(found, str) and len(found) == count and not found.strip(_DIGITS)


def is_unchanged(path: LocalPath, fingerprint: Fingerprint) -> bool:
    """Whether the file exists with the recorded size and sha256."""
    try:
        return path.size() == fingerprint[0] and sha256_file(path) == fingerprint[1]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def all_unchanged(root: LocalPath, files: Files) -> bool:
    """Whether all files of a commit exist as recorded."""
    return all(is_unchanged(root / name, found) for name, found in files.items())


def make_record(identity: str, block: int, views: Mapping[int, Files]) -> dict[str, Any]:
    """The journal record of some views of a block."""
    files = {name: found for view in views.values() for name, found in view.items()}
    return {"identity": identity, "block": block, "views": sorted(views), "files": files}


def journals(root: LocalPath) -> list[LocalPath]:
    """The journals of a store."""
    folder = root / "journal"
    named = [n for n in folder.names() if n == FINAL or is_scratch(n.removesuffix(".jsonl"))]
    found = [folder / name for name in named if name.endswith(".jsonl")]
    return [file for file in found if not file.is_folder()]


def read_commits(root: LocalPath, plan: Plan) -> Iterator[tuple[Place, Files]]:
    """What the journals of the store at ``root`` say was committed under the plan's identity.

    A place comes once for every record of it; the caller finds out which of them still matches the
    disk.  Raises DamagedError for a whole line that no writer of this plan can have written.
    """
    try:
        for journal in journals(root):
            try:
                for record in read_records(journal):
                    yield from commits_of(record, plan)
            except ValueError as error:
                raise DamagedError(
                    f"{journal} is damaged ({error}); remove it, and what only it names is "
                    "extracted again"
                ) from error
    except FileNotFoundError:
        # Another worker has just finished the store, and everything is in one new journal.
        if (root / "journal").is_folder():
            yield from read_commits(root, plan)


def commits_of(record: Mapping[str, Any], plan: Plan) -> Iterator[tuple[Place, Files]]:
    """The places of one record; none if it belongs to another plan.

    Raises ValueError for a record that ``make_record`` cannot have made.
    """
    if record.get("identity") != plan.identity.digest:
        return
    block, views, files = (record.get(name) for name in ("block", "views", "files"))
    if type(block) is not int or not 0 <= block < plan.blocks:
        raise ValueError("a record names no block of this store")
    if not isinstance(views, list) or any(type(v) is not int or v < 0 for v in views):
        raise ValueError(f"a record of block {block} names no views")
    names = {view: view_files(block, view) for view in views}
    if not isinstance(files, dict) or set(files) != {n for view in names.values() for n in view}:
        raise ValueError(f"a record of block {block} names other files than those of its views")
    if not all(is_fingerprint(name, found, plan) for name, found in files.items()):
        raise ValueError(f"a record of block {block} has no sizes and sha256 of its files")
    # A writer that began before views were added knows fewer of them.
    for view in names.keys() & range(plan.views):
        yield (block, view), {name: files[name] for name in names[view]}


def encode_journal(plan: Plan, commits: Commits) -> bytes:
    """All commits as one journal, the same whatever the store's history."""
    lines = []
    for unit in plan.units():
        views = {v: commits[unit.block, v] for v in unit.views if (unit.block, v) in commits}
        if views:
            lines.append(encode_record(make_record(plan.identity.digest, unit.block, views)))
    return b"".join(lines)
