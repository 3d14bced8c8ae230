"""Our commands and scripts in separate processes, from files to exit codes."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "optimiser.epochs=1"]
Start = Literal["spawn", "fork"]  # how a command's workers begin


def environment(more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Our variables, without network: an attempt to fetch anything is a fault and fails at once."""
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")]
    fixed = {"HF_HUB_OFFLINE": "1", "TERM": "dumb", "COLUMNS": "200"}
    return os.environ | fixed | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(more)


def python(
    *arguments: object,
    cwd: Path | None = None,
    timeout: float | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Python that finds our packages and ``tests/support``, with ``env`` added."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(env), capture_output=True, text=True, cwd=cwd, timeout=timeout
    )


def tgdfer(
    *arguments: object, cwd: Path, timeout: float = 300, workers: Start = "fork", **options: Any
) -> subprocess.CompletedProcess[str]:
    """The command line in the folder ``cwd``, perhaps with more variables, ``env``.

    Forked, and its workers too by default, from a process that has imported torch;
    ``python("-m", "tgdfer")`` is the same, afresh.
    """
    from support.forked import forker  # it imports this file

    words = [str(word) for word in arguments]
    done = forker().run(words, cwd, timeout, workers=workers, **options)
    return subprocess.CompletedProcess(words, done.code, done.stdout, done.stderr)


def script(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A script, the first of ``arguments``, forked from a process that has imported torch."""
    return tgdfer(*arguments, cwd=ROOT, what="script", **options)
