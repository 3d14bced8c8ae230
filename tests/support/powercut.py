"""A disk whose power is cut before its k-th call, for ``test_powercut``.

After a power cut a file has at least the bytes of its last fsync, and a directory the names of its
own last fsync.  Anything newer may or may not be there, independently: a file renamed into place
can have the right name and no bytes.  A model of such a disk follows the calls of one run of the
work; what a cut leaves is written as real files, and the work is done again on them.

Run as ``python tests/support/powercut.py FOLDER STEP [IGNORED]``; prints one JSON object: how many
cuts of each kind were tried in each scene, and every one after which something was wrong.  IGNORED
is ``files`` or ``folders``: their fsync then keeps nothing, and much must be wrong.  It runs in a
separate process, because it replaces calls of the operating system.
"""

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from cache.check import plan_repair
from cache.journal import Place
from cache.store import StoreWriter, open_store
from support.faults import (
    CALLS,
    SCENES,
    VIDEOS,
    Work,
    changes_disk,
    renewed,
    repair,
    whole_stores,
    wrong_in_journals,
    wrong_resumed,
)
from support.tiny import make_plan, store_bytes

Inode = int
Name = tuple[Inode | None, ...]  # what it named since the last sync: first durable, last seen
Contents = dict[str, bytes | None]  # by path; None is a folder
ROOT: Inode = 0  # the folder that holds the store


@dataclass(frozen=True)
class File:
    """The bytes that are certain to survive, and those the process sees; they only ever grow."""

    durable: bytes = b""
    seen: bytes = b""


@dataclass(frozen=True)
class Folder:
    """The names in a directory."""

    names: dict[str, Name] = field(default_factory=dict)


Nodes = dict[Inode, File | Folder]


@dataclass(frozen=True)
class Cut:
    """A moment at which the power may fail."""

    call: str
    nodes: Nodes
    promised: frozenset[Place]  # the commits that have returned
    finished: bool  # whether finalise has returned


@dataclass(frozen=True)
class Kind:
    """What a cut leaves of names and of files' bytes."""

    name: Callable[[Name, random.Random], Inode | None]
    data: Callable[[File, random.Random], bytes]


