"""Location of a store -> its files: a local folder, or a URL that fsspec can open.

A store in an object store, on a web server, in an archive or in memory is read in place and never
written.  fsspec is imported only when a URL is read.

A server is not trusted: one that is silent, never comes to an end, or drips a byte now and then is
given up within seconds, while a large file over a slow line may take as long as it needs.
"""

import errno
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, Self

from cache.errors import RefusedError, StorageError
from cache.local import FILE_BYTES_MAX, JSON_BYTES_MAX, LocalPath, bytes_max

# Every request has some latency, so many are in flight at once.
REMOTE_THREADS = 16
LOCAL_THREADS = 4

STALL_SECONDS = 6  # without an answer, or without more of it
SLOWEST = 1024  # bytes per second
_TOO_SLOW = f"silent, or slower than {SLOWEST} bytes per second, for {STALL_SECONDS} seconds"


class StorePath(Protocol):
    """What a path must offer for reading a store; ``pathlib.Path`` and LocalPath do."""

    def __truediv__(self, name: str, /) -> Self: ...

    @property
    def parent(self) -> Self: ...

    def is_file(self) -> bool: ...

    def read_bytes(self) -> bytes: ...


class RemotePath:
    """A store at a URL, or a file inside it; parts of the URL may be chained with ``::``.

    Every method raises FileNotFoundError if there is no such file, RefusedError if fsspec cannot
    open such a URL, and StorageError if reading fails.
    """

    def __init__(self, url: str, name: str = "", root: "RemotePath | None" = None) -> None:
        self.url = url  # of the store
        self.name = name  # path inside the store, empty for the store itself
        self._root = root or self
        self._silent = False  # the server did not answer; only the root's counts

    def __truediv__(self, name: str, /) -> "RemotePath":
        return RemotePath(self.url, f"{self.name}/{name}".lstrip("/"), self._root)

    def __reduce__(self) -> Any:
        # Connections are not pickled: another process opens its own.
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
        """The folder that holds it."""
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
        """The contents of the file."""
        fs, place = self._opened()
        with self._failures():
            if not fs.async_impl:  # a member of an archive; web servers are watched in reading
                _refuse_too_many(fs.info(place)["size"] or 0, self.name)
            data: bytes = fs.cat_file(place)
        return data

    def size(self) -> int:
        """Size of the file in bytes."""
        fs, place = self._opened()
        size: int | None = None
        try:
            with self._failures():
                size = _info(fs, place)["size"]
        except FileNotFoundError:
            # An unreachable web server looks the same; reading the file tells them apart.
            pass
        return len(self.read_bytes()) if size is None else size

    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Sizes of files inside, None for missing ones, in as few requests as possible."""
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
            return {}  # a web server's folder pages, if it has any, do not tell sizes
        try:
            found = fs.find(place, detail=True)
        except Exception:
            # Some may read the files but not list them; sizes are then requested one by one.
            return {}
        prefix = f"{place}/" if place else ""
        sizes = {name.removeprefix(prefix): about["size"] for name, about in found.items()}
        return {name: size for name, size in sizes.items() if size is not None}

    def _opened(self) -> tuple[Any, str]:
        """fsspec's file system and its name for this path."""
        if self._root._silent:  # many files are asked for at once; only the first should wait
            raise StorageError(self._cannot_read(_TOO_SLOW))
        fs, root = self._root._filesystem
        return fs, "/".join(filter(None, (root, self.name)))

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        for link in self.url.split("::"):
            file = Path(link.removeprefix("file://"))
            if file.exists() and not (file.is_file() or file.is_dir()):  # it may have no end
                raise RefusedError(f"{file} is a device, FIFO or socket; expected an archive")
        with self._failures():
            # A new instance: a cached one may remember what was there before.
            web = {name: _web() for name in ("http", "https") if f"{name}://" in self.url}
            fs, place = url_to_fs(self.url, skip_instance_cache=True, **web)
        return fs, place.rstrip("/")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn any failure of a file system into one of our errors, which names the remedy."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self)) from error
        except ImportError as error:
            raise RefusedError(
                f"cannot open {self.url}: {error}; install that package with pip"
            ) from error
        except ValueError as error:
            raise RefusedError(f"cannot open {self.url}: {error}; check the address") from error
        except TimeoutError as error:
            self._root._silent = True
            raise StorageError(self._cannot_read(_TOO_SLOW)) from error
        except Exception as error:
            # Each file system has its own exceptions, which share no other base class.
            why = f"{type(error).__name__}: {error}"
            raise StorageError(self._cannot_read(why)) from error

    def _cannot_read(self, why: str) -> str:
        return (
            f"cannot read {self}: {why}; check the address, the network and your permission there, "
            "then run the same command again"
        )


def _info(fs: Any, place: str) -> dict[str, Any]:
    """What a file system says of a file; a server has ``STALL_SECONDS`` to say it."""
    if not fs.async_impl:
        return dict(fs.info(place))
    from fsspec.asyn import sync

    return dict(sync(fs.loop, fs._info, place, timeout=STALL_SECONDS))


def _refuse_too_many(size: int, name: str, most: int = FILE_BYTES_MAX) -> None:
    most = min(most, bytes_max(name))
    if size > most:
        raise ValueError(f"{name} has more than {most} bytes")


@cache
def _web() -> dict[str, Any]:
    """Options of fsspec's web client that bound how long and how much it reads."""
    import aiohttp

    class Watched(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            chunks, size, started = [], 0, time.monotonic()
            # Without a length there may be no end.
            most = JSON_BYTES_MAX if self.content_length is None else FILE_BYTES_MAX
            async for chunk in self.content.iter_any():
                chunks.append(chunk)
                size += len(chunk)
                _refuse_too_many(size, self.url.path, most)
                seconds = time.monotonic() - started
                if seconds > STALL_SECONDS and size < SLOWEST * seconds:
                    raise TimeoutError
            self._body = b"".join(chunks)
            return self._body

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return {"client_kwargs": {"timeout": timeout, "response_class": Watched}}


# What is in a store is read and written through these alone.
StoreFiles = LocalPath | RemotePath


def store_path(text: str | StorePath) -> StorePath:
    """The path of a store: text with ``://`` is a URL, anything else a local path."""
    if isinstance(text, str):
        return RemotePath(text) if "://" in text else Path(text)
    return text


def local_path(path: str | StorePath) -> Path:
    """The path of a store to be written; raises RefusedError for a URL."""
    found = store_path(path)
    if not isinstance(found, Path):
        raise RefusedError(
            f"{found} can only be read; write the store to a local folder, then copy it there"
        )
    return found


def inside(path: str | StorePath) -> StoreFiles:
    """The same place, for everything that reads or writes what is in the store."""
    found = store_path(path)
    if isinstance(found, Path):
        return LocalPath(found)
    assert isinstance(found, LocalPath | RemotePath)
    return found


def threads_of(path: StoreFiles) -> int:
    """How many files to read at once."""
    return LOCAL_THREADS if isinstance(path, LocalPath) else REMOTE_THREADS
