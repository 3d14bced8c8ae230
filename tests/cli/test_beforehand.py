"""What is refused before anything is rendered, decoded, encoded or trained; what a kill left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.files import locked
from cache.store import Store, open_store
from pipeline.config import load_method, runs_of
from pipeline.report.written import write_reports
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from support.commands import SMALL, environment, tgdfer
from support.stores import random_store

CPU = ["--device", "cpu"]
OF_STORE = ["--store", "s.zarr", *SMALL, *CPU]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a file and a link to nowhere."""
    folder = tmp_path_factory.mktemp("user")
    random_store(folder / "s.zarr", videos=14, folds=2)
    (folder / "file").write_text("mine")
    (folder / "lost").symlink_to("nowhere")
    return folder


def refused(place: Path, *arguments: object, code: int = 2) -> str:
    """What a command says that is refused at once and leaves nothing."""
    before = sorted(place.rglob("*"))
    cache = {"TGDFER_CACHE": str(place / "cache")}
    done = tgdfer(*arguments, cwd=place, timeout=120, env=cache)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(place.rglob("*")) == before
    return done.stderr


@pytest.mark.parametrize("where", ["file", "file/x", "lost", "n" * 300])
def test_places_that_cannot_become_a_folder_are_refused_before_training(
    place: Path, where: str
) -> None:
    expected = "File name too long" if where[0] == "n" else f"{where.split('/')[0]} is not a folder"
    for command, option in (("train", "--runs"), ("ablate", "--out"), ("compare", "--out")):
        more = ["--vary", "optimiser.lr=[0.1]"] if command == "ablate" else []
        said = refused(place, command, *OF_STORE, *more, option, where)
        assert f"error: {option} {where}: " in said
        assert expected in said
        assert f"choose another {option}" in said


def test_places_of_a_trace_and_of_a_store_are_looked_at_before_the_work(place: Path) -> None:
    for command in ("train", "extract"):
        said = refused(place, command, *CPU, "--profile", "file/trace.json")
        assert "--profile file: file is not a folder" in said
        assert "not a file that can be written" in refused(
            place, command, *CPU, "--profile", "s.zarr"
        )
    assert "file is a file" in refused(place, "extract", "--store", "file/s.zarr")


def test_faces_are_not_rendered_for_what_will_be_refused(place: Path) -> None:
    assert "--fold 9: faces has the folds 1, 2, 3, 4, 5" in refused(place, "extract", "--fold", 9)
    other = refused(place, "extract", "--store", "s.zarr", "--frames", 8)
    assert "was made from something else" in other
    live = ["train", "--no-cached", *CPU]
    assert "no fold 9; it has 1, 2, 3, 4, 5" in refused(place, *live, "--fold", 9)
    assert "do not cover 16 frames" in refused(place, *live, "--set", "temporal.window=99")
    assert "--runs file/x: file is not a folder" in refused(place, *live, "--runs", "file/x")


def test_class_without_a_text_and_fold_without_features_are_refused(tmp_path: Path) -> None:
    random_store(tmp_path / "words.zarr", videos=14, classes=("happiness", "wisdom"))
    said = refused(tmp_path, "train", "--store", "words.zarr", *CPU)
    assert "no text for class wisdom" in said
    random_store(tmp_path / "holes.zarr", videos=14, folds=2, missing=tuple(range(1, 14, 2)))
    said = refused(tmp_path, "train", "--store", "holes.zarr", *CPU, "--allow-missing")
    assert "fold 1: 0 training and 7 test videos have features" in said


