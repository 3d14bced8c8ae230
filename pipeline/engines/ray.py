"""Tasks -> tasks of a Ray cluster, which places them, and begins them again when a node fails.

Values and errors come back through Ray.  How far a task is, it says in a file: its results are on a
disk that every node sees anyway, and a file outlives every process.
"""

import logging
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cache.errors import RefusedError
from cache.files import make_directories
from pipeline.engines.local import KEEP_MEMORY
from pipeline.engines.task import (
    ATTEMPTS,
    FileBoss,
    OnReport,
    Outcome,
    Resources,
    Task,
    TaskError,
    Work,
    attempt,
)
from pipeline.interrupt import StoppedError, stop_on_signal

POLL_SECONDS = 0.5
GIB = 2**30
NEEDS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # of a node, of a task


@dataclass(frozen=True)
class Ray:
    """At most ``at_once`` tasks at a time, with these options of Ray's tasks; an Engine.

    ``address`` is HOST:PORT, or ``auto``: what RAY_ADDRESS says, or the cluster of this machine.
    """

    folder: Path  # beside it are the files of the tasks, until they have ended
    options: Mapping[str, str]
    at_once: int = 256
    address: str = "auto"

    def run(self, tasks: Sequence[Task], on_report: OnReport) -> Generator[Outcome, None, None]:
        """See ``Engine.run``."""
        doing = "the cancellation of the Ray tasks"
        with _connected(self.address), self._units() as units, stop_on_signal(doing) as stop:
            self._announce(tasks)
            waiting = deque((task, FileBoss(units / str(i))) for i, task in enumerate(tasks))
            begun: dict[Any, tuple[Task, FileBoss]] = {}
            try:
                while (waiting or begun) and not stop.signal:
                    while waiting and len(begun) < self.at_once:
                        task, boss = waiting.popleft()
                        begun[self._begin(task, boss)] = task, boss
                    ended, _ = ray.wait(list(begun), timeout=POLL_SECONDS)
                    for task, boss in begun.values():
                        on_report(task, boss.reported())
                    for sent in ended:
                        yield _outcome(begun.pop(sent)[0], sent)
            finally:
                for sent in begun:
                    ray.cancel(sent, force=True)
        if stop.signal:
            raise StoppedError(stop.signal)

    @contextmanager
    def _units(self) -> Iterator[Path]:
        make_directories(self.folder.parent)
        name, parent = f"{self.folder.name}-", self.folder.parent.absolute()
        with tempfile.TemporaryDirectory(prefix=name, dir=parent) as units:
            yield Path(units)

    def _begin(self, task: Task, boss: FileBoss) -> Any:
        remote = ray.remote(
            **self._options(task.resources),
            max_retries=ATTEMPTS - 1,  # after the death of the process or its node
            retry_exceptions=False,
        )
        return remote(_attempt).remote(task.work, boss, os.getcwd())

    def _options(self, needs: Resources) -> dict[str, Any]:
        own = {"num_cpus": needs.cores, "num_gpus": needs.gpus, "memory": needs.memory_gib * GIB}
        given = {key.replace("-", "_"): value for key, value in self.options.items()}
        return own | {key: float(v) if key in own else v for key, v in given.items()}

    def _announce(self, tasks: Sequence[Task]) -> None:
        address = ray.get_runtime_context().gcs_address
        print(f"Ray cluster at {address}: {len(tasks)} tasks", file=sys.stderr)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if found := too_large([self._options(task.resources) for task in tasks], nodes):
            print(found, file=sys.stderr)


def too_large(
    wanted: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """What to say of tasks with these options of Ray if they fit none of these nodes."""
    most = {name: max(one[key] for one in wanted) for name, key in NEEDS.items()}
    if any(all(node.get(name, 0) >= most[name] for name in most) for node in nodes):
        return None
    return (
        f"no node has {most['CPU']:g} cores, {most['GPU']:g} GPUs and {most['memory'] / GIB:.3g} "
        "GiB, so tasks wait for one; Ctrl-C cancels them, and --engine-set num-cpus=N or "
        "memory=BYTES reserves less"
    )


def _attempt(work: Work, boss: FileBoss, folder: str) -> tuple[Any, Exception | None]:
    """What a task does, in the folder from which it was sent."""
    os.chdir(folder)
    return attempt(work, boss)


def _outcome(task: Task, sent: Any) -> Outcome:
    """What the task has left, or why it has left nothing."""
    try:
        return Outcome(task, *ray.get(sent))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
        return Outcome(task, error=TaskError(f"{error}\nits process died {ATTEMPTS} times in turn"))
    except ray.exceptions.RayError as error:
        return Outcome(task, error=TaskError(str(error)))


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to a running cluster, whose messages and logs stay on its nodes."""
    # Without an option for it, Ray prints that a process has died to stdout, where tables are.
    ray._private.worker._worker_logs_enabled = False
    handler = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    try:
        ray.init(
            address,
            runtime_env={"env_vars": KEEP_MEMORY},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError) as error:
        raise RefusedError(
            "--engine ray: no Ray cluster here; start one with: ray start --head, or run the "
            f"command on one of its machines ({address}: {str(error) or 'no answer'})"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()
