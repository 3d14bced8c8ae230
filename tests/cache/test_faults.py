"""The store on a disk that fails, on one that is full, and on one that is read-only."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.check import verify
from cache.store import create_store, open_store
from pipeline.demo.faces import FacesSpec, write_faces
from support.commands import ROOT, python, script, tgdfer
from support.sources import write_encoder
from support.tiny import fill, fixed_files, make_plan, make_store, store_bytes

# TGDFER_FAULT_STEP=1 tries every call of every scene with every failure, in five minutes.
STEP = int(os.environ.get("TGDFER_FAULT_STEP", "18"))
NOBODY = 65534


def test_after_any_disk_failure_one_restart_gives_the_same_store(tmp_path: Path) -> None:
    done = python(ROOT / "tests/support/faults.py", tmp_path, STEP)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == []
    assert all(report["tried"].values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk_keeps_what_was_committed_and_resumes_with_more_space(
    small_disk: Path, tmp_path: Path
) -> None:
    """Through the command: exit code 5, the remedy, and then the same store."""
    write_faces(tmp_path / "DFEW", FacesSpec(videos=35), workers=1)
    encoder = write_encoder(tmp_path / "encoder", dim=64)
    options = ["--dataset", "dfew", "--root", tmp_path / "DFEW", "--encoder", encoder]
    command = ["extract", *options, "--views", 1, "--store"]
    store = small_disk / "s.zarr"
    full = tgdfer(*command, store, cwd=tmp_path)
    assert full.returncode == 5, full.stderr
    assert "the disk is full; free some space and run the same command again" in full.stderr
    assert list((store / ".tmp").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert tgdfer(*command, store, cwd=tmp_path).returncode == 0
    assert tgdfer(*command, tmp_path / "whole.zarr", cwd=tmp_path).returncode == 0
    assert store_bytes(store) == store_bytes(tmp_path / "whole.zarr")


def test_disk_that_fills_up_at_any_size_gives_the_same_store(
    small_disk: Path, tmp_path: Path
) -> None:
    """The disk grows by 12 KiB at a time, and every attempt resumes where the last one stopped."""
    attempt = tmp_path / "attempt.py"
    attempt.write_text(
        "import sys; from pathlib import Path; from support import faults\n"
        "from cache.errors import StorageError\n"
        "try: faults.extract(Path(sys.argv[1]))\nexcept StorageError: sys.exit(5)"
    )
    codes = []
    for size_kib in range(8, 256, 12):
        subprocess.run(["mount", "-o", f"remount,size={size_kib}k", small_disk], check=True)
        codes.append(script(attempt, small_disk / "s").returncode)
        if codes[-1] == 0:
            break
    assert codes[0] == 5
    assert set(codes[:-1]) == {5}
    assert codes[-1] == 0
    assert verify(small_disk / "s", deep=True) == []


def test_store_on_a_read_only_disk_is_read_and_not_written(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    whole = make_store(small_disk / "whole")
    fill(create_store(small_disk / "half", make_plan(), fixed_files()), only=1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert open_store(whole.path).load_features().shape[0] == 150
    assert verify(whole.path, deep=True) == []
    for name in ("half", "new"):
        done = python("-c", MAKE, small_disk / name)
        assert done.stdout.startswith("5 "), done.stderr
        assert "the file system is read-only; choose another location" in done.stdout


MAKE = (
    "import os, sys; from pathlib import Path; from cache.errors import StorageError\n"
    "from support.tiny import make_store\n"
    f"if len(sys.argv) > 2: os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    "try: make_store(Path(sys.argv[1]))\n"
    "except StorageError as error: print(5, error)"
)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody who may not write")
def test_folder_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        done = python("-c", MAKE, Path(name) / "s", "as nobody")
        assert done.stdout.startswith("5 "), done.stderr
        assert f"{name}/s: no permission to write here" in done.stdout
