"""Training commands killed at random moments, for ``test_kills``.

Run as ``python tests/support/train_kills.py FOLDER COMMAND CYCLES`` with COMMAND ``train`` or
``ablate``; prints one JSON object: the cycles, what was killed by which signal and how it ended,
where in the work that was, the longest time that the processes then took to end, and whatever was
wrong.  Commands and their workers are forked from a process that has imported torch and computed
nothing: started afresh they would spend most of their time importing it.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

import cli.main
import pipeline.engines.local
import pipeline.train.grid
import pipeline.train.stack
from support.kills import ended, forked
from support.stores import random_store

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
# How a command may end: done, with a dead worker, or by the signal it was sent.
ENDINGS = {0, 1} | {-s for s in SIGNALS} | {128 + s for s in SIGNALS}
GONE_SECONDS, EPOCH_SECONDS = 5.0, 60.0
SETTINGS = ["--store", "s.zarr", "--set", "optimiser.epochs=20", "--device", "cpu"]
# As many workers as runs: each run is a stack, whose bits do not depend on what is left to do.
COMMANDS = {
    "train": ["train", *SETTINGS, "--workers", "2"],
    "ablate": ["ablate", *SETTINGS, "--workers", "4", "--vary", "temporal.window=[4,8]"],
}
LOADED = (torch, pipeline.train.stack)  # before the forks


def prepare(folder: Path) -> int:
    """A store of two folds."""
    random_store(folder / "s.zarr", videos=14, folds=2)
    return 0


def command(folder: Path, arguments: list[str]) -> int:
    """A command in its own session, its output in a file; returns its exit code."""
    os.setsid()
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    vars(pipeline.engines.local)["get_context"] = lambda _: multiprocessing.get_context("fork")
    train_runs = partial(pipeline.train.grid.train_runs, keep_seconds=0.2)
    pipeline.train.grid.train_runs = train_runs
    sys.argv = ["tgdfer", *arguments]
    try:
        cli.main.run()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def processes_of(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, own = (place / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(own) == session and state not in "ZX":
                found.append(int(place.name))
    return found


def kill_one(pid: int, rng: random.Random) -> str:
    """Send a signal to a command, one of its workers or all of them; returns what was done."""
    number, target = rng.choice(SIGNALS), rng.choice(("parent", "worker", "group"))
    workers = sorted(set(processes_of(pid)) - {pid})
    if target == "worker" and not workers:
        target = "parent"
    if target == "worker":
        number = signal.SIGKILL  # it leaves the others to its parent
    with contextlib.suppress(ProcessLookupError):
        if target == "group":
            os.killpg(pid, number)
        else:
            os.kill(rng.choice(workers) if target == "worker" else pid, number)
    return f"{number.name} to the {target}"


def gone_after(pid: int) -> float:
    """Seconds until no process of a session is left; kills what is left after the limit."""
    started = time.monotonic()
    while left := processes_of(pid):
        if time.monotonic() - started > GONE_SECONDS:
            for process in left:
                os.kill(process, signal.SIGKILL)
            return float("inf")
        time.sleep(0.02)
    return time.monotonic() - started


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a command left, without what differs from one machine and day to another."""
    found = {}
    for place in ("runs", "reports"):
        for path in sorted((folder / place).rglob("*")):
            data = path.read_bytes() if path.is_file() else b""
            if path.name == "result.json":
                data = json.dumps(json.loads(data) | {"seconds": 0}).encode()
            found[str(path.relative_to(folder))] = data
    return found


def where(folder: Path, runs: int) -> str:
    """How far the runs are."""
    done = len(list(folder.glob("runs/*/result.json")))
    if done == runs:
        return "after training"
    return "in training" if done or any(folder.glob("runs/*/resume*")) else "before training"


def cleared(folder: Path) -> None:
    """Remove what a command has left."""
    for place in ("runs", "reports"):
        shutil.rmtree(folder / place, ignore_errors=True)
    (folder / "output").unlink(missing_ok=True)


def main(folder: Path, name: str, cycles: int) -> None:
    """Kill and resume ``cycles`` times, each time from no runs."""
    rng, wrong, slowest = random.Random(0), [], 0.0
    endings, landed = Counter[str](), Counter[str]()
    assert ended([forked(partial(prepare, folder))]) == [0]
    start = partial(forked, partial(command, folder, COMMANDS[name]))
    started = time.monotonic()
    assert ended([start()]) == [0], (folder / "output").read_text()
    seconds, whole = time.monotonic() - started, contents(folder)
    runs = len(list(folder.glob("runs/*/result.json")))
    for cycle in range(cycles):
        cleared(folder)
        pid = start()
        time.sleep(rng.uniform(0.05, 0.75) * seconds)
        landed[where(folder, runs)] += 1
        killed = kill_one(pid, rng)
        sent = time.monotonic()
        (code,) = ended([pid])
        stopping = time.monotonic() - sent if code != 0 else 0.0
        endings[f"{killed}: {code}"] += 1
        left = gone_after(pid)
        slowest = max(slowest, stopping + left)
        problems = [] if code in ENDINGS else [f"it ended with {code}"]
        problems += ["processes are left"] * (left > GONE_SECONDS)
        problems += ["it did not stop after an epoch"] * (stopping > EPOCH_SECONDS)
        problems += [f"resumed: {code}" for code in ended([start()]) if code]
        found = contents(folder)
        differ = [n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n)]
        problems += [f"{path} is not identical" for path in sorted(differ)]
        said = (folder / "output").read_text()
        problems += [said] * ("Traceback" in said)
        wrong += [f"cycle {cycle}, {killed}: {problem}" for problem in problems]
    report = {"cycles": cycles, "endings": endings, "landed": landed, "wrong": wrong}
    print(json.dumps(report | {"slowest_seconds": round(slowest, 2)}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
