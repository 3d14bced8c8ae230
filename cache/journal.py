"""Committed views of blocks <-> the lines of the journals.

A record names the files of one or more views of a block with their sizes and checksums, and the
identity they were made under, so that it is never taken for a commit of another plan.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cache.chunks import view_files
from cache.files import encode_record, read_records, sha256, sha256_file
from cache.plan import Plan

Place = tuple[int, int]  # (block, view), the smallest piece that is committed or redone
Fingerprint = list[Any]  # [size in bytes, sha256], and for a chunk also its crc32c
Files = dict[str, Fingerprint]  # by path inside the store
Commits = dict[Place, Files]

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


def is_unchanged(path: Path, fingerprint: Fingerprint) -> bool:
    """Whether the file exists with the recorded size and sha256."""
    try:
        return path.stat().st_size == fingerprint[0] and sha256_file(path) == fingerprint[1]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def all_unchanged(root: Path, files: Files) -> bool:
    """Whether all files of a commit exist as recorded."""
    return all(is_unchanged(root / name, found) for name, found in files.items())


def make_record(identity: str, block: int, views: Mapping[int, Files]) -> dict[str, Any]:
    """The journal record of some views of a block."""
    files = {name: found for view in views.values() for name, found in view.items()}
    return {"identity": identity, "block": block, "views": sorted(views), "files": files}


def read_commits(root: Path, identity: str) -> Iterator[tuple[Place, Files]]:
    """What the journals of the store at ``root`` say was committed under ``identity``.

    A place comes once for every record of it; the caller finds out which of them still matches the
    disk.
    """
    journals = sorted((root / "journal").glob("*.jsonl"))
    try:
        for journal in journals:
            for record in read_records(journal):
                yield from commits_of(record, identity)
    except FileNotFoundError:
        # Another worker has just finished the store, and everything is in one new journal.
        yield from read_commits(root, identity)


def commits_of(record: Mapping[str, Any], identity: str) -> Iterator[tuple[Place, Files]]:
    """The places of one record; none if it belongs to another plan."""
    if record.get("identity") != identity:
        return
    for view in record["views"]:
        names = view_files(record["block"], view)
        yield (record["block"], view), {name: record["files"][name] for name in names}


def encode_journal(plan: Plan, commits: Commits) -> bytes:
    """All commits as one journal, the same whatever the store's history."""
    lines = []
    for unit in plan.units():
        views = {v: commits[unit.block, v] for v in unit.views if (unit.block, v) in commits}
        if views:
            lines.append(encode_record(make_record(plan.identity.digest, unit.block, views)))
    return b"".join(lines)
