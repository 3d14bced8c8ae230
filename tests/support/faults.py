"""A disk that fails at its k-th call, for ``test_faults``; each failure is in a fork.

Run as ``python tests/support/faults.py FOLDER STEP``; prints one JSON object: how many failures of
each kind were tried, and every one after which something was wrong.  It runs in a separate process,
because one that has loaded torch must not be forked.
"""

import errno
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cache.check import plan_repair, verify
from cache.errors import StorageError
from cache.journal import is_unchanged, read_commits
from cache.local import LocalPath
from cache.migrate import migrate
from cache.plan import read_plan
from cache.store import create_store
from support.tiny import fill, fixed_files, make_plan, make_store, store_bytes

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir")
KINDS = ("die", "torn write", "short write", "ENOSPC", "EIO")
VIDEOS = 130  # three blocks
Work = Callable[[Path], None]
KILLED, STORAGE_FAILED = 137, 5


class Disk:
    """Counts the calls that change the disk, and makes one of them fail."""

    def __init__(self, kind: str = "", k: int = -1) -> None:
        self.kind, self.k, self.count = kind, k, 0
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if changes_disk(name, arguments) and (name == "write" or "write" not in self.kind):
                self.count += 1
                if self.count - 1 == self.k:
                    return self._fail(name, real, arguments)
            return real(*arguments, **options)

        return call

    def _fail(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.kind in ("ENOSPC", "EIO"):
            code = getattr(errno, self.kind)
            raise OSError(code, os.strerror(code))
        if name == "write":
            handle, data = arguments
            written = 0 if self.kind == "die" else real(handle, data[: len(data) // 2])
            if self.kind == "short write":
                return written
        os._exit(KILLED)


def changes_disk(name: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a call is not the opening of what is only read."""
    return name != "open" or bool(arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))


def extract(path: Path) -> None:
    """What stage one does to a store."""
    writer = create_store(path, make_plan(VIDEOS), fixed_files())
    writer.note(shard=[0, 1])
    fill(writer, failed=(70,))
    writer.finalise()


def repair(path: Path) -> None:
    """What ``tgdfer store repair`` does; the quarantined video fails again."""
    planned = plan_repair(path)
    planned.begin()
    if planned.extraction:
        extract(path)


def nothing(path: Path) -> None:
    """A starting point: no store."""


def one_view(path: Path) -> None:
    """A starting point: a finished store of fewer views."""
    make_store(path, videos=VIDEOS, views=1, failed=(70,))


def damaged(path: Path) -> None:
    """A starting point: a finished store with a flipped bit and a cut journal."""
    extract(path)
    chunk, journal = path / "features/c.1.0.0.0", path / "journal/final.jsonl"
    data = bytearray(chunk.read_bytes())
    data[9] ^= 1
    chunk.write_bytes(data)
    journal.write_bytes(journal.read_bytes()[:-9])


def put_in_two(path: Path) -> None:
    """What ``tgdfer store migrate`` does, which opens the store first and last."""
    migrate(path)


def migrated(path: Path) -> None:
    """A finished store with its plan in two files."""
    extract(path)
    migrate(path)


# Where a scene begins, what is done then, and what comes to the same at once.
SCENES: dict[str, tuple[Work, Work, Work]] = {
    "extract": (nothing, extract, extract),
    "add a view": (one_view, extract, extract),
    "repair": (damaged, repair, extract),
    "migrate": (extract, put_in_two, migrated),
}


def whole_stores(folder: Path) -> dict[str, dict[str, bytes]]:
    """What the store must be after each scene."""
    paths = {scene: folder / at_once.__name__ for scene, (_, _, at_once) in SCENES.items()}
    for scene, path in paths.items():
        if not path.exists():
            SCENES[scene][2](path)
    return {scene: store_bytes(path) for scene, path in paths.items()}


def in_a_fork(work: Callable[[], None]) -> int:
    """The exit code of ``work``, as ``cli.main`` gives it."""
    pid = os.fork()
    if pid == 0:
        _leave(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _leave(work: Callable[[], None]) -> NoReturn:
    try:
        work()
    except StorageError:
        os._exit(STORAGE_FAILED)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def count_calls(work: Work, path: Path, kind: str) -> int:
    """How many calls ``work`` makes at which ``kind`` can happen."""
    report = path.with_suffix(".count")

    def counted() -> None:
        disk = Disk(kind)
        work(path)
        report.write_text(str(disk.count))

    assert in_a_fork(counted) == 0
    return int(report.read_text())


def wrong_after(code: int, kind: str, path: Path, work: Work, whole: dict[str, bytes]) -> str:
    """What is wrong after a failure and one restart; empty if nothing is."""
    allowed = {"die": (KILLED,), "torn write": (KILLED,), "short write": (0,)}
    if code not in allowed.get(kind, (0, STORAGE_FAILED)):
        return f"exit code {code}"
    return wrong_in_journals(path, work) or wrong_resumed(path, work, whole)


def wrong_in_journals(path: Path, work: Work) -> str:
    """A file that is not as a journal says; empty if there is none."""
    root = LocalPath(path)
    if (root / "plan.json").is_file():
        for place, files in read_commits(root, read_plan(path)):
            bad = [n for n, found in files.items() if not is_unchanged(root / n, found)]
            # Repair begins with a damaged view of block 1, and redoes the blocks of failed videos.
            if bad and work is not repair:
                return f"the journal names {bad[0]} of {place}, which is not as it says"
    return ""


def wrong_resumed(path: Path, work: Work, whole: dict[str, bytes]) -> str:
    """What is wrong after one restart; empty if nothing is."""
    work(path)
    if store_bytes(path) != whole:
        return "not identical after one resumption"
    findings = verify(path, deep=True)
    return f"{findings[0].file} {findings[0].message}" if findings else ""


def main(folder: Path, step: int) -> None:
    """Try every ``step``-th call of every scene with every kind of failure."""
    whole = whole_stores(folder)
    tried, wrong = dict.fromkeys(KINDS, 0), []
    for scene, (begin, work, _) in SCENES.items():
        begin(folder / "begin")
        for number, kind in enumerate(KINDS):
            path = renewed(folder)
            calls = count_calls(work, path, kind)
            every = 1 if work is put_in_two and kind == "die" else step
            for k in range(number % every, calls, every):
                path = renewed(folder)
                code = in_a_fork(partial(fail, work, path, kind, k))
                tried[kind] += 1
                problem = wrong_after(code, kind, path, work, whole[scene])
                if problem:
                    wrong.append(f"{scene}, {kind} at call {k} of {calls}: {problem}")
        shutil.rmtree(folder / "begin", ignore_errors=True)
    print(json.dumps({"tried": tried, "wrong": wrong}))


def fail(work: Work, path: Path, kind: str, k: int) -> None:
    """Work on a disk whose call ``k`` fails."""
    Disk(kind, k)
    work(path)


def renewed(folder: Path) -> Path:
    """A store where the scene begins."""
    path = folder / "s"
    shutil.rmtree(path, ignore_errors=True)
    if (folder / "begin").exists():
        shutil.copytree(folder / "begin", path)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
