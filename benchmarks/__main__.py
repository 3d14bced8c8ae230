"""Run the benchmarks on this machine: ``python -m benchmarks [NAME...]``, by default all of them.

Writes benchmarks/*.json and docs/performance.md. All of them take about half an hour on 2 cores;
do not use the machine for anything else meanwhile.
"""

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "extraction",
    "views",
    "store",
    "training",
    "stacks",
    "tables",
    "check",
    "residence",
    "placement",
    "plans",
    "intervals",
)
ROOT = Path(__file__).parents[1]


def main() -> int:
    """Run the benchmarks one after the other, then write the page; stop at the first failure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; available: {', '.join(BENCHMARKS)}")
    for name in [*(names or BENCHMARKS), "report"]:
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
