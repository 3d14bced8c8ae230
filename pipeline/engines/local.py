"""Tasks -> processes of this machine, which end when this one does, however it ends.

They share nothing but pipes with this process: there are no semaphores or queues that a kill could
leave behind, or leave locked.

    this process                        a worker
    task.work     ──── one pipe ─────>  work(boss)
    on_report     <─────────────────    boss.report(units), at last: its value and error
    stop          ──── for all ──────>  boss.is_stopping()
"""

import os
import signal
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from os import getpid

from pipeline.engines.task import ATTEMPTS, OnReport, Outcome, Task, TaskError, attempt
from pipeline.interrupt import STOPPING, Stop, StoppedError, end_with, stop_on_signal

_END_SECONDS = 1.0  # for the exit code of a process that has closed its pipe

# glibc returns large blocks to the system after each use and gets them back page by page. Keeping
# them made a training step on the CPU 1.7 times faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


@dataclass(frozen=True)
class Local:
    """So many processes, which finish ``doing`` when they are stopped; an Engine.

    If ``gpus`` are named, as in CUDA_VISIBLE_DEVICES, each process sees but one of them.
    """

    processes: int
    doing: str
    gpus: Sequence[str] = ()

    def run(self, tasks: Sequence[Task], on_report: OnReport) -> Generator[Outcome, None, None]:
        """See ``Engine.run``."""
        told, tell = get_context("spawn").Pipe(duplex=False)
        with stop_on_signal(self.doing, lambda: tell.send_bytes(b"stop")) as stop, tell, told:
            crew = _Crew(deque(tasks), told, stop, on_report)
            try:
                for number in range(min(self.processes, len(tasks))):
                    crew.hire(self._environment(number))
                yield from crew.work()
            except GeneratorExit:
                crew.is_closed = True
                tell.send_bytes(b"stop")
                deque(crew.work(), maxlen=0)
                raise
            except BaseException:
                crew.kill()
                raise
            finally:
                crew.leave()
        if stop.signal:
            raise StoppedError(stop.signal)

    def _environment(self, number: int) -> dict[str, str]:
        own = {"CUDA_VISIBLE_DEVICES": self.gpus[number]} if self.gpus else {}
        return KEEP_MEMORY | own


@dataclass
class _Worker:
    """A process, its environment, and the task that it is at, if any."""

    process: SpawnProcess
    environment: Mapping[str, str]
    task: Task | None = None


@dataclass
class _Crew:
    """The processes, and the tasks that are left for them."""

    tasks: "deque[Task]"
    told: Connection
    stop: Stop
    on_report: OnReport
    is_closed: bool = False
    workers: dict[Connection, _Worker] = field(default_factory=dict)
    deaths: "Counter[str]" = field(default_factory=Counter)

    def hire(self, environment: Mapping[str, str]) -> None:
        """Start a process and give it a task, if there is one left."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        with theirs, blocked_signals(), _environment(environment):
            process = context.Process(target=_work, args=(theirs, self.told, getpid()))
            process.start()
        self.workers[ours] = _Worker(process, environment)
        self._give(ours)

    def work(self) -> Iterator[Outcome]:
        """The outcomes of all tasks; once closed or after a signal, of those that were begun."""
        while busy := [pipe for pipe, worker in self.workers.items() if worker.task]:
            for pipe in wait(busy):
                assert isinstance(pipe, Connection)
                task = self.workers[pipe].task
                assert task is not None
                try:
                    done, value = pipe.recv()
                except (EOFError, OSError):
                    yield from self._bury(pipe, task)
                    continue
                if done:
                    self._give(pipe)
                    yield Outcome(task, *value)
                else:
                    self.on_report(task, value)

    def kill(self) -> None:
        """End every process at once."""
        for worker in self.workers.values():
            worker.process.kill()

    def leave(self) -> None:
        """Let the processes end, and wait for that."""
        for pipe, worker in self.workers.items():
            with suppress(OSError):  # it is dead
                pipe.send(None)
            pipe.close()
            worker.process.join()

    def _give(self, pipe: Connection) -> None:
        worker = self.workers[pipe]
        worker.task = self.tasks.popleft() if self._has_more else None
        if worker.task is not None:
            with suppress(BrokenPipeError):  # its death is noticed when it is waited for
                pipe.send(worker.task.work)

    def _bury(self, pipe: Connection, task: Task) -> Iterator[Outcome]:
        """Let another process do the task of a dead one, unless the task has killed too many."""
        worker = self.workers.pop(pipe)
        pipe.close()
        worker.process.join(_END_SECONDS)
        self.deaths[task.name] += 1
        if self.deaths[task.name] < ATTEMPTS:
            self.tasks.appendleft(task)
        else:
            yield Outcome(task, error=_death(worker.process))
        if self._has_more:
            self.hire(worker.environment)

    @property
    def _has_more(self) -> bool:
        return bool(self.tasks) and not self.is_closed and not self.stop.signal


def _death(process: SpawnProcess) -> TaskError:
    code = process.exitcode or 0
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return TaskError(
        f"a worker process died ({how}), {ATTEMPTS} times in turn, perhaps out of memory: fewer "
        "--workers need less"
    )


@contextmanager
def blocked_signals() -> Iterator[None]:
    """A process started in this context gets no signal that stops: its boss tells it to stop.

    A terminal sends its signals to every process, also to one that has only just been started.
    """
    ensure_running()  # starting multiprocessing's own process would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """What a process started in this context finds in its environment."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@dataclass(frozen=True)
class _Pipes:
    """The boss of a worker, at the other end of its pipes."""

    pipe: Connection
    told: Connection

    def report(self, units: int) -> None:
        self.pipe.send((False, units))

    def is_stopping(self) -> bool:
        return self.told.poll()  # true without a boss as well


def _work(pipe: Connection, told: Connection, parent: int) -> None:
    """What a worker does until it is given nothing more."""
    end_with(parent)
    boss = _Pipes(pipe, told)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the boss has ended
        while (work := pipe.recv()) is not None:
            pipe.send((True, attempt(work, boss)))
