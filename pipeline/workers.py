"""Tasks -> the processes that do them, which end when this one does, however it ends.

They share nothing but pipes with this process: there are no semaphores or queues that a kill could
leave behind, or leave locked.

    this process                        a worker
    task          ──── one pipe ─────>  do(task)
    on_message    <─────────────────    boss.tell(message), at last: done, or why not
    stop          ──── for all ──────>  boss.is_stopping()
"""

import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from os import getpid
from typing import Any

from cache.errors import RefusedError, StorageError
from pipeline.interrupt import STOPPING, Stop, StoppedError, end_with, stop_on_signal

_END_SECONDS = 1.0  # for the exit code of a process that has closed its pipe


class ProcessDeathError(RuntimeError):
    """A process died at its work; what was finished before is kept."""


class Boss:
    """The process that a worker works for."""

    def __init__(self, pipe: Connection, stop: Connection) -> None:
        self._pipe, self._stop = pipe, stop

    def tell(self, message: Any) -> None:
        """Send a message, which ``on_message`` gets."""
        self._pipe.send((False, message))

    def is_stopping(self) -> bool:
        """Whether the work should end as soon as its state is kept; so it should without a boss."""
        return self._stop.poll()


Begin = Callable[[Boss], Callable[[Any], None]]


def work_in_processes(
    tasks: Sequence[Any],
    processes: int,
    begin: Begin,
    on_message: Callable[[Any], None],
    doing: str,
) -> None:
    """Let so many processes do all ``tasks``, the first ones first.

    ``begin``, which must be picklable, is called once in each of them and returns what does a task.
    The first SIGINT, SIGTERM or SIGHUP tells them to stop after ``doing`` and raises StoppedError
    when they have, a second one ends them at once. After a failure the others stop in the same way;
    RefusedError and StorageError are raised as they are, others as a RuntimeError that holds the
    traceback, and ProcessDeathError if a process died.
    """
    told, tell = get_context("spawn").Pipe(duplex=False)

    def stop_all() -> None:
        tell.send_bytes(b"stop")

    with stop_on_signal(doing, stop_all) as stop, tell, told:
        crew: dict[Connection, SpawnProcess] = {}
        try:
            for _ in range(min(processes, len(tasks))):
                pipe, crew[pipe] = _start(begin, told)
            failure = _hand_out(deque(tasks), crew, stop, stop_all, on_message)
        except BaseException:
            for process in crew.values():
                process.kill()
            raise
        finally:
            for pipe, process in crew.items():
                with suppress(OSError):  # it is dead
                    pipe.send(None)
                pipe.close()
                process.join()
    if stop.signal:
        raise StoppedError(stop.signal)
    if failure is not None:
        raise failure


def _start(begin: Begin, told: Connection) -> tuple[Connection, SpawnProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    with theirs, _blocked_signals():
        process = context.Process(target=_work, args=(begin, theirs, told, getpid()))
        process.start()
    return ours, process


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """A process started in this context gets no signal that stops: its boss tells it to stop.

    A terminal sends its signals to every process, also to one that has only just been started.
    """
    ensure_running()  # starting multiprocessing's own process would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(
    tasks: "deque[Any]",
    crew: dict[Connection, SpawnProcess],
    stop: Stop,
    stop_all: Callable[[], None],
    on_message: Callable[[Any], None],
) -> Exception | None:
    """Hand out tasks until all are done or something stops the work; returns the first failure."""
    failure: Exception | None = None

    def give(pipe: Connection) -> bool:
        if not tasks or failure or stop.signal:
            return False
        with suppress(BrokenPipeError):  # its death is noticed below
            pipe.send(tasks.popleft())
        return True

    busy = {pipe for pipe in crew if give(pipe)}
    while busy:
        for pipe in wait(list(busy)):
            assert isinstance(pipe, Connection)
            try:
                done, value = pipe.recv()
            except (EOFError, OSError):
                done, value = True, _death(crew[pipe])
            if not done:
                on_message(value)
                continue
            if value is not None and failure is None:
                failure = value
                stop_all()
            dead = isinstance(value, ProcessDeathError)
            if dead or not give(pipe):
                busy.remove(pipe)
    return failure


def _death(process: SpawnProcess) -> ProcessDeathError:
    process.join(_END_SECONDS)
    code = process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ProcessDeathError(
        f"a worker process died ({how}), perhaps out of memory; what was finished is kept, so run "
        "the same command again, with --workers 1 if it happens again"
    )


def _work(begin: Begin, pipe: Connection, told: Connection, parent: int) -> None:
    """What a worker does until it is given nothing more."""
    end_with(parent)
    boss, do = Boss(pipe, told), None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the boss has ended
        while (task := pipe.recv()) is not None:
            failure: Exception | None = None
            try:
                do = do or begin(boss)
                do(task)
            except (RefusedError, StorageError) as error:
                failure = error
            except Exception:
                failure = RuntimeError(f"a worker process failed:\n{traceback.format_exc()}")
            pipe.send((True, failure))
