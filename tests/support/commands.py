"""Our commands and scripts in separate processes, as users start them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "optimiser.epochs=1"]


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


def tgdfer(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line in the folder ``cwd``."""
    return python("-m", "tgdfer", *arguments, cwd=cwd, timeout=300)
