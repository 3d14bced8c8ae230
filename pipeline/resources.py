"""What work will need, looked at before it begins: memory, cores, and disks to write to."""

import math
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.errors import RefusedError, StorageError
from cache.files import storage_errors

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
# Limits that ulimit sets, and what counts towards them.
_LIMITS = {resource.RLIMIT_AS: "VmSize:", resource.RLIMIT_DATA: "VmData:"}
# A group's limit, its usage and its statistics in versions 2 and 1; no limit there is a huge one.
_NAMES = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
_NO_LIMIT = 1 << 60
_PROBE = bytes(1 << 16)  # small enough for any disk that is not full


def check_writable(folder: Path, option: str) -> None:
    """Write to the disk that holds ``folder``, which need not exist yet, and leave nothing there.

    Raises RefusedError, naming ``option``, if it cannot be a folder, and StorageError if the disk
    is full or read-only.
    """
    lowest = check_folder(folder, option)
    with _disk_errors(folder, option), tempfile.TemporaryFile(dir=lowest) as file:
        file.write(_PROBE)
        file.flush()
        os.fsync(file.fileno())


def check_folder(folder: Path, option: str) -> Path:
    """Return ``folder``, or the lowest of those above it that exist; errors as above."""
    lowest = Path()
    with _disk_errors(folder, option):
        for place in (folder, *folder.parents):
            with suppress(FileNotFoundError, NotADirectoryError):
                place.lstat()
                lowest = place
                break
    if not lowest.is_dir():
        raise RefusedError(f"{option} {folder}: {lowest} is not a folder; choose another {option}")
    return lowest


@contextmanager
def _disk_errors(folder: Path, option: str) -> Iterator[None]:
    try:
        with storage_errors(folder):
            try:
                yield
            except OSError as error:
                error.filename = str(folder)  # not that of the probe
                raise
    except StorageError:
        raise
    except OSError as error:
        raise RefusedError(
            f"{option} {folder}: {error.strerror}; choose another {option}"
        ) from error


def available_bytes(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Memory that this process can still allocate; where Linux does not tell, no limit."""
    if not MEMINFO.is_file():
        return _NO_LIMIT
    left = [limit - used for limit, used in _groups(root, own)]
    for limited, name in _LIMITS.items():
        limit, _ = resource.getrlimit(limited)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - _kilobytes(STATUS, name))
    return max(0, min([_kilobytes(MEMINFO, "MemAvailable:"), *left]))


def _kilobytes(file: Path, name: str) -> int:
    """What a file of Linux says in kB, in bytes."""
    lines = file.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def memory_limits(root: Path, own: Path) -> list[int]:
    """Memory limits of this process's cgroups, version 1 or 2, in bytes; without unlimited ones."""
    return [limit for limit, _ in _groups(root, own)]


def usable_cores(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """The cores that this process may use: those it may run on, or what its cgroups allow."""
    allowed = [math.ceil(quota) for quota in cpu_quotas(root, own)]
    return max(1, min([len(os.sched_getaffinity(0)), *allowed]))


def cpu_quotas(root: Path, own: Path) -> list[float]:
    """CPU limits of this process's cgroups, version 1 or 2, in cores."""
    pairs = [file.read_text().split() for file in cgroup_files(root, own, "", "cpu.max")]
    for file in cgroup_files(root, own, "cpu", "cpu.cfs_quota_us"):
        period = file.with_name("cpu.cfs_period_us")
        pairs.append([file.read_text(), period.read_text()])
    return [int(q) / int(period) for q, period in pairs if q.strip() not in ("max", "-1")]


def cgroup_files(root: Path, own: Path, controller: str, name: str) -> Iterator[Path]:
    """A file in this process's cgroup and in those above it."""
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mount = root / controller
            folder = mount / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place.is_relative_to(mount) and (place / name).is_file():
                    yield place / name


def _groups(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that are no file's cache) of every group that has a limit."""
    for controller, (name, usage) in _NAMES.items():
        for file in cgroup_files(root, own, controller, name):
            text = file.read_text().strip()
            if text != "max" and int(text) < _NO_LIMIT:
                yield int(text), _used(file.with_name(usage), file.with_name("memory.stat"))


def _used(usage: Path, statistics: Path) -> int:
    if not usage.is_file() or not statistics.is_file():
        return 0
    sizes = dict(line.split() for line in statistics.read_text().splitlines())
    cached = sum(int(sizes.get(f"{kind}_file", 0)) for kind in ("active", "inactive"))
    return max(0, int(usage.read_text()) - cached)
