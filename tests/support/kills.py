"""Workers on one store, killed at random moments, for ``test_kills``.

Run as ``python tests/support/kills.py FOLDER CYCLES LOCKS`` with LOCKS ``on`` or ``off``; prints
one JSON object: the cycles, how the killed workers ended, and whatever was wrong.  The workers are
forked from a process that has imported torch and computed nothing, so that a cycle takes a second.
"""

import errno
import fcntl
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import open_clip
import torch

import pipeline.extract.block
import pipeline.video.views
from cache.check import verify
from cache.journal import is_unchanged, read_commits
from cache.local import LocalPath
from cache.plan import read_plan
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import find_encoder
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from support.sources import pictures, write_encoder, write_folder
from support.tiny import store_bytes

WORKERS, VIDEOS = 4, 132  # nine blocks
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SETTINGS = ExtractSettings(views=2, frames=4, batch_frames=64, device="cpu", workers=1)
# How a worker may end: done, or by the signal it was sent.
ENDINGS = {0} | {-s for s in SIGNALS} | {128 + s for s in SIGNALS}
LOADED = (open_clip, torch, pipeline.extract.block, pipeline.video.views)  # before the forks


def work(folder: Path, store: Path, locks: bool) -> int:
    """One worker's part; returns its exit code."""
    if not locks:
        fcntl.flock = refuse_lock
    torch.set_num_threads(1)
    sources = sorted((folder / "videos").iterdir())
    videos = tuple(Video(f"v{i:03d}", sources[i % len(sources)], i % 2) for i in range(VIDEOS))
    encoder = find_encoder(f"local-dir:{folder / 'encoder'}")
    summary = extract(VideoList("kills", ("a", "b"), videos, ()), store, encoder, SETTINGS)
    return 128 + summary.stopped_by if summary.stopped_by else 0


def refuse_lock(handle: int, operation: int) -> NoReturn:
    """A file system without locks."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def prepare(folder: Path) -> int:
    """Eight short videos and a small encoder."""
    for i in range(8):
        write_folder(folder / "videos" / str(i), pictures(3 + i % 3, seed=i, height=32, width=32))
    write_encoder(folder / "encoder")
    return 0


def forked(work: Callable[[], int]) -> int:
    """Start ``work`` in a new process; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        code = work()
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def ended(pids: list[int]) -> list[int]:
    """Exit codes, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def kill_some(pids: list[int], seconds: float, rng: random.Random) -> None:
    """Send each worker one of the signals, at random moments of the next ``seconds``."""
    moments = sorted((rng.uniform(0, seconds), pid) for pid in pids)
    started = time.monotonic()
    for moment, pid in moments:
        time.sleep(max(0.0, started + moment - time.monotonic()))
        os.kill(pid, rng.choice(SIGNALS))


def bad_blocks(store: Path) -> list[str]:
    """Files that are not as a journal says."""
    if not (store / "plan.json").exists():
        return []
    root = LocalPath(store)
    commits = read_commits(root, read_plan(store))
    return [n for _, files in commits for n, f in files.items() if not is_unchanged(root / n, f)]


def main(folder: Path, cycles: int, locks: bool) -> None:
    """Kill and resume ``cycles`` times, each time from no store."""
    rng, endings, wrong = random.Random(0), Counter[int](), []
    logging.disable(logging.WARNING)
    assert ended([forked(partial(prepare, folder))]) == [0]
    whole, store = folder / "whole", folder / "s"
    started = time.monotonic()
    assert ended([forked(partial(work, folder, whole, True))]) == [0]
    seconds = time.monotonic() - started
    expected = store_bytes(whole)
    for cycle in range(cycles):
        shutil.rmtree(store, ignore_errors=True)
        worker = partial(work, folder, store, locks)
        for _ in range(rng.randint(1, 2)):
            pids = [forked(worker) for _ in range(WORKERS)]
            kill_some(pids, seconds, rng)
            codes = ended(pids)
            endings.update(codes)
            problems = [f"worker ended with {code}" for code in codes if code not in ENDINGS]
            problems += [f"the journal names a bad {name}" for name in bad_blocks(store)]
        # The last of the four to end finishes the store.
        problems += [f"resumed: {c}" for c in ended([forked(worker) for _ in range(WORKERS)]) if c]
        found = store_bytes(store)
        findings = verify(store, deep=True)
        if not locks:
            # A worker that repeats finished work may be killed after the store is finished, and
            # leave a journal and scratch files; verify names them, and they do no harm.
            found = {n: d for n, d in found.items() if n in expected or "journal/" not in n}
            findings = [finding for finding in findings if finding.kind != "litter"]
        differ = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        problems += [f"{name} is not identical" for name in sorted(differ)]
        problems += [f"{finding.file}: {finding.message}" for finding in findings]
        wrong += [f"cycle {cycle}: {problem}" for problem in problems]
    print(json.dumps({"cycles": cycles, "endings": endings, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), {"on": True, "off": False}[sys.argv[3]])
