"""Many runs on the cores of this machine: nothing twice, nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cache.errors import DamagedError, RefusedError
from cache.store import Store
from pipeline.config import MethodConfig, Run, load_method
from pipeline.train.grid import (
    Place,
    check_runs,
    pending_runs,
    stacks_of,
    train_runs,
)
from pipeline.train.records import read_result, run_folder, source_digest
from pipeline.train.stack import RunState
from pipeline.train.state import begun_epochs, read_state, write_state
from support.stores import random_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=20)


def runs(*settings: str, folds: str = "12") -> list[Run]:
    method = load_method("paper", ["optimiser.epochs=2", *settings])
    return [Run(method=method, fold=fold, seed=0) for fold in folds]


def test_runs_are_trained_once_in_several_processes(store: Store, tmp_path: Path) -> None:
    wanted = runs() + runs("temporal.fine_depth=0")
    done: list[int] = []
    train_runs(wanted, Place(store.path, tmp_path, "cpu"), done.append, workers=2)
    assert sum(done) == 4 * 2
    assert pending_runs(wanted, store, tmp_path) == []
    more = [*wanted, *runs(folds="3"), *runs(folds="3")]
    assert pending_runs(more, store, tmp_path) == runs(folds="3")


def test_number_of_processes_does_not_change_the_result(store: Store, tmp_path: Path) -> None:
    digests = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        train_runs(runs(), Place(store.path, root, "cpu"), workers=workers)
        results = [read_result(root, run, store) for run in runs()]
        digests.append([result.summary["war"] for result in results if result])
    assert digests[0] == digests[1]


def test_same_seed_and_threads_leave_the_same_files_bit_for_bit(
    store: Store, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "other"):
        root = tmp_path / name
        train_runs(runs(), Place(store.path, root, "cpu"), workers=1)
        results = [read_result(root, run, store) for run in runs()]
        digests.append([result.summary["sha256"] for result in results if result])
    assert "checkpoint.safetensors" in digests[0][0]
    assert digests[0] == digests[1]


def test_store_that_a_process_finds_damaged_is_refused_with_the_reason(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=20)
    chunk = store.path / "features/c.0.1.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(DamagedError, match=r"c\.0\.1\.0\.0 is damaged"):
        train_runs(runs(), Place(store.path, tmp_path / "runs", "cpu"), workers=2)


def test_store_that_is_not_as_asked_for_is_refused_side_by_side(store: Store) -> None:
    pixels = store.identity.preprocessing
    same = [
        "store.encoder=random",
        f"store.weights_sha256={store.identity.encoder.weights_sha256}",
        f"store.size_px={pixels.size_px}",
        f"store.mean={list(pixels.mean)}",
        "store.frames=16",
    ]
    check_runs(runs(*same), store)
    with pytest.raises(RefusedError) as refused:
        check_runs(runs(*same, "store.encoder=ViT-B-32", "store.size_px=224"), store)
    lines = [line.split() for line in str(refused.value).splitlines()]
    assert ["encoder.name", "random", "ViT-B-32"] in lines
    assert ["preprocessing.size_px", "32", "224"] in lines
    assert len(lines) == 5
    with pytest.raises(RefusedError, match=r"interpolation +bicubic +bilinear"):
        check_runs(runs("store.interpolation=bilinear"), store)


def test_asking_for_a_store_does_not_change_a_run(store: Store) -> None:
    (one, _), (other, _) = runs(), runs("store.encoder=random")
    assert one != other
    assert one.digest(store.digest, "1") == other.digest(store.digest, "1")


KILLED = """
import sys
from pathlib import Path
if __name__ == "__main__":
    from pipeline.config import Run, load_method
    def runs(*settings, folds="12"):
        method = load_method("paper", ["optimiser.epochs=2", *settings])
        return [Run(method=method, fold=fold, seed=0) for fold in folds]
    from pipeline.train.grid import Place, train_runs
    place = Place(Path(sys.argv[1]), Path(sys.argv[2]), "cpu", keep_seconds=0)
    wanted = runs(folds="1") + runs(*LONG, folds="23")
    train_runs(wanted, place, workers=1)
