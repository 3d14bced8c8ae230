"""Where a store is -> its files: a local folder, or a URL that fsspec can open.

A store in an object store, on a web server, in an archive or in memory is read in place and never
written.  fsspec is imported only once a URL is read.
"""

import errno
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

from cache.errors import RefusedError, StorageError

# A request takes its time wherever it goes, so many are under way at once.
REMOTE_THREADS = 16
LOCAL_THREADS = 4


class StorePath(Protocol):
    """What reading a store needs of a path; ``pathlib.Path`` has it too."""

    def __truediv__(self, name: str, /) -> Self: ...

    @property
    def parent(self) -> Self: ...

    def is_file(self) -> bool: ...

    def read_bytes(self) -> bytes: ...


class RemotePath:
    """A store behind a URL, or a file of it; parts of the URL may be chained with ``::``.

    Raises, from any method: FileNotFoundError where nothing has that name, RefusedError where
    fsspec cannot open such a URL, StorageError where it fails.
    """

    def __init__(self, url: str, name: str = "", root: "RemotePath | None" = None) -> None:
        self.url = url  # of the store
        self.name = name  # path inside the store, empty for itself
        self._root = root or self

    def __truediv__(self, name: str, /) -> "RemotePath":
        return RemotePath(self.url, f"{self.name}/{name}".lstrip("/"), self._root)

    def __reduce__(self) -> Any:
        # Connections stay behind: another process opens its own.
        return RemotePath, (self.url, self.name)

    def __str__(self) -> str:
        if not self.name:
            return self.url
        # In zip://s.zarr::https://host/s.zip the first link that is an address holds the store.
        links = self.url.split("::")
        i = next(i for i, link in enumerate(links) if "://" in link)
        links[i] += self.name if links[i].endswith("/") else f"/{self.name}"
        return "::".join(links)

    @property
    def parent(self) -> "RemotePath":
        """What this is in."""
        return RemotePath(self.url, self.name.rpartition("/")[0], self._root)

    @property
    def is_private(self) -> bool:
        """Whether no other process can read it."""
        return "memory://" in self.url

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self) -> bytes:
        """Everything in the file."""
        fs, place = self._opened()
        with self._failures():
            data: bytes = fs.cat_file(place)
        return data

    def size(self) -> int:
        """Bytes of the file."""
        fs, place = self._opened()
        size: int | None = None
        try:
            with self._failures():
                size = fs.info(place)["size"]
        except FileNotFoundError:
            # A web server that is not reached looks like this as well; reading tells them apart.
            pass
        return len(self.read_bytes()) if size is None else size

    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Sizes of files inside, None where there is none; as few requests as the place allows."""
        listed = self._list()

        def size(name: str) -> int | None:
            if name in listed:
                return listed[name]
            try:
                return (self / name).size()
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(REMOTE_THREADS) as pool:
            return dict(zip(names, pool.map(size, names), strict=True))

    def _list(self) -> dict[str, int]:
        fs, place = self._opened()
        if "http" in fs.protocol:
            return {}  # the pages of a web server, if it lists its folders at all, tell no sizes
        try:
            found = fs.find(place, detail=True)
        except Exception:
            # Not everybody who may read the files may list them; each is then asked for its size.
            return {}
        prefix = f"{place}/" if place else ""
        sizes = {name.removeprefix(prefix): about["size"] for name, about in found.items()}
        return {name: size for name, size in sizes.items() if size is not None}

    def _opened(self) -> tuple[Any, str]:
        """fsspec's file system and its name for this path."""
        fs, root = self._root._filesystem
        return fs, "/".join(filter(None, (root, self.name)))

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        with self._failures():
            # An instance of its own: one kept from before may know what was there before.
            fs, place = url_to_fs(self.url, skip_instance_cache=True)
        return fs, place.rstrip("/")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn whatever a file system fails with into an error of ours that names the remedy."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self)) from error
        except ImportError as error:
            raise RefusedError(
                f"cannot open {self.url}: {error}; add that package beside tgdfer with pip install"
            ) from error
        except ValueError as error:
            raise RefusedError(f"cannot open {self.url}: {error}; check the address") from error
        except Exception as error:
            # Each file system has exceptions of its own, with nothing in common but this.
            raise StorageError(
                f"cannot read {self}: {type(error).__name__}: {error}; check the address, the "
                "network and your permission there, then run the same command again"
            ) from error


def store_path(text: str | StorePath) -> StorePath:
    """Where a store is: text with ``://`` is a URL, any other a path of this machine."""
    if isinstance(text, str):
        return RemotePath(text) if "://" in text else Path(text)
    return text


def local_path(path: str | StorePath) -> Path:
    """Where a store is to be written; raises RefusedError for a URL."""
    found = store_path(path)
    if not isinstance(found, Path):
        raise RefusedError(
            f"{found} can only be read; write the store to a folder of this machine, then copy it "
            "there"
        )
    return found


def sizes_of(root: StorePath, names: Collection[str]) -> dict[str, int | None]:
    """Sizes of files inside a store, None where there is no such file."""
    if isinstance(root, Path):
        files = {name: root / name for name in names}
        return {n: file.stat().st_size if file.is_file() else None for n, file in files.items()}
    assert isinstance(root, RemotePath)
    return root.sizes(names)


def threads_of(path: StorePath) -> int:
    """How many files to read at once."""
    return LOCAL_THREADS if isinstance(path, Path) else REMOTE_THREADS
