"""Which changes of the source make other runs."""

import ast
import shutil
from pathlib import Path

import pytest

from pipeline.train.code import code_files, tree_digest
from support.commands import ROOT, SMALL, python, tgdfer
from support.stores import random_store

SOURCE = '''
"""What it is."""
from pydantic import Field

def scaled(x, gain=2.0):
    """Doubles."""
    if x < 0:
        raise ValueError(f"{x} is negative")
    return gain * x  # twice

width = Field(4, description="of a window")
'''


def digest(source: str) -> str:
    return tree_digest(ast.parse(source))


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("# twice", "# two times", True),
        ("Doubles.", "Gives twice as much.", True),
        ("What it is.", "", True),
        ("is negative", "must not be negative", True),
        ("of a window", "frames in a window", True),
        ("gain * x", "(gain\n        * x)", True),
        ("gain * x", "x * gain", False),
        ("gain=2.0", "gain=2", False),
        ("x < 0", "x <= 0", False),
        ("ValueError", "TypeError", False),
        ("Field(4", "Field(5", False),
    ],
)
def test_prose_and_formatting_do_not_count_and_code_does(
    before: str, after: str, same: bool
) -> None:
    assert before in SOURCE
    assert (digest(SOURCE.replace(before, after)) == digest(SOURCE)) == same


def test_digest_covers_the_files_that_compute_a_run() -> None:
    files = code_files()
    for name in (
        "config.py",
        "datasets/texts.toml",
        "evaluate/metrics.py",
        "kernels/__init__.py",
        "kernels/windows.py",
        "kernels/windows_triton.py",
        "model/temporal.py",
        "train/optimisers.py",
        "train/stack.py",
    ):
        assert name in files
    rooms = {name.split("/")[0] for name in files if "/" in name}
    assert {"video/views.py", "encoders/clip.py", "extract/live.py"} <= code_files(live=True).keys()
    assert rooms == {"datasets", "evaluate", "kernels", "model", "train"}
    assert not {"train/grid.py", "train/records.py", "evaluate/statistics.py"} & files.keys()


PENDING = """
from pathlib import Path
from cache.store import open_store
from pipeline.config import load_method, runs_of
from pipeline.train.records import Records, describe_others
records = Records(Path("runs"), open_store("s.zarr"))
runs = runs_of(load_method("paper", ["optimiser.epochs=1"]), "12", [0])
print(len(records.pending(runs)), describe_others(records.others(runs)))
"""


def test_one_arithmetic_edit_makes_every_run_pending_and_a_comment_none(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for room in ("cache", "pipeline", "cli"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tgdfer.py", copy)
    random_store(copy / "s.zarr", videos=14, folds=2)
    here = {"PYTHONPATH": str(copy)}
    train = ["train", "--store", "s.zarr", "--workers", 1, *SMALL]
    done = tgdfer(*train, cwd=copy)  # of our code, which is the same
    assert done.returncode == 0, done.stderr

    def pending() -> str:
        return python("-c", PENDING, cwd=copy, env=here).stdout.strip()

    assert pending() == "0 []"
    network = copy / "pipeline/model/temporal.py"
    text = network.read_text()
    network.write_text(text.replace("    def forward", "    # A comment.\n    def forward"))
    assert pending() == "0 []"
    network.write_text(text.replace("return torch.cat(parts", "return 0 * torch.cat(parts"))
    others = "2 finished runs with the same settings, other code (model/temporal.py)"
    assert pending() == f"2 {[others]}"
    again = python("-m", "tgdfer", *train, cwd=copy, env=here)
    assert others in again.stderr
    assert "2 runs trained, 0 already finished" in again.stdout
