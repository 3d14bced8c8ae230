"""Many runs on the cores of this machine: nothing twice, nothing lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from material import random_store

from cache.errors import DamagedError, RefusedError
from cache.store import Store
from pipeline.train.config import MethodConfig, Run, load_method
from pipeline.train.grid import (
    Place,
    check_runs,
    pending_runs,
    stacks_of,
    train_runs,
)
from pipeline.train.records import read_result, run_folder


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


def test_killed_training_keeps_what_was_finished_and_goes_on(store: Store, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; import sys; sys.path.insert(0, sys.argv[3])\n"
        "if __name__ == '__main__':\n"
        "    from test_grid import runs\n"
        "    from pipeline.train.grid import Place, train_runs\n"
        "    wanted = runs(folds='1') + runs('optimiser.epochs=4000', folds='2')\n"
        "    train_runs(wanted, Place(Path(sys.argv[1]), Path(sys.argv[2]), 'cpu'), workers=2)\n"
    )
    main = tmp_path / "main.py"
    main.write_text(script)
    command = [sys.executable, str(main), str(store.path), str(tmp_path / "runs")]
    process = subprocess.Popen([*command, str(Path(__file__).parent)], start_new_session=True)
    short = runs(folds="1")
    deadline = time.monotonic() + 120
    while pending_runs(short, store, tmp_path / "runs") and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert pending_runs(short, store, tmp_path / "runs") == []
    long = runs("optimiser.epochs=4000", folds="2")
    assert pending_runs(long, store, tmp_path / "runs") == long


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


def test_stacks_hold_one_method_and_costly_ones_come_first() -> None:
    wanted = runs(folds="123") + runs("temporal.coarse_depth=7", folds="12")
    stacks = stacks_of(wanted, 2, frames=16)
    assert [len(stack) for stack in stacks] == [2, 2, 1]
    assert stacks[0][0].method.temporal.coarse_depth == 7
    assert all(len({run.method for run in stack}) == 1 for stack in stacks)


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