def half(file: File, _: random.Random) -> bytes:
    """The first half of the bytes not synced."""
    return file.seen[: (len(file.durable) + len(file.seen)) // 2]


def any_data(file: File, rng: random.Random) -> bytes:
    """None, all or half of the bytes not synced, or zeros in their place."""
    zeros = file.durable.ljust(len(file.seen), b"\0")
    return rng.choice((file.durable, file.seen, half(file, rng), zeros))


SEEN = Kind(lambda name, _: name[-1], lambda file, _: file.seen)
KINDS = {
    "only what is certain": Kind(lambda name, _: name[0], lambda file, _: file.durable),
    "names ahead of data": Kind(lambda name, _: name[-1], lambda file, _: file.durable),
    "names and half the data": Kind(lambda name, _: name[-1], half),
    "data ahead of names": Kind(lambda name, _: name[0], lambda file, _: file.seen),
    "random": Kind(lambda name, rng: rng.choice(name), any_data),
}


class Killed(BaseException):
    """The process is gone; the next one sees what it did before."""


class Disk:
    """Follows the calls that change the store at ``path`` and knows what would survive a cut."""

    def __init__(self, path: Path, ignored: str = "") -> None:
        self.path, self.ignored = path, ""
        self.nodes: Nodes = {ROOT: Folder()}
        self.handles: dict[int, Inode | None] = {}  # None is outside
        self.paths: dict[int, Path] = {}  # of handles
        self.cuts: list[Cut] = []
        self.kill_at = -1
        self.promised = committed(path)
        self.finished = False
        self._load(path)
        self._sync(ROOT)
        self.ignored = ignored

    def run(self, work: Work, kill_at: int = -1) -> list[Cut]:
        """The moments before each call of the work, and the one after it returned or was killed."""
        self.cuts, self.kill_at = [], kill_at
        if work is repair:
            # A repair removes what it will redo.
            self.promised -= set(plan_repair(self.path).redo)
        with self._attached(), suppress(Killed):
            work(self.path)
        self._cut("return")
        assert contents(self.nodes, SEEN) == on_disk(self.path), "a call was not followed"
        return self.cuts

    @contextmanager
    def _attached(self) -> Iterator[None]:
        calls = {name: self._followed(name, getattr(os, name)) for name in CALLS}
        promises = {
            "commit": self._noted(StoreWriter.commit, self._promise),
            "finalise": self._noted(StoreWriter.finalise, self._finish),
        }
        with mock.patch.multiple(os, **calls), mock.patch.multiple(StoreWriter, **promises):
            yield

    def _followed(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        follow = getattr(self, f"_{name}")

        def call(*arguments: Any, **options: Any) -> Any:
            if changes_disk(name, arguments):
                # A killed process makes no further call, not even to clean up.
                if len(self.cuts) == self.kill_at:
                    raise Killed
                self._cut(name)
            result = real(*arguments, **options)
            follow(result, *arguments, **options)
            return result

        return call

    def _noted(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            note(result, *arguments)
            return result

        return call

    def _promise(self, _: None, writer: StoreWriter, unit: Any, *values: Any) -> None:
        self.promised |= {(unit.block, view) for view in unit.views}

    def _finish(self, digest: str | None, writer: StoreWriter) -> None:
        self.finished = digest is not None

    def _cut(self, call: str) -> None:
        self.cuts.append(Cut(call, dict(self.nodes), self.promised, self.finished))

    def _open(
        self,
        handle: int,
        name: str | Path,
        flags: int,
        mode: int = 0,
        dir_fd: int | None = None,
    ) -> None:
        path = self._path(name, dir_fd)
        self.paths[handle] = path
        if not path.is_relative_to(self.path.parent):
            self.handles[handle] = None
            return
        if self._inode(path) is None:
            self._point(path, self._new(File()))
        self.handles[handle] = self._inode(path)

    def _write(self, written: int, handle: int, data: bytes) -> None:
        file = self.nodes[self.handles[handle]]
        self.nodes[self.handles[handle]] = replace(file, seen=file.seen + bytes(data[:written]))

    def _fsync(self, _: None, handle: int) -> None:
        inode = self.handles[handle]
        if inode is not None:
            self._sync(inode)

    def _replace(
        self,
        _: None,
        source: str | Path,
        target: str | Path,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        path = self._path(source, src_dir_fd)
        inode = self._inode(path)
        self._point(path, None)
        self._point(self._path(target, dst_dir_fd), inode)

    def _unlink(self, _: None, name: str | Path, dir_fd: int | None = None) -> None:
        self._point(self._path(name, dir_fd), None)

    def _mkdir(self, _: None, name: str | Path, mode: int = 0, dir_fd: int | None = None) -> None:
        self._point(self._path(name, dir_fd), self._new(Folder()))

    def _path(self, name: str | Path, dir_fd: int | None) -> Path:
        return Path(name) if dir_fd is None else self.paths[dir_fd] / name

    def _load(self, path: Path) -> None:
        """Load what is on the disk, as durable."""
        if path.is_file():
            self._point(path, self._new(File(path.read_bytes(), path.read_bytes())))
        elif path.is_dir():
            self._point(path, inode := self._new(Folder()))
            for child in path.iterdir():
                self._load(child)
            self._sync(inode)

    def _new(self, node: File | Folder) -> Inode:
        inode = len(self.nodes)
        self.nodes[inode] = node
        return inode

    def _inode(self, path: Path) -> Inode | None:
        inode: Inode | None = ROOT
        for part in path.relative_to(self.path.parent).parts:
            inode = self.nodes[inode].names.get(part, (None,))[-1]
        return inode

    def _point(self, path: Path, inode: Inode | None) -> None:
        folder = self._inode(path.parent)
        names = self.nodes[folder].names
        meanings = (*names.get(path.name, (None,)), inode)
        self.nodes[folder] = Folder({**names, path.name: meanings})

    def _sync(self, inode: Inode) -> None:
        node = self.nodes[inode]
        if isinstance(node, File):
            if self.ignored != "files":
                self.nodes[inode] = replace(node, durable=node.seen)
        elif self.ignored != "folders":
            names = {name: meanings[-1:] for name, meanings in node.names.items()}
            self.nodes[inode] = Folder(names)


def contents(nodes: Nodes, kind: Kind, seed: str = "") -> Contents:
    """What this kind of cut leaves, by path."""
    rng, found = random.Random(seed), Contents()
    folders = [("", nodes[ROOT])]
    for above, folder in folders:
        for name, meanings in folder.names.items():
            inode = kind.name(meanings, rng)
            if inode is None:
                continue
            path, node = above + name, nodes[inode]
            if isinstance(node, Folder):
                folders.append((f"{path}/", node))
            found[path] = kind.data(node, rng) if isinstance(node, File) else None
    return found


def on_disk(path: Path) -> Contents:
    """What is on the disk, by path relative to the folder above."""
    files = [path, *path.rglob("*")] if path.exists() else []
    return {
        file.relative_to(path.parent).as_posix(): file.read_bytes() if file.is_file() else None
        for file in files
    }


def lay_out(path: Path, left: Contents) -> None:
    """Write what a cut left; folders come before what is in them."""
    shutil.rmtree(path, ignore_errors=True)
    for name, data in left.items():
        if data is None:
            (path.parent / name).mkdir()
        else:
            (path.parent / name).write_bytes(data)


def committed(path: Path) -> frozenset[Place]:
    """The views of blocks that need not be done again."""
    plan = make_plan(VIDEOS)
    todo = {(unit.block, view) for unit in StoreWriter(path, plan).todo() for view in unit.views}
    return frozenset({(u.block, view) for u in plan.units() for view in u.views} - todo)


def wrong_after(cut: Cut, path: Path, work: Work, whole: dict[str, bytes]) -> str:
    """What is wrong after a cut, and after the work was then done again; empty if nothing is."""
    try:
        lost = cut.promised - committed(path)
        if lost:
            return f"the commits of {sorted(lost)} had returned and are lost"
        if cut.finished and store_bytes(open_store(path).path) != whole:
            return "the store was finished and is another"
        return wrong_in_journals(path, work) or wrong_resumed(path, work, whole)
    except Exception as error:
        return repr(error)


def moments(folder: Path, step: int, ignored: str) -> Iterator[tuple[str, str, Cut, str]]:
    """Scene, number of the call, moment and kind of every cut to try."""
    for scene, (begin, work, _) in SCENES.items():
        begin(folder / "begin")
        cuts = Disk(renewed(folder), ignored).run(work)
        for offset, kind in enumerate(KINDS):
            for k in (*range(offset % step, len(cuts) - 1, step), len(cuts) - 1):
                yield scene, f"{k}", cuts[k], kind
        # A killed process leaves what the next one sees but the disk has not promised.
        for killed_at in range(0, 0 if ignored else len(cuts) - 1, step):
            disk = Disk(renewed(folder))
            disk.run(work, killed_at)
            again = disk.run(work)
            k = random.Random(killed_at).randrange(len(again))
            yield scene, f"{k} after a kill at {killed_at}", again[k], "random"
            yield scene, f"the last after a kill at {killed_at}", again[-1], "only what is certain"
        shutil.rmtree(folder / "begin", ignore_errors=True)


def main(folder: Path, step: int, ignored: str = "") -> None:
    """Cut the power before every ``step``-th call of every scene and after the last."""
    # The model replaces the real disk, so waiting for the real one would only take time.
    os.fsync = lambda handle: None
    whole, path = whole_stores(folder), folder / "s"
    tried: Counter[str] = Counter()
    wrong = []
    for scene, number, cut, kind in moments(folder, step, ignored):
        lay_out(path, contents(cut.nodes, KINDS[kind], f"{scene} {number}"))
        killed = " after a kill" * ("kill" in number)
        tried[f"{scene}{killed}, {kind}"] += 1
        problem = wrong_after(cut, path, SCENES[scene][1], whole[scene])
        if problem:
            wrong.append(f"{scene}, {kind}, call {number} ({cut.call}): {problem}")
    print(json.dumps({"tried": tried, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
