"""Work in processes that costs nothing, for ``test_workers``.

Run as ``python -m support.labour FOLDER``: two workers that each note their id and then work until
they are told to stop; the exit code is 128 + the signal.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cache.errors import RefusedError
from pipeline.interrupt import StoppedError
from pipeline.workers import Boss, work_in_processes


def begin(boss: Boss) -> Callable[[str], None]:
    """Tasks that say what they are, fail, or kill their process."""

    def do(task: str) -> None:
        boss.tell((os.getpid(), task))
        if task == "refuse":
            raise RefusedError("nothing to be done")
        if task == "fail":
            raise KeyError("lost")
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while task == "wait" and not boss.is_stopping():
            time.sleep(0.01)

    return do


def show(message: str) -> None:
    """Print to the terminal."""
    print(message, file=sys.stderr, flush=True)


def begin_waiting(folder: Path, boss: Boss) -> Callable[[int], None]:
    """A task that ends only when it is told to."""

    def do(task: int) -> None:
        (folder / str(os.getpid())).touch()
        while not boss.is_stopping():
            time.sleep(0.01)
        boss.tell("stopped")

    return do


if __name__ == "__main__":
    try:
        begin_here = partial(begin_waiting, Path(sys.argv[1]))
        work_in_processes([0, 1], 2, begin_here, show, "the current task")
    except StoppedError as error:
        sys.exit(128 + error.signal)
