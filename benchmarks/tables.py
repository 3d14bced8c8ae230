"""Whole tables on the embedded faces, from a finished store to the written table.

Run as ``python -m benchmarks.tables [--epochs N] [--against TREE]``; writes
``benchmarks/tables.json``. TREE is another checkout of this project; the two are measured
alternately, each on its own store.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.machine import best_device, machine, seconds, write

OUT = Path(__file__).with_suffix(".json")
HERE = Path(__file__).parents[1]


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tables", nargs="+", default=["table3"])
    parser.add_argument("--against", type=Path, metavar="TREE")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    trees = {"this": HERE} | ({"before": options.against} if options.against else {})
    taken: dict[str, list[float]] = {name: [] for name in trees}
    before = machine(best_device())
    with tempfile.TemporaryDirectory() as scratch:
        for name, tree in trees.items():
            (Path(scratch) / name).mkdir()
            tgdfer(tree, Path(scratch) / name, "extract")
        for turn in range(options.rounds):
            for name, tree in trees.items():
                folder = Path(scratch) / name
                work = partial(ablate, tree, folder, options.tables, options.epochs, turn)
                taken[name].append(seconds(work))
    report = {"machine": before, "tables": options.tables, "epochs": options.epochs}
    if options.against:
        commit = subprocess.run(
            ["git", "-C", str(options.against), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
        report["before"] = commit.stdout.strip()
        pairs = zip(taken["before"], taken["this"], strict=True)
        report["times_faster"] = [round(old / new, 3) for old, new in pairs]
    write(report | {"seconds": taken}, options.out)


def ablate(tree: Path, folder: Path, tables: list[str], epochs: int, turn: int) -> None:
    """Train the tables' runs and write the tables; each turn trains all of them again."""
    schedule = [f"optimiser.epochs={epochs}", "optimiser.milestones=[]"]
    options = [part for setting in schedule for part in ("--set", setting)]
    tgdfer(tree, folder, "ablate", *tables, *options, "--runs", f"runs{turn}")


def tgdfer(tree: Path, folder: Path, *arguments: str) -> None:
    """Run a command of the checkout at ``tree`` in ``folder``."""
    subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(tree.resolve())},
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
