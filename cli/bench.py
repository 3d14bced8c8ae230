"""tgdfer bench: measure this machine; needs a checkout of the project."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

BENCHMARKS = ("extraction", "store", "training", "stacks", "tables")
ROOT = Path(__file__).parents[1]


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"{', '.join(BENCHMARKS)}.", show_default="all of them"),
    ] = None,
) -> None:
    """Measure this machine and write benchmarks/*.json and docs/performance.md.

    All of them take about half an hour on 2 cores. Leave the machine alone meanwhile.

    - A training step by stage, and stacked runs:  tgdfer bench stacks
    """
    from cache.errors import RefusedError

    chosen = names or list(BENCHMARKS)
    unknown = [name for name in chosen if name not in BENCHMARKS]
    if unknown:
        raise RefusedError(f"no benchmark {unknown[0]}; there are: {', '.join(BENCHMARKS)}")
    if not (ROOT / "benchmarks").is_dir():
        raise RefusedError(
            "the benchmarks are not part of the installed package; clone the project, install it "
            "with make setup, and run this there"
        )
    for name in [*chosen, "report"]:
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            raise typer.Exit(code)
