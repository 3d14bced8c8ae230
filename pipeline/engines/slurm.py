"""Tasks -> the jobs of a SLURM array, which SLURM places, and begins again when a node fails.

submitit writes the script, the tasks and their results to ``folder``, which every node must see.
Whether a job has ended is asked of squeue: sacct, which submitit would ask, needs an accounting
that not every cluster has.
"""

import io
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
from submitit.helpers import Checkpointable

from cache.errors import RefusedError
from cache.files import make_directories
from pipeline.engines.local import KEEP_MEMORY, blocked_signals
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
from pipeline.show import show

Queue = Mapping[str, tuple[str, str]]  # of a job: its state, and why it waits

TIMEOUTS = 1000  # after each of which a job goes on from what it has kept
POLL_SECONDS = (0.5, 10.0)  # between looks, at first and later
MEMORY_OPTIONS = {"mem_per_cpu", "mem_per_gpu"}
GPU_OPTIONS = {"gres", "gpus", "gpus_per_node", "gpus_per_task"}  # each in place of ours


@dataclass(frozen=True)
class Slurm:
    """At most ``at_once`` jobs at a time, with these options of sbatch; an Engine."""

    folder: Path
    options: Mapping[str, str]
    at_once: int = 256
    late_seconds: float = 30.0  # after its end, a job's result may appear on a shared disk

    def __post_init__(self) -> None:
        if "%" in str(self.folder.absolute()):
            raise RefusedError(
                f"{self.folder}: sbatch puts something else in the place of %; use another folder"
            )

    def run(self, tasks: Sequence[Task], on_report: OnReport) -> Generator[Outcome, None, None]:
        """See ``Engine.run``."""
        told, tell = Pipe(duplex=False)
        doing = "the cancellation of the SLURM jobs"
        with stop_on_signal(doing, lambda: tell.send_bytes(b"stop")) as stop, told, tell:
            jobs, started, said = self._submit(tasks), time.monotonic(), {"None"}
            try:
                while jobs and not stop.signal:
                    told.poll(_pause(time.monotonic() - started))
                    queue = _queue()
                    _say_why_all_wait(jobs, queue or {}, said)
                    for job in self._ended(jobs, queue, on_report):
                        jobs.remove(job)
                        if job.missed is not None and job.attempt < ATTEMPTS:
                            jobs += self._submit([job.task], job.attempt + 1)
                        else:
                            yield job.outcome()
            finally:
                _call("scancel", *(job.id for job in jobs))
        if stop.signal:
            raise StoppedError(stop.signal)

    def _submit(self, tasks: Sequence[Task], attempts: int = 1) -> "list[_Job]":
        make_directories(self.folder)
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(**self._parameters([task.resources for task in tasks]))
        bosses = [FileBoss(self.folder / f"{uuid.uuid4().hex}.units") for _ in tasks]
        try:
            # A refusal is printed, and raised as well.
            with (
                redirect_stderr(io.StringIO()),
                blocked_signals(),
            ):  # a job that was sent is known, so that it can be cancelled
                sent = executor.map_array(_Attempt(), [task.work for task in tasks], bosses)
        except (FailedJobError, FailedSubmissionError) as error:
            raise RefusedError(f"SLURM refuses the jobs: {error}") from error
        number = sent[0].job_id.partition("_")[0]
        print(
            f"SLURM job {number}, tasks: {len(sent)}, logs in {show(self.folder)}", file=sys.stderr
        )
        return [_Job(*one, attempts) for one in zip(tasks, sent, bosses, strict=True)]

    def _parameters(self, needs: Sequence[Resources]) -> dict[str, Any]:
        own = {name.replace("-", "_"): value for name, value in self.options.items()}
        cores, gpus = max(need.cores for need in needs), max(need.gpus for need in needs)
        memory = max(need.memory_gib for need in needs)
        return {
            "job_name": "tgdfer",
            "time": max(need.minutes for need in needs),
            "mem": None if MEMORY_OPTIONS & own.keys() else f"{memory}G",
            "cpus_per_task": cores,
            "gpus_per_node": gpus if gpus and not GPU_OPTIONS & own.keys() else None,
            "array_parallelism": self.at_once,
            "setup": [f"export {name}={value}" for name, value in KEEP_MEMORY.items()],
            # It does not take over this option of its job.
            "srun_args": [f"--cpus-per-task={own.get('cpus_per_task', cores)}"],
            "additional_parameters": {"requeue": True} | own,
        }

    def _ended(
        self, jobs: "Sequence[_Job]", queue: "Queue | None", on_report: OnReport
    ) -> "Iterator[_Job]":
        """The jobs that have left a result, or have ended without one."""
        names = set(os.listdir(self.folder))
        for job in list(jobs):
            if units := job.boss.reported():
                on_report(job.task, units)
            found = job.sent.paths.result_pickle.name in names
            job.note(found or queue is None or job.id in queue)
            if found or job.is_lost(self.late_seconds):
                yield job


