"""A local store -> its files, opened without following a link.

What is in a store may have been put there by somebody else. So no path below a store is given to
the operating system: each folder is opened inside the one above it, and a symbolic link, a pipe or
a device is refused wherever it is. The store's own folder may be reached by a link.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cache.errors import DamagedError, RefusedError

JSON_BYTES_MAX = 256 << 20  # the plan of a million videos has 60 MiB, in two files or one
FILE_BYTES_MAX = 8 << 30  # a text tower has up to 2 GiB

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
# What is in the place of the folder or file that was asked for.
_IN_PLACE = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR}
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class StrangeFileError(DamagedError):
    """Inside a store is something else than a file or a folder, at the path ``name`` inside."""

    def __init__(self, path: "LocalPath", kind: str) -> None:
        self.name, self.kind = path.name, kind
        super().__init__(
            f"{path} is {kind}, expected a file or a folder of tgdfer's own; remove it, and if it "
            "is in a store, repair the store or copy it again"
        )


def bytes_max(name: str) -> int:
    """How many bytes a file of a store may have to be read; ``name`` is its path inside."""
    is_small = name.endswith((".json", ".jsonl", "videos.safetensors")) or name.startswith("rows/")
    return JSON_BYTES_MAX if is_small else FILE_BYTES_MAX


@dataclass(frozen=True)
class LocalPath:
    """A local store, or a file or folder inside it.

    Every method raises StrangeFileError for a link, a pipe or a device, at the path or above it,
    and the operating system's own errors with the whole path as their file name. It is no
    ``os.PathLike``, so that nothing can open it by any other way.
    """

    root: Path  # of the store
    name: str = ""  # path inside the store, empty for the store itself

    def __truediv__(self, name: str, /) -> "LocalPath":
        if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
            raise RefusedError(f"{name!r} cannot be a name inside the store {self.root}")
        return LocalPath(self.root, f"{self.name}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return str(self.root / self.name)

    @property
    def parent(self) -> "LocalPath":
        """The folder that holds it; of the store itself, the folder around it."""
        if not self.name:
            return LocalPath(self.root.parent)
        return LocalPath(self.root, self.name.rpartition("/")[0])

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        try:
            self.size()
        except _ABSENT:
            return False
        return True

    def is_folder(self) -> bool:
        """Whether there is a folder of this name."""
        try:
            with self._opened():
                return True
        except _ABSENT:
            return False

    def size(self) -> int:
        """Size of the file in bytes."""
        with self._above() as (folder, last):
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
            self._refuse_others(found.st_mode)
            return found.st_size

    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Sizes of files inside, None for missing ones; opens each folder once."""
        sizes: dict[str, int | None] = dict.fromkeys(names)
        inside: dict[str, list[str]] = {}
        for name in names:
            inside.setdefault(name.rpartition("/")[0], []).append(name)
        for folder, own in inside.items():
            place = self / folder if folder else self
            with suppress(*_ABSENT), place._opened() as handle:
                for name in own:
                    last = name.rpartition("/")[2]
                    try:
                        found = os.stat(last, dir_fd=handle, follow_symlinks=False)
                        if not stat.S_ISREG(found.st_mode):
                            (place / last)._refuse_others(found.st_mode)
                    except _ABSENT:
                        continue
                    sizes[name] = found.st_size
        return sizes

    def read_bytes(self) -> bytes:
        """The contents of the file."""
        with self.open() as handle, open(handle, "rb", buffering=0, closefd=False) as file:
            size, most = os.fstat(handle).st_size, bytes_max(self.name)
            if size > most:  # it may consist of holes, but would fill the memory
                raise DamagedError(
                    f"{self} has {size} bytes, expected at most {most}; copy it here again from an "
                    "intact store"
                )
            return file.read()

    @contextmanager
    def open(self, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
        """A handle of the file, as from ``os.open``."""
        # Opening a pipe would wait for its other end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK
        with self._above() as (folder, last):
            handle = os.open(last, flags, mode, dir_fd=folder)
        try:
            self._refuse_others(os.fstat(handle).st_mode)
            yield handle
        finally:
            os.close(handle)

    def names(self) -> list[str]:
        """Sorted names in the folder."""
        with self._opened() as handle:
            return sorted(os.listdir(handle))

    def walk(self) -> Iterator[tuple[str, bool]]:
        """(path inside the store, whether it is a folder) of everything in the store."""
        with self._opened() as handle:
            for above, folders, files, _ in os.fwalk(".", dir_fd=handle):
                here = above.removeprefix(".").lstrip("/")
                for name in (*folders, *files):
                    yield f"{here}/{name}".lstrip("/"), name in folders

    def touch(self) -> None:
        """Create an empty file if there is none."""
        with self.open(os.O_WRONLY | os.O_CREAT):
            pass

    def mkdir(self) -> None:
        """Create a folder unless there is one."""
        with self._above() as (folder, last):
            try:
                os.mkdir(last, dir_fd=folder)
            except FileExistsError:
                with self._opened():
                    pass

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file; a link is removed, not what it points to."""
        try:
            with self._above() as (folder, last):
                os.unlink(last, dir_fd=folder)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "LocalPath") -> None:
        """Rename it to ``target``, in place of what is there."""
        with self._above() as (source, last), target._above() as (folder, name):
            os.replace(last, name, src_dir_fd=source, dst_dir_fd=folder)

    def sync(self) -> None:
        """Make the names in the folder durable."""
        with self._opened() as handle:
            os.fsync(handle)

    @contextmanager
    def _above(self) -> Iterator[tuple[int, str]]:
        """A handle of the folder that holds it, and its name there."""
        with self._named(), self.parent._opened() as folder:
            yield folder, self.name.rpartition("/")[2] or self.root.name

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A handle of the folder."""
        with self._named():
            handle = os.open(self.root, _FOLDER)
            try:
                for part in self.name.split("/") if self.name else ():
                    above, handle = handle, os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
                    os.close(above)
                yield handle
            finally:
                os.close(handle)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the whole path in an error, and say what is there if it is no file and no folder."""
        try:
            yield
        except OSError as error:
            if error.errno in _IN_PLACE:
                self._find_strange()
            error.filename = str(self)
            raise

    def _find_strange(self) -> None:
        """Raise StrangeFileError if this, or a folder above it, is one."""
        if not self.name:
            return
        self.parent._find_strange()
        with self.parent._opened() as folder:
            last = self.name.rpartition("/")[2]
            self._refuse_strange(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode)

    def _refuse_strange(self, mode: int) -> None:
        kind = stat.S_IFMT(mode)
        if kind in _KINDS:
            raise StrangeFileError(self, _KINDS[kind])

    def _refuse_others(self, mode: int) -> None:
        """Raise unless it is a file."""
        self._refuse_strange(mode)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