def mounted(script: str, place: Path) -> "subprocess.CompletedProcess[str]":
    """A shell script that may mount disks; skips where that is not allowed."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces")
    command = ["unshare", "-rm", "sh", "-ec", script]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=place)


def finish(place: Path, runs: str) -> Store:
    """Train what ``compare --seeds 1`` and a table of one row need."""
    store = open_store(place / "s.zarr")
    method = load_method("paper", ["optimiser.epochs=1"])
    train_runs(runs_of(method, ["1", "2"], [0]), Records(place / runs, store), "cpu", workers=0)
    return store


ABLATE = "ablate --store s.zarr --set optimiser.epochs=1 --device cpu --vary optimiser.lr=[0.01]"


def test_disks_that_are_full_or_read_only_are_found_before_training(place: Path) -> None:
    (place / "disk").mkdir()
    for options, option, said in (
        ("size=4k", "--runs", "the disk is full"),
        ("ro", "--out", "file system is read-only"),
    ):
        script = f"mount -t tmpfs -o {options} none disk; exec {sys.executable} -m tgdfer {ABLATE}"
        done = mounted(script + f" {option} disk/x", place)
        assert done.returncode == 5, done.stderr
        assert said in done.stderr


def test_finished_runs_on_a_read_only_disk_still_make_tables(place: Path) -> None:
    finish(place, "finished")
    script = "mount --bind finished finished; mount -o remount,ro,bind finished; exec"
    done = mounted(
        f"{script} {sys.executable} -m tgdfer {ABLATE} --runs finished --out made", place
    )
    assert done.returncode == 0, done.stderr
    assert "0 runs trained, 2 already finished" in done.stdout
    assert {path.name for path in (place / "made").iterdir()} == {
        f"ablation.{kind}" for kind in ("md", "csv", "tex", "json")
    }


def test_what_killed_commands_left_is_swept_by_the_next(place: Path) -> None:
    store = finish(place, "swept")
    run = runs_of(load_method("paper", ["optimiser.epochs=1"]), ["1"], [0])[0]
    folder = Records(place / "swept", store).folder(run)
    litter = ["swept/.tmp/" + "a" * 32, f"swept/.locks/{folder.name}", "tables/.tmp/" + "b" * 32]
    litter.append(f"swept/{folder.name}/resume.safetensors")
    for name in litter:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("cut sho")
    done = tgdfer(*ABLATE.split(), "--runs", "swept", "--out", "tables", cwd=place)
    assert done.returncode == 0, done.stderr
    assert not [name for name in litter if (place / name).exists()]
    assert not (place / "tables/.tmp").exists()
    assert (folder / "result.json").is_file()


def test_files_of_others_in_a_folder_for_tables_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp/notes.txt").write_text("mine")
    (tmp_path / ("c" * 32)).write_text("mine")
    write_reports({"a.md": "a"}, tmp_path)
    assert (tmp_path / ".tmp/notes.txt").read_text() == "mine"
    assert (tmp_path / ("c" * 32)).read_text() == "mine"


def test_killed_export_is_overwritten_and_a_running_one_refuses_another(place: Path) -> None:
    (place / ".e.h5.unfinished").write_text("cut sho")
    with locked(place / ".e.h5.unfinished", wait=False):
        assert "another process is writing e.h5" in refused(
            place, "store", "export", "s.zarr", "e.h5"
        )
    assert tgdfer("store", "export", "s.zarr", "e.h5", cwd=place).returncode == 0
    assert sorted(path.name for path in place.glob("*e.h5*")) == ["e.h5"]


def test_features_to_import_are_looked_at_before_faces_are_rendered(place: Path) -> None:
    os.mkfifo(place / "pipe")
    for source in ("nofile.h5", "pipe"):
        said = refused(place, "store", "import", source, "new.zarr")
        assert f"{source} is neither an HDF5 file nor a folder of .npy files" in said


def test_an_archive_that_is_a_device_is_not_waited_for(place: Path) -> None:
    said = refused(place, "store", "verify", "zip://x::/dev/zero")
    assert "/dev/zero is a device, FIFO or socket" in said


def test_scratch_folders_and_outputs_that_are_something_else_are_refused(place: Path) -> None:
    (place / "odd").mkdir()
    (place / "odd/.tmp").write_text("x")
    assert "odd/.tmp is not a folder" in refused(place, "train", *OF_STORE, "--runs", "odd")
    (place / "out/comparison.md").mkdir(parents=True)
    said = refused(place, "compare", *OF_STORE, "--out", "out")
    assert "comparison.md is a folder there" in said
