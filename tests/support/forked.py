"""Commands in processes that are forked from one which has imported torch.

Importing torch, open_clip and the decoders takes seven seconds of CPU, a hostile input is refused
in a tenth of one. So one process imports them once and forks a child per command. A child runs
``tgdfer.main()`` with the command's own arguments, folder, variables, streams, process group and
exit code, as ``python -m tgdfer`` does; ``test_hostile`` compares the two. Nothing is replaced,
except that workers are forked as well where that is asked for.

Run as ``python -m support.forked``: jobs and outcomes are lines of JSON on stdin and stdout.
"""

import atexit
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from pipeline.train.code import code_files
from support.commands import Start, environment

IMPORTS = [
    *("torch", "av", "simplejpeg", "PIL.Image", "open_clip.factory", "pandas", "jinja2"),
    *("sklearn.linear_model", "zarr", "h5py", "safetensors.torch", "fsspec.implementations.zip"),
    *("cli.main", "pipeline.extract.loop", "pipeline.extract.block", "pipeline.extract.live"),
    *("pipeline.extract.imported", "pipeline.train.stack", "pipeline.train.grid"),
    *("pipeline.report.ablation", "pipeline.report.comparison", "pipeline.demo.faces"),
]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: the signal), what it printed, how long."""

    code: int
    stdout: str  # bytes that are not UTF-8 as surrogates, as in stderr
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        """Everything that it printed, stderr after stdout."""
        return self.stdout + self.stderr


class Forker:
    """The process that forks commands; it ends at the end of its stdin, so with this one."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked"],
            env=environment({"OMP_NUM_THREADS": "1"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: Sequence[str], cwd: Path, limit_seconds: float, **options: Any
    ) -> Outcome:
        """One command in the folder ``cwd``; it and its children are killed at the limit."""
        return self.start(arguments, cwd, **options).wait(limit_seconds)

    def start(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] = MappingProxyType({}),
        workers: Start = "spawn",
        what: Literal["command", "script", "module", "function"] = "command",
    ) -> "Started":
        """Start a command, or what the first of ``arguments`` names."""
        job = {"arguments": arguments, "cwd": str(cwd), "workers": workers, "what": what}
        return Started(self, self.ask(job | {"env": environment(env)}))

    def call(self, function: str, *arguments: str) -> None:
        """Call ``MODULE:FUNCTION`` with texts, in a child."""
        outcome = self.start([function, *arguments], Path("/"), what="function").wait(120)
        assert outcome.code == 0, outcome.output

    def ask(self, job: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@dataclass(frozen=True)
class Started:
    """A process that leads a session of its own."""

    forker: Forker
    pid: int

    def wait(self, limit_seconds: float) -> Outcome:
        """How it ended; it and its children are killed at the limit, and what is left after it."""
        return Outcome(**self.forker.ask({"wait": self.pid, "limit": limit_seconds}))


@cache
def forker() -> Forker:
    """The one of this process."""
    return Forker()


def main() -> None:
    for name in IMPORTS:
        __import__(name)
    code_files()  # takes every command that trains half a second
    gc.collect()
    gc.freeze()  # a collection would touch, and so copy, every page in every child
    replies = os.fdopen(os.dup(1), "w")
    files: dict[int, list[int]] = {}
    began: dict[int, float] = {}
    for line in os.fdopen(os.dup(0)):
        job = json.loads(line)
        if child := job.get("wait"):
            code = _wait(child, job["limit"])
            stdout, stderr = map(_take, files.pop(child))
            outcome = Outcome(code, stdout, stderr, time.monotonic() - began[child])
            print(json.dumps(vars(outcome)), file=replies, flush=True)
            continue
        streams = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
        child = os.fork()
        if child == 0:
            _become(job, streams)
        files[child], began[child] = streams, time.monotonic()
        print(child, file=replies, flush=True)
    os._exit(0)


def _become(job: dict[str, Any], files: list[int]) -> NoReturn:
    """Turn this child into the command, and end as it does."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, handle in enumerate((nothing, *files)):
        os.dup2(handle, number)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    if job["workers"] == "fork":
        context = multiprocessing.get_context("fork")
        vars(sys.modules["pipeline.engines.local"])["get_context"] = lambda _: context
    try:
        _execute(job)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What the interpreter does at its end, without the second it takes to free every module.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _execute(job: dict[str, Any]) -> None:
    what, sys.argv = job["what"], job["arguments"]
    if what == "function":
        module, _, function = sys.argv[0].partition(":")
        getattr(__import__(module, fromlist=[function]), function)(*sys.argv[1:])
    elif what == "script":
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif what == "module":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        import tgdfer

        sys.argv = ["tgdfer", *sys.argv]
        tgdfer.main()


def _wait(child: int, limit_seconds: float) -> int:
    """The exit code; whatever is left of the child's process group is killed."""
    handle = os.pidfd_open(child)
    ended = select.select([handle], [], [], limit_seconds)[0]
    os.close(handle)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if ended else -signal.SIGKILL


def _take(file: int) -> str:
    with os.fdopen(file, "rb") as stream:
        stream.seek(0)
        return stream.read().decode("utf-8", "surrogateescape")


if __name__ == "__main__":
    main()
