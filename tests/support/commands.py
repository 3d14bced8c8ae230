"""Our commands and scripts as processes of their own, as users start them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "optimiser.epochs=1"]


def environment(**more: str) -> dict[str, str]:
    """No network: a try to fetch anything must fail at once, and would be a fault."""
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "tests")]
    fixed = {"HF_HUB_OFFLINE": "1", "TERM": "dumb", "COLUMNS": "200"}
    return os.environ | fixed | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def python(
    *arguments: object, cwd: Path | None = None, timeout: float | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Python with our packages and the tests' support importable and ``more`` in its environ."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, cwd=cwd, timeout=timeout
    )


def tgdfer(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line in the folder ``cwd``."""
    return python("-m", "tgdfer", *arguments, cwd=cwd, timeout=300)