"""
LONG = ["optimiser.epochs=30", "selection.rule=best_on_test"]


def test_killed_training_keeps_what_was_done_and_goes_on_to_the_same_files(
    store: Store, tmp_path: Path
) -> None:
    main, root = tmp_path / "main.py", tmp_path / "runs"
    main.write_text(KILLED.replace("*LONG", f"*{LONG}"))
    command = [sys.executable, str(main), str(store.path), str(root)]
    process = subprocess.Popen(command, start_new_session=True)
    short, long = runs(folds="1"), runs(*LONG, folds="23")
    folders = [run_folder(root, run, store) for run in long]
    deadline = time.monotonic() + 120
    while begun_epochs(folders[1]) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    begun = begun_epochs(folders[1])
    assert 5 <= begun < 30
    assert pending_runs(short + long, store, root) == short + long
    # A kill between the two runs' states leaves them an epoch apart: then they go on as two stacks.
    same = begun_epochs(folders[0]) == begun
    done: list[int] = []
    train_runs(short + long, Place(store.path, root, "cpu"), done.append, workers=1)
    assert done.count(2 * begun) == same
    assert not list(root.glob("*/resume.safetensors"))
    train_runs(short + long, Place(store.path, tmp_path / "whole", "cpu"), workers=1)
    for run in short + (long if same else []):
        results = [read_result(place, run, store) for place in (root, tmp_path / "whole")]
        assert results[0].summary["sha256"] == results[1].summary["sha256"]  # type: ignore[union-attr]


def test_state_that_is_torn_changed_or_of_other_code_is_not_gone_on_from(tmp_path: Path) -> None:
    state = RunState(7, {"parameter/a": torch.arange(3.0)}, {"best": -1})
    assert read_state(tmp_path) is None
    write_state(tmp_path, state, tmp_path / ".tmp")
    again = read_state(tmp_path)
    assert again is not None
    assert (again.epoch, again.facts, begun_epochs(tmp_path)) == (7, {"best": -1}, 7)
    assert torch.equal(again.tensors["parameter/a"], torch.arange(3.0))
    file = tmp_path / "resume.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read_state(tmp_path) is None
    for damaged in (
        whole[:-5],
        whole[:20],
        b"",
        whole.replace(source_digest().encode(), b"0" * 64),
    ):
        file.write_bytes(damaged)
        assert read_state(tmp_path) is None
        assert begun_epochs(tmp_path) == 0


def test_death_of_a_training_process_is_reported_with_the_remedy(
    store: Store, tmp_path: Path
) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")

    def kill(_: int) -> None:
        for child in children.read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command:
                os.kill(int(child), signal.SIGKILL)

    place, long = Place(store.path, tmp_path, "cpu"), runs("optimiser.epochs=500")
    with pytest.raises(RuntimeError, match=r"a training process died.*run the same command again"):
        train_runs(long, place, kill, workers=1)


def test_stacks_share_their_shapes_and_costly_ones_come_first() -> None:
    wanted = runs(folds="123") + runs("temporal.coarse_depth=7", folds="12")
    stacks = stacks_of(wanted, 2, frames=16)
    assert [len(stack) for stack in stacks] == [2, 2, 1]
    assert stacks[0][0].method.temporal.coarse_depth == 7
    assert all(len({run.method for run in stack}) == 1 for stack in stacks)


def test_stacks_hold_whatever_shapes_no_program_and_has_come_as_far() -> None:
    wanted = runs("optimiser.lr=0.1") + runs("label.top_k=3") + runs("optimiser.views=2")
    stacks = stacks_of(wanted, 10, frames=16)
    assert sorted(len(stack) for stack in stacks) == [2, 4]
    ahead = stacks_of(wanted, 10, frames=16, begun=lambda run: int(run.fold == "2"))
    assert sorted(len(stack) for stack in ahead) == [1, 1, 2, 2]


def test_what_a_store_cannot_train_is_refused_before_training(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"no fold 9; it has 1, 2, 3, 4, 5"):
        check_runs([Run(method=MethodConfig(), fold="9", seed=0)], store)
    with pytest.raises(RefusedError, match=r"do not cover 16 frames"):
        check_runs(runs("temporal.window=5", "temporal.stride=2"), store)
    with pytest.raises(RefusedError, match=r"head_size=3 does not divide 16"):
        check_runs(runs("temporal.head_size=3"), store)
    broken = random_store(tmp_path / "m.zarr", videos=20, missing=(3, 4))
    with pytest.raises(RefusedError, match=r"2 of 20 videos .*00003: 0 bytes.*--allow-missing"):
        check_runs(runs(), broken)
    check_runs(runs(), broken, allow_missing=True)


def test_missing_videos_are_left_out_and_counted(tmp_path: Path) -> None:
    store = random_store(tmp_path / "m.zarr", videos=20, missing=(0, 3))
    train_runs(runs(folds="1"), Place(store.path, tmp_path / "runs", "cpu"))
    (run,) = runs(folds="1")
    result = read_result(tmp_path / "runs", run, store)
    assert result is not None
    assert (result.summary["train_videos"], result.summary["test_videos"]) == (15, 3)
    record = (run_folder(tmp_path / "runs", run, store) / "run.json").read_text()
    assert '"missing_videos": 2' in record


def test_more_training_views_than_the_store_has_are_refused(store: Store) -> None:
    check_runs(runs("optimiser.views=1"), store)
    with pytest.raises(RefusedError, match=r"has 1 augmented views.*tgdfer extract --views 3"):
        check_runs(runs("optimiser.views=2"), store)