@dataclass
class _Job:
    """A task as it was sent to SLURM."""

    task: Task
    sent: submitit.Job[tuple[Any, Exception | None]]
    boss: FileBoss
    attempt: int
    missed: float | None = None  # since when it has ended without a result

    @property
    def id(self) -> str:
        """As squeue and scancel name it."""
        return self.sent.job_id

    def note(self, is_there: bool) -> None:
        """Note whether it is in the queue, or its result is there."""
        self.missed = None if is_there else self.missed or time.monotonic()

    def is_lost(self, seconds: float) -> bool:
        """Whether it has ended so long ago without a result."""
        return self.missed is not None and time.monotonic() - self.missed >= seconds

    def outcome(self) -> Outcome:
        """What it has left, or where to look for the reason why it has left nothing."""
        if self.missed is not None:
            reason = f"SLURM ended job {self.id} without a result, {ATTEMPTS} times in turn"
            return Outcome(self.task, error=TaskError(f"{reason}; see {self.sent.paths.stderr}"))
        try:
            return Outcome(self.task, *self.sent.result())
        except (FailedJobError, UncompletedJobError) as error:
            return Outcome(self.task, error=TaskError(str(error)))


class _Attempt(Checkpointable):
    """What a job does; at a time-out or when it is preempted, submitit lets it begin again."""

    def __call__(self, work: Work, boss: FileBoss) -> tuple[Any, Exception | None]:
        return attempt(work, boss)


def _pause(seconds: float) -> float:
    """How long to wait for the next look, so many seconds after the first."""
    return min(POLL_SECONDS[1], max(POLL_SECONDS[0], seconds / 20))


def _queue() -> "Queue | None":
    """The jobs of this user that have not ended; None if SLURM does not answer."""
    lines = _call("squeue", "--me", "--array", "--noheader", "--format=%i|%t|%r")
    if lines is None:
        return None
    return {own: (state, why) for own, state, why in (line.split("|", 2) for line in lines)}


def _say_why_all_wait(jobs: "Sequence[_Job]", queue: "Queue", said: set[str]) -> None:
    """Say each reason once."""
    found = [queue.get(job.id, ("", "")) for job in jobs]
    if jobs and all(state == "PD" for state, _ in found):
        for reason in sorted({reason for _, reason in found} - said):
            print(
                f"SLURM: all {len(jobs)} waiting ({show(reason)}); Ctrl-C cancels them",
                file=sys.stderr,
            )
            said.add(reason)


def _call(command: str, *arguments: str) -> list[str] | None:
    """The lines that a command of SLURM prints; None if it fails."""
    if not arguments:
        return None
    found = [shutil.which(command) or command, *arguments]
    done = subprocess.run(found, capture_output=True, text=True)
    return None if done.returncode else done.stdout.splitlines()
