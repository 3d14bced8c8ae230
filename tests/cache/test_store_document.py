"""The examples in docs/store.md read a store."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache.migrate import migrate
from support.tiny import DIM, FRAMES, flip, make_store

DOCUMENT = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


def read(example: str, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", example, str(store)], capture_output=True, text=True
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=["zarr", "numpy"])
def test_example_reads_the_features_and_finds_a_flipped_bit(tmp_path: Path, example: str) -> None:
    store = make_store(tmp_path / "s")
    assert read(example, store.path).stdout == f"(150, 2, {FRAMES}, {DIM})\n"
    migrate(store.path)
    assert read(example, store.path).stdout == f"(150, 2, {FRAMES}, {DIM})\n"
    flip(store.path / "features/c.1.0.0.0")
    assert read(example, store.path).returncode != 0


def test_document_names_every_file_of_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    migrate(store.path)
    for file in store.path.rglob("*"):
        if file.is_file() and not re.search(r"/(c\.|rows/|locks/)", str(file)):
            assert file.relative_to(store.path).as_posix() in DOCUMENT, file
