"""Tasks that cost nothing, for ``tests/engines``.

Run as ``python -m support.labour FOLDER ENGINE``: two tasks that each note that they have begun and
then work until they are told to stop; the exit code is 128 + the signal.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from cache.errors import RefusedError, StorageError
from cache.files import write_files
from pipeline.engines.local import Local
from pipeline.engines.task import Boss, Engine, Task, results
from pipeline.interrupt import StoppedError


def do(word: str, boss: Boss) -> tuple[int, str]:
    """Say who has done what; or fail, or kill this process."""
    boss.report(1)
    if word == "refuse":
        raise RefusedError("nothing to be done")
    if word == "fail":
        raise KeyError("lost")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while word == "wait" and not boss.is_stopping():
        time.sleep(0.01)
    return os.getpid(), word


def tasks(*words: str) -> list[Task]:
    """A task for each word."""
    return [Task(word, partial(do, word)) for word in words]


def die_once(folder: Path, boss: Boss) -> str:
    """Kill the first process that does this."""
    boss.report(1)
    if begun(folder) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    boss.report(2)
    return "done"


def wait_once(folder: Path, boss: Boss) -> str:
    """Wait to be begun again, or for the file ``end``."""
    boss.report(1)
    if begun(folder) == 1:
        while not boss.is_stopping() and not (folder / "end").exists():
            time.sleep(0.05)
    return "done"


def keep(folder: Path, word: str, nodes: int, boss: Boss) -> bool:
    """Write a file as blocks are written, once every node has begun such a task; whether it had to.

    If its disk is full, it fails once another has written its own.
    """
    begun(folder)
    while len(list(folder.glob("*.*"))) < nodes:
        time.sleep(0.05)
    kept = folder / "kept"
    if (kept / word).exists():
        return False
    try:
        write_files({kept / word: bytes(1 << 16)}, kept / ".tmp")
    except StorageError:
        while not any(path.is_file() for path in kept.iterdir()):
            time.sleep(0.05)
        raise
    return True


def environment_of(name: str, boss: Boss) -> str | None:
    """A variable of the environment, once another process has begun as well."""
    time.sleep(0.5)
    return os.environ.get(name)


def begun(folder: Path) -> int:
    """How many processes have begun a task, with this one."""
    (folder / f"{os.uname().nodename}.{os.getpid()}").touch()
    return len(list(folder.glob("*.*")))


def wait(folder: Path, boss: Boss) -> None:
    """End only when told to."""
    (folder / str(os.getpid())).touch()
    while not boss.is_stopping():
        time.sleep(0.01)
    print("stopped", file=sys.stderr, flush=True)


def named(engine: str, folder: Path) -> Engine:
    """An engine, with a folder for its files."""
    if engine == "local":
        return Local(2, "the current task")
    if engine == "ray":
        from pipeline.engines.ray import Ray

        return Ray(folder, {}, at_once=2)
    from pipeline.engines.slurm import Slurm

    return Slurm(folder, {}, late_seconds=1)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    waiting = [Task(name, partial(wait, folder)) for name in ("one", "other")]
    try:
        results(named(sys.argv[2], folder.with_name("slurm")), waiting)
    except StoppedError as error:
        sys.exit(128 + error.signal)
