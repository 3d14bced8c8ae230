"""Disks that some processes see and others do not, as on the nodes of a cluster."""

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWNS = 0x20000  # of Linux's unshare


def with_own_mounts(start: Callable[[], T]) -> T:
    """What ``start`` returns; processes that it starts have mounts of their own, where allowed."""

    def call() -> T:
        ctypes.CDLL(None).unshare(CLONE_NEWNS)  # of this thread and what it starts
        return start()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def can_mount() -> bool:
    """Whether processes may have mounts of their own."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@contextmanager
def full_disk(process: int, folder: Path) -> Iterator[None]:
    """A full disk in a folder, as a process with mounts of its own and its children see it."""
    enter = ["nsenter", "--mount", f"--target={process}"]
    subprocess.run([*enter, "mount", "--make-rprivate", "/"], check=True)
    disk = ["-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    subprocess.run([*enter, "mount", *disk], check=True)
    try:
        yield
    finally:
        subprocess.run([*enter, "umount", "--lazy", str(folder)], check=True)
