"""Where training keeps a store's features; results do not depend on it."""

import math
import sys
from typing import Literal

from cache.errors import RefusedError
from cache.local import LocalPath
from cache.remote import inside
from cache.store import Store
from pipeline.device import free_on_gpu
from pipeline.resources import available_bytes
from pipeline.show import show

# In the memory of the training device, or in that of the host, both as a whole and by each training
# process of its own; or in the store's files, from which every step reads what it needs.
Residence = Literal["resident", "host", "stream"]
RESIDENCES: tuple[Residence, ...] = ("resident", "host", "stream")

SHARE = 0.75  # of the memory, for features; the rest is for training
# From this size on, several processes share the copy that the system has of the store's files:
# reading a step's features from it takes a hundredth of the step at the sizes of ViT-B/32.
SHARED_BYTES = 256 << 20
GIB = 2**30


def choose_residence(asked: str, store: Store, device: str, processes: int) -> Residence:
    """Where so many training processes on ``device`` keep the features.

    As asked; or, for ``auto``, in the first of the three places where they fit, said on stderr if
    that is not the device. Processes that share a large store stream it. Raises RefusedError if
    the features do not fit where they are asked to be, or nowhere.
    """
    size, room = feature_bytes(store), _room(store, device, processes)
    if asked == "auto" and processes > 1 and SHARED_BYTES < size < room["stream"]:
        return "stream"
    for residence in RESIDENCES:
        if asked == residence and size <= room[residence]:
            return residence
        if asked == "auto" and size <= SHARE * room[residence]:
            if residence != "resident":
                print(_describe(residence, store, device), file=sys.stderr)
            return residence
    memory = room["resident" if asked == "resident" else "host"]
    each = f" in each of {processes} training processes" if processes > 1 else ""
    remedies = [f"--workers {fewer}"] if (fewer := int(memory * processes // size)) > 0 else []
    remedies += ["--features stream" if room["stream"] else "a copy of the store in a folder here"]
    raise RefusedError(
        f"the features of {store.path} take {size / GIB:.1f} GiB{each}, and {memory / GIB:.1f} GiB "
        f"of memory are available; use {', or '.join(remedies)}"
    )


def feature_bytes(store: Store) -> int:
    """Size of all features of a store, in float16."""
    return 2 * len(store.ids) * store.views * store.frames * store.dim


def _room(store: Store, device: str, processes: int) -> dict[Residence, float]:
    """How many bytes of features a process can keep where."""
    host = available_bytes() / processes
    return {
        "resident": host if device == "cpu" else free_on_gpu(device),
        "host": host,
        "stream": math.inf if isinstance(inside(store.path), LocalPath) else 0,
    }


def _describe(residence: Residence, store: Store, device: str) -> str:
    size = f"{feature_bytes(store) / GIB:.1f} GiB of features"
    if residence == "host":
        return f"{size} do not fit beside the training on {device}; they stay in the host's memory"
    return f"{size} do not fit in memory; every step reads what it needs from {show(store.path)}"
