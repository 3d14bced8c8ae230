"""Single videos of a store's features, read from the chunk files where they lie."""

import os

import numpy as np
from numpy.typing import NDArray

from cache.chunks import DTYPES, chunk_name, repair_hint
from cache.errors import DamagedError, RefusedError
from cache.files import storage_errors
from cache.local import LocalPath
from cache.remote import inside
from cache.store import Store


class FeatureLookup:
    """Features of any videos and views; holds none of them, so the store may exceed the memory.

    A chunk is checked as a whole before its first video is given out, and not again.
    """

    def __init__(self, store: Store) -> None:
        files = inside(store.path)
        if not isinstance(files, LocalPath):
            raise RefusedError(
                f"{store.path}: single videos are read only from a store in a folder of this "
                "machine; copy it here"
            )
        self._store, self._files = store, files
        self._units = list(store.plan.units())
        self._shape = (store.frames, store.dim)
        self._checked: set[str] = set()

    def __call__(self, videos: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.float16]:
        """Features of N videos, each in its view, float16 [N, frame, dim].

        Raises IndexError for a video or view that does not exist, DamagedError for a chunk that
        fails its checksum, and StorageError if it cannot be read.
        """
        for given, end in ((videos, len(self._store.ids)), (views, self._store.views)):
            if len(given) and not 0 <= given.min() <= given.max() < end:
                raise IndexError(f"asked for {given.min()} to {given.max()} of {end}")
        features_NTD = np.empty((len(videos), *self._shape), DTYPES["features"])
        blocks, places = np.divmod(videos, self._store.plan.block_videos)
        chunks = blocks * self._store.views + views
        order = np.argsort(chunks, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1):
            if len(same):
                block, view = divmod(int(chunks[same[0]]), self._store.views)
                self._read(block, view, places[same].tolist(), [features_NTD[i] for i in same])
        return features_NTD

    def _read(
        self, block: int, view: int, places: list[int], out: list[NDArray[np.float16]]
    ) -> None:
        """Read the videos at some places of a chunk."""
        name = chunk_name("features", block, view)
        if name not in self._checked:
            self._store.load_block("features", self._units[block], view)
            self._checked.add(name)
        path = self._files / name
        with storage_errors(path, "read"), path.open() as file:
            for place, values in zip(places, out, strict=True):
                if os.preadv(file, [values.data], place * values.nbytes) != values.nbytes:
                    raise DamagedError(f"{path} became shorter: {repair_hint(self._store.path)}")
