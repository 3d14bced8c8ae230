"""``tgdfer runs``: listing, showing and removing runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cache.store import open_store
from pipeline.config import load_method, runs_of
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from pipeline.train.watched import read_watched, watched
from support.commands import tgdfer
from support.markdown import tight
from support.stores import random_store


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of this code, one of other code, and one that was interrupted."""
    folder = tmp_path_factory.mktemp("runs")
    records = Records(folder / "runs", random_store(folder / "s.zarr", videos=14, folds=2))
    for window in (2, 4):
        method = load_method("paper", ["optimiser.epochs=1", f"temporal.window={window}"])
        train_runs(runs_of(method, ["1"], [0]), records, "cpu", workers=0)
    (other,) = runs_of(load_method("paper", ["optimiser.epochs=1", "optimiser.lr=0.5"]), ["2"], [3])
    edited = replace(records, code_files={**records.code_files, "model/bag.py": "edited"})
    train_runs([other], edited, "cpu", workers=0)
    unfinished = next(path for path in records.root.iterdir() if path.name == _named(records, 4))
    (unfinished / "result.json").unlink()
    return folder


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "place"))


def _named(records: Records, window: int) -> str:
    method = load_method("paper", ["optimiser.epochs=1", f"temporal.window={window}"])
    return records.folder(*runs_of(method, ["1"], [0])).name


def test_runs_are_listed_with_their_settings_scores_and_code(place: Path) -> None:
    done = tgdfer("runs", cwd=place)
    assert done.returncode == 0, done.stderr
    head, *lines, last = done.stdout.splitlines()
    assert head.split() == [
        *("run", "data", "fold", "seed", "UAR", "%", "WAR", "%", "code"),
        *("optimiser.lr", "temporal.window"),
    ]
    assert [line.split()[-2:] for line in lines].count(["0.5", "4"]) == 1
    assert sum("unfinished" in line for line in lines) == 1
    assert sum("this" in line for line in lines) == 2
    assert last == "3 runs, 1 of them made by other code."
    assert "next: tgdfer runs prune --other-code --dry-run" in done.stderr
    rows = json.loads(tgdfer("runs", "list", "--json", cwd=place).stdout)
    assert {row["optimiser.lr"] for row in rows} == {0.01, 0.5}


def test_run_is_found_by_the_start_of_its_name(place: Path) -> None:
    name = next(path.name for path in (place / "runs").iterdir() if path.name[0] != ".")
    done = tgdfer("runs", "show", name[:12], cwd=place)
    assert "method.temporal.fine_depth" in done.stdout
    assert "version of torch" in done.stdout
    wrong = tgdfer("runs", "show", name[:-1] + "x", cwd=place)
    assert (wrong.returncode, f"did you mean {name}?" in wrong.stderr) == (2, True)
    empty = tgdfer("runs", "list", "--runs", "none", cwd=place)
    assert (empty.returncode, "no runs in none" in empty.stderr) == (2, True)


def test_prune_removes_the_chosen_kinds_and_nothing_else(place: Path) -> None:
    runs = place / "runs"
    before = sorted(path.name for path in runs.glob("?" * 16))
    dry = tgdfer("runs", "prune", "--other-code", "--unfinished", "--dry-run", cwd=place)
    assert "2 runs to remove" in dry.stdout
    for refused in (["prune"], ["prune", "--unfinished"]):
        done = tgdfer("runs", *refused, cwd=place)
        assert done.returncode == 2, done.stdout
    assert sorted(path.name for path in runs.glob("?" * 16)) == before
    (other,) = [
        path for path in runs.glob("?" * 16) if '"edited"' in (path / "run.json").read_text()
    ]
    (other / "notes.txt").write_text("mine")
    done = tgdfer("runs", "prune", "--other-code", "--unfinished", "--yes", cwd=place)
    assert "1 run removed" in done.stdout
    assert "left alone, since it holds other files" in done.stdout
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    assert len(list(runs.glob("?" * 16))) == 2
    assert list((runs / ".locks").iterdir()) == []


