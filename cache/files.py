"""Bytes -> files that survive a power cut: write, append to a journal, lock.

Plain ``write`` and ``rename`` are not enough: after a power cut a file that was renamed into place
without ``fsync`` can have the right name and no bytes.  Nothing here retries a failed ``fsync``,
because the kernel drops the dirty pages and the second call would succeed without them.
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.errors import StorageError
from cache.local import LocalPath, StrangeFileError
from cache.outside import parse_json
from cache.remote import StorePath

# Of a plain path, the last part must not be a link; of a path inside a store, no part.
Place = Path | LocalPath

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another location",
    errno.EACCES: "no permission to write here; choose another location or change the permissions",
    errno.EPERM: "no permission to write here; choose another location or change the permissions",
    errno.EIO: "the disk reported an input/output error; check it before you continue",
    errno.ENOENT: "it no longer exists; was it moved or removed? run the same command again",
    errno.ESTALE: "it no longer exists on the network file system; run the same command again",
}
_SWEEPS = 32
# File systems without locks: work may then be done twice, but never wrongly.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


@contextlib.contextmanager
def storage_errors(path: StorePath, verb: str = "write") -> Iterator[None]:
    """Turn a disk failure under ``path`` into a StorageError that names the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = error.filename or path
        raise StorageError(
            error.errno, f"cannot {verb} {where}: {_REMEDIES[error.errno]}"
        ) from error


def write_files(files: Mapping[Path, bytes] | Mapping[LocalPath, bytes], scratch: Place) -> None:
    """Write all ``files`` so that each is either absent or complete, and durable on return.

    ``scratch`` is a directory on the same file system, and no link; whatever a killed writer leaves
    there is litter, never mistaken for data.
    """
    targets = [_inside(path) for path in files]
    with storage_errors(scratch):
        written: list[LocalPath] = []
        try:
            for data in files.values():
                written.append(_write_scratch(data, _inside(scratch)))
            for temporary, target, data in zip(written, targets, files.values(), strict=True):
                _put(temporary, target, data)
        except BaseException:
            # Files that are not kept must not keep a full disk full.
            for temporary in written:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise
        for directory in {target.parent for target in targets}:
            directory.sync()


def make_directories(*paths: Path) -> None:
    """Create directories whose names survive a power cut."""
    for path in paths:
        with storage_errors(path):
            line = (path, *path.parents)
            missing = [p for p in line if not p.exists()]
            # From the top down: of the directories already there, only the lowest can come from a
            # process killed before the name was durable; that process could write to its parent.
            for directory in reversed(line[: len(missing) + 1]):
                directory.mkdir(exist_ok=True)
                if directory in missing or os.access(directory.parent, os.W_OK):
                    sync_directory(directory.parent)


def make_folders(root: Path, names: Iterable[str]) -> None:
    """Create a folder and folders inside it, whose names survive a power cut."""
    make_directories(root)
    with storage_errors(root):
        for name in names:
            (LocalPath(root) / name).mkdir()
        LocalPath(root).sync()


def remove_file(path: Place) -> None:
    """Remove a file durably; does nothing if there is none."""
    with storage_errors(path):
        _inside(path).unlink(missing_ok=True)
        _inside(path).parent.sync()


def sweep(directory: Place) -> None:
    """Remove what killed writers left in a scratch directory; it is not one if it is a link."""
    with storage_errors(directory):
        scratch = _inside(directory)
        for name in scratch.names():
            # Anything else is somebody's.
            if is_scratch(name) and not (scratch / name).is_folder():
                (scratch / name).unlink(missing_ok=True)


def is_scratch(name: str) -> bool:
    """Whether a file may have been named by a writer of ours, for itself alone."""
    return re.fullmatch(r"[0-9a-f]{32}", name) is not None


def append_record(path: Place, record: Mapping[str, Any]) -> None:
    """Append one line ``<crc32> {json}`` to a journal and wait until the disk has it."""
    file = _inside(path)
    with storage_errors(path):
        existed = file.is_file()
        with file.open(os.O_RDWR | os.O_APPEND | os.O_CREAT) as handle:
            found = os.fstat(handle)
            if found.st_nlink > 1:
                raise StrangeFileError(file, "a hard link")  # to what may be another's file
            # A line that a full disk cut short must not swallow this one.
            torn = found.st_size > 0 and os.pread(handle, 1, found.st_size - 1) != b"\n"
            _write_all(handle, b"\n" * torn + encode_record(record))
            os.fsync(handle)
        if not existed:
            file.parent.sync()


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One line of a journal."""
    text = canonical_json(record)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_records(path: StorePath) -> Iterator[dict[str, Any]]:
    """The complete records of a journal; lines torn by a kill are skipped.

    Work whose line is torn is done again, which costs time but never correctness.  Raises
    RefusedError for a complete line that holds no JSON object.
    """
    for line in path.read_bytes().split(b"\n"):
        if is_whole_line(line):
            yield parse_json(line[9:], "a line")


def is_whole_line(line: bytes) -> bool:
    """Whether a journal line, without its newline, is as it was written."""
    checksum, _, text = line.partition(b" ")
    return len(checksum) == 8 and checksum == b"%08x" % zlib.crc32(text)


def drop_torn_lines(path: LocalPath, scratch: LocalPath) -> None:
    """Rewrite a journal without its torn lines, if there are any."""
    *lines, end = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    whole = [line + b"\n" for line in lines if is_whole_line(line)]
    if end or len(whole) != len(lines):
        write_files({path: b"".join(whole)}, scratch)


@contextlib.contextmanager
def locked(path: Place, *, wait: bool) -> Iterator[bool]:
    """Hold an exclusive ``flock``; yields False if another process has it and ``wait`` is False.

    The kernel frees the lock when its holder dies, so no timeout is needed.  The folder of the
    locks must not be a link.
    """
    with contextlib.ExitStack() as opened:
        with storage_errors(path):
            lock = _inside(path, folders=1).open(os.O_RDWR | os.O_CREAT)
            handle = opened.enter_context(lock)
        yield _lock(handle, wait)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[bool]:
    """As ``locked``, without waiting and without a file; some network disks cannot lock a folder.

    There it is not locked at all.
    """
    with storage_errors(path):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(handle, wait=False)
    finally:
        os.close(handle)


def _lock(handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as CSV in UTF-8, with one line feed after every row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def canonical_json(value: Any) -> bytes:
    """The canonical JSON of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: StorePath) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    if isinstance(path, LocalPath):
        with path.open() as handle, open(handle, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(path, Path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return sha256(path.read_bytes())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    LocalPath(path).sync()


def _inside(path: Place, folders: int = 0) -> LocalPath:
    """A path of which neither the last part nor so many folders above it may be links."""
    if isinstance(path, LocalPath):
        return path
    root = path.parents[min(folders, len(path.parents) - 1)]
    return LocalPath(root, path.relative_to(root).as_posix())


def _write_scratch(data: bytes, scratch: LocalPath) -> LocalPath:
    temporary = scratch / uuid.uuid4().hex
    with temporary.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL) as handle:
        try:
            _write_all(handle, data)
            os.fsync(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    return temporary


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _put(temporary: LocalPath, target: LocalPath, data: bytes) -> None:
    # Where locks do not work, a worker that finishes the store may sweep away what another is
    # rewriting; that happens at most once per worker.
    for _ in range(_SWEEPS):
        try:
            return temporary.replace(target)
        except FileNotFoundError:
            temporary = _write_scratch(data, temporary.parent)
    temporary.replace(target)
