"""What the benchmarks wrote and the page that is made of it; nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import page  # noqa: E402


def reports() -> dict[str, object]:
    return {p.stem: json.loads(p.read_text()) for p in (ROOT / "benchmarks").glob("*.json")}


def test_page_is_made_of_the_committed_figures() -> None:
    assert (ROOT / "docs/performance.md").read_text() == page(reports())


def test_page_says_what_was_not_measured() -> None:
    some = {name: report for name, report in reports().items() if name != "stacks-gpu"}
    assert "Nothing here was run on a GPU" in page(some)
    assert "## The store" not in page({"extraction": some["extraction"]})


def test_every_benchmark_is_named_by_the_command_and_can_be_run() -> None:
    from cli.bench import BENCHMARKS

    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(BENCHMARKS) == modules - {"__init__", "generated", "machine", "report"}
    for name in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "--out" in done.stdout


def test_unknown_benchmark_is_refused() -> None:
    command = [sys.executable, "-m", "cli.main", "bench", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no benchmark speed; there are: extraction" in done.stderr