def test_damaged_run_is_listed_shown_and_removed_when_asked(place: Path) -> None:
    (folder,) = (
        path
        for path in (place / "runs").glob("?" * 16)
        if "edited" in (path / "run.json").read_text()
    )
    (folder / "result.json").write_text('{"status": "done\x1b"')
    listed = tgdfer("runs", "--runs", "runs", cwd=place)
    assert listed.returncode == 0
    assert sum("damaged" in line for line in listed.stdout.splitlines()) == 1
    assert f"damaged: runs/{folder.name}/result.json is damaged: JSON" in listed.stderr
    assert "next: tgdfer runs prune --damaged --dry-run" in listed.stderr
    shown = tgdfer("runs", "show", folder.name, cwd=place)
    assert "result.json is damaged" in shown.stdout
    assert "\x1b" not in listed.stdout + listed.stderr + shown.stdout
    pruned = tgdfer("runs", "prune", "--damaged", "--yes", cwd=place)
    assert f"runs/{folder.name}: damaged" in pruned.stdout
    assert not folder.exists()
    assert len(list((place / "runs").glob("?" * 16))) == 2


@pytest.mark.slow
def test_commands_leave_damaged_runs_as_they_are_and_end_with_code_3(place: Path) -> None:
    window = ["--set", "optimiser.epochs=1", "--store", "s.zarr"]
    odd = ["--runs", "x[/b]\x1b[31m"]
    first = tgdfer("train", *window, *odd, cwd=place)
    assert first.returncode == 0, first.stderr
    root = place / odd[1]
    folder = sorted(root.glob("?" * 16))[0]
    whole = (folder / "predictions.csv").read_bytes()
    (folder / "predictions.csv").write_bytes(whole[:60])
    train = tgdfer("train", *window, *odd, cwd=place)
    ablate = tgdfer("ablate", "--vary", "optimiser.lr=[0.01]", *window, *odd, cwd=place)
    compare = tgdfer("compare", "--seeds", "1", *window, *odd, cwd=place)
    for done in (train, ablate, compare):
        assert done.returncode == 3, done.stderr
        assert rf"x[/b]\x1b[31m/{folder.name}/predictions.csv is damaged" in done.stderr
        assert "1 damaged run left as found; train again with --retrain-damaged" in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
    assert "0 runs trained, 1 already finished." in train.stdout
    assert "| 1 of 2, 1 damaged | – |" in tight(ablate.stdout)
    assert "| TG-DFER (1 of 2, 1 damaged) |" in tight(compare.stdout)
    assert (folder / "predictions.csv").read_bytes() == whole[:60]
    again = tgdfer("train", *window, *odd, "--retrain-damaged", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "1 run trained, 1 already finished." in again.stdout
    assert len(list(root.glob("?" * 16))) == 2
    assert (folder / "predictions.csv").read_bytes().count(b"\n") == whole.count(b"\n")


def test_watch_shows_what_another_command_trains_and_forgets_killed_ones(
    place: Path,
) -> None:
    root = place / "runs"
    records = Records(root, open_store(str(place / "s.zarr")))
    wanted = [
        *runs_of(load_method("paper", ["optimiser.epochs=1"]), ["1"], [0]),
        *runs_of(load_method("paper", ["optimiser.epochs=1"]), ["2"], [0, 1]),
        *runs_of(load_method("paper", ["optimiser.epochs=1", "temporal.window=2"]), ["1"], [0]),
    ]
    quiet = tgdfer("runs", "watch", cwd=place)
    assert quiet.stderr.startswith("nothing is trained in runs now\nnext: tgdfer runs")
    with watched(records, wanted), records.claim([wanted[1]]):
        lines = tgdfer("runs", "watch", cwd=place).stdout.splitlines()
        shown = [line.split() for line in lines]
        assert ["settings", "1", "2"] in shown
        assert ["base", ".", ">."] in shown
        assert ["temporal.window=2", "#"] in shown
        assert any(line.startswith("4 runs: 1 finished, 1 running, 2 waiting") for line in lines)
        (file,) = (root / ".watched").iterdir()
        left = file.with_name(f"{'ab' * 8}.json")
        left.write_bytes(file.read_bytes())  # a copy that nobody holds
        assert len(read_watched(root)) == 1
        assert not left.exists()
    assert list((root / ".watched").iterdir()) == []
    assert read_watched(root) == []
