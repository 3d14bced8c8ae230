"""Tasks -> what became of them: the one seam between what is computed and where.

    this process                            a process, here or on another machine
    results(engine, tasks)  ─── tasks ───>  task.work(boss)
    on_units                <── units ────  boss.report(units), until boss.is_stopping()
    values, or an error     <── outcomes ─  what it returned or raised

An engine decides where a task is done, never what: it may begin a task again whose process died or
ran out of time, so tasks keep what they have finished and go on from there.
"""

import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cache.errors import RefusedError, StorageError
from pipeline.show import show

ATTEMPTS = 3  # at a task whose process dies
SHOWN_FAILURES = 3
DIGITS_MAX = 18  # of a number of units


class Boss(Protocol):
    """Who a task works for."""

    def report(self, units: int) -> None:
        """So many units of this task are done, from its very beginning on."""

    def is_stopping(self) -> bool:
        """Whether the task should return as soon as what it has done is kept."""


Work = Callable[[Boss], Any]


@dataclass(frozen=True)
class FileBoss:
    """The boss of a task on another machine: a file that both machines see."""

    units: Path

    def report(self, units: int) -> None:
        with suppress(OSError):  # a full disk; what is kept counts, not what is said of it
            self.units.write_text(str(units))

    def is_stopping(self) -> bool:
        return False  # the cluster ends the task

    def reported(self) -> int:
        """The units that are done, as far as this machine sees."""
        try:
            text = self.units.read_bytes()[:DIGITS_MAX]
        except OSError:
            return 0
        return int(text) if text.isdigit() else 0


@dataclass(frozen=True)
class Resources:
    """What a task needs, for engines that reserve it."""

    gpus: int = 0
    cores: int = 1
    memory_gib: int = 4
    minutes: int = 60  # then it is begun again, as often as it takes


@dataclass(frozen=True)
class Task:
    """Work that can be sent to another process, and begun again there."""

    name: str  # in messages; no two tasks have the same
    work: Work  # picklable, such as a functools.partial of a module's function
    resources: Resources = Resources()


@dataclass(frozen=True)
class Outcome:
    """What became of a task: the value that its work returned, or an error."""

    task: Task
    value: Any = None
    error: Exception | None = None


class TaskError(RuntimeError):
    """A task failed, or its process died at it; what was finished before is kept."""


OnReport = Callable[[Task, int], None]  # called with the units of a task that are done


class Engine(Protocol):
    """Where tasks are done."""

    def run(self, tasks: Sequence[Task], on_report: OnReport) -> Generator[Outcome, None, None]:
        """The outcomes of all tasks, as they end; the first tasks begin first.

        A task whose process dies is begun again, ``ATTEMPTS`` times in all. Closing the iterator
        ends what is still at work; so does the first SIGINT, SIGTERM or SIGHUP, which raises
        StoppedError.
        """


def attempt(work: Work, boss: Boss) -> tuple[Any, Exception | None]:
    """What the work returned and raised, where it is done: errors that every process can read."""
    try:
        return work(boss), None
    except (RefusedError, StorageError) as error:
        return None, error
    except Exception:
        return None, TaskError(traceback.format_exc())


def results(
    engine: Engine, tasks: Sequence[Task], on_units: Callable[[int], None] = lambda units: None
) -> list[Any]:
    """The values of all tasks, in their order; ``on_units`` gets how many more units are done.

    A task that fails is named on stderr and the others go on; then TaskError is raised.
    RefusedError and StorageError, whose reasons are not of one task, end the others and are raised
    as they are.
    """
    done: dict[str, int] = defaultdict(int)

    def on_report(task: Task, units: int) -> None:
        if (more := units - done[task.name]) > 0:  # not while a task is begun again
            done[task.name] = units
            on_units(more)

    values, failed = {}, []
    with closing(engine.run(tasks, on_report)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome.error, RefusedError | StorageError):
                raise outcome.error
            if outcome.error is not None:
                failed.append(outcome)
                print(f"failed: {_describe(outcome)}", file=sys.stderr)
            values[outcome.task.name] = outcome.value
    if failed:
        raise TaskError(_summarise(failed, len(tasks)))
    return [values[task.name] for task in tasks]


def _describe(outcome: Outcome) -> str:
    return "\n  ".join(map(show, f"{outcome.task.name}: {outcome.error}".splitlines()))


def _summarise(failed: Sequence[Outcome], tasks: int) -> str:
    named = [f"{out.task.name}: {str(out.error).splitlines()[-1]}" for out in failed]
    more = f"; and {len(named) - SHOWN_FAILURES} more" if len(named) > SHOWN_FAILURES else ""
    return (
        f"{len(failed)} of {tasks} tasks failed, what the others did is kept; "
        f"{'; '.join(named[:SHOWN_FAILURES])}{more}; run the same command again for the rest"
    )
