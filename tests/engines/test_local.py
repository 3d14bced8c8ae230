"""Processes that do the work of another one, and end with it."""

import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.engines.local import Local
from pipeline.engines.task import Task, TaskError, results
from support.commands import environment
from support.labour import environment_of, tasks
from support.train_kills import GONE_SECONDS, processes_of


def test_every_task_is_done_once_by_two_processes() -> None:
    done: list[int] = []
    told = results(Local(2, "the current task"), tasks(*"abcde"), done.append)
    assert [task for _, task in told] == list("abcde")
    assert os.getpid() not in {process for process, _ in told}
    assert done == [1] * 5


def test_reason_that_is_not_of_one_task_ends_the_others() -> None:
    with pytest.raises(RefusedError, match=r"^nothing to be done$"):
        results(Local(2, "the current task"), tasks("wait", "refuse", "a"))


def test_task_that_kills_its_processes_is_given_up_and_the_others_are_done() -> None:
    done: list[int] = []
    with pytest.raises(TaskError, match=r"^1 of 3 tasks .*; die: .*\(SIGKILL\), 3 times in turn"):
        results(Local(2, "the current task"), tasks("die", "a", "b"), done.append)
    assert done == [1] * 3


def test_every_process_sees_one_gpu() -> None:
    work = partial(environment_of, "CUDA_VISIBLE_DEVICES")
    engine = Local(2, "the current task", gpus=("3", "5"))
    assert {*results(engine, [Task(name, work) for name in "ab"])} == {"3", "5"}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "5"


@pytest.fixture
def at_work(tmp_path: Path) -> "subprocess.Popen[str]":
    """A process whose two workers are at work; ``tmp_path`` holds their ids."""
    command = [sys.executable, "-m", "support.labour", str(tmp_path), "local"]
    parent = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment()
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return parent


def seconds_until_gone(session: int) -> float:
    started = time.monotonic()
    while processes_of(session) and time.monotonic() - started < 2 * GONE_SECONDS:
        time.sleep(0.02)
    return time.monotonic() - started


def test_workers_end_with_a_killed_parent_even_in_a_long_step(
    at_work: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    for worker in tmp_path.iterdir():
        os.kill(int(worker.name), signal.SIGSTOP)  # as if it did not come back from a step
    at_work.kill()
    assert seconds_until_gone(at_work.pid) < GONE_SECONDS
    assert at_work.communicate()[1] == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whole_group", [False, True])
def test_first_signal_stops_the_workers_wherever_it_is_sent(
    at_work: "subprocess.Popen[str]", number: signal.Signals, whole_group: bool
) -> None:
    (os.killpg if whole_group else os.kill)(at_work.pid, number)
    said = at_work.communicate(timeout=60)[1]
    assert at_work.returncode == 128 + number
    assert "finishing the current task" in said
    assert "Traceback" not in said
    assert seconds_until_gone(at_work.pid) < GONE_SECONDS


def test_closed_terminal_stops_the_work_and_is_no_error(tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        command = [sys.executable, "-m", "support.labour", str(tmp_path), "local"]
        os.execve(sys.executable, command, environment())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGHUP
    assert seconds_until_gone(process) < GONE_SECONDS


def test_second_signal_ends_everything_at_once(
    at_work: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    for worker in tmp_path.iterdir():
        os.kill(int(worker.name), signal.SIGSTOP)
    at_work.send_signal(signal.SIGTERM)
    assert at_work.stderr is not None
    assert "finishing the current task" in at_work.stderr.readline()
    at_work.send_signal(signal.SIGTERM)
    assert at_work.wait(10) == -signal.SIGTERM
    assert seconds_until_gone(at_work.pid) < GONE_SECONDS
