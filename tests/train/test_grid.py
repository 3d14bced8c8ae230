"""Many runs on the cores of this machine: nothing twice, nothing lost."""

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.errors import DamagedError, RefusedError
from cache.store import Store
from pipeline.config import MethodConfig, Run, load_method
from pipeline.train.cost import bytes_of, sizes_of
from pipeline.train.features import load_training_data
from pipeline.train.grid import COUNTED, check_runs, train_runs
from pipeline.train.records import Records
from pipeline.train.residence import feature_bytes
from pipeline.train.stack import train_stack
from pipeline.train.state import RunState
from support.commands import script, tgdfer
from support.forked import forker
from support.stores import random_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=20)


def runs(*settings: str, folds: str = "12") -> list[Run]:
    method = load_method("paper", ["optimiser.epochs=2", *settings])
    return [Run(method=method, fold=fold, seed=0) for fold in folds]


def summary(records: Records, run: Run) -> dict[str, Any]:
    record = records.find(run)
    assert record is not None
    assert record.result is not None
    return record.result


def test_runs_are_trained_once_in_several_processes_and_their_number_changes_no_result(
    store: Store, tmp_path: Path
) -> None:
    wanted = runs() + runs("temporal.fine_depth=0")
    scores = []
    for workers in (2, 0):  # 0: in this process
        done: list[int] = []
        records = Records(tmp_path / str(workers), store)
        train_runs(wanted, records, "cpu", done.append, workers=workers)
        assert sum(done) == 4 * 2
        assert records.pending(wanted) == []
        scores.append([summary(records, run)["war"] for run in wanted])
    assert scores[0] == scores[1]
    more = [*wanted, *runs(folds="3"), *runs(folds="3")]
    assert records.pending(more) == runs(folds="3")
    assert list((records.root / ".locks").iterdir()) == []


CLAIMING = """
import signal, sys
from pathlib import Path
from cache.store import open_store
from pipeline.config import Run, load_method
from pipeline.train.records import Records
run = Run(method=load_method("paper", ["optimiser.epochs=2"]), fold="1", seed=0)
with Records(Path(sys.argv[2]), open_store(sys.argv[1])).claim([run]):
    Path("claimed").touch()
    signal.pause()
"""


def test_runs_of_another_process_are_waited_for_and_taken_over_when_it_dies(
    store: Store, tmp_path: Path
) -> None:
    main, records, (one, two) = tmp_path / "main.py", Records(tmp_path / "runs", store), runs()
    main.write_text(CLAIMING)
    command = list(map(str, (main, store.path, records.root)))
    other = forker().start(command, tmp_path, what="script")
    deadline = time.monotonic() + 60
    while not (tmp_path / "claimed").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    waited: list[int] = []
    seen: list[Run] = []

    def on_wait(count: int) -> None:
        waited.append(count)
        seen.extend(records.pending([one, two]))
        os.kill(other.pid, signal.SIGKILL)

    trained = train_runs([one, two], records, "cpu", workers=0, on_wait=on_wait)
    assert other.wait(60).code == -signal.SIGKILL
    assert (trained, waited, seen) == (2, [1], [one])
    assert records.pending([one, two]) == []
    with records.claim([one]) as mine:
        assert mine == []


def test_stack_that_memory_is_too_small_for_is_cut_before_it_starts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted, sizes = runs(folds="12345"), sizes_of(store)
    each = bytes_of(wanted, sizes)
    room = feature_bytes(store) + (sizes.tower_bytes + 2.5 * each) / COUNTED
    trained: list[int] = []
    for free in (1 << 60, int(room)):
        monkeypatch.setattr("pipeline.train.grid.available_bytes", lambda free=free: free)
        records = Records(tmp_path / str(free), store)
        train_runs(wanted, records, "cpu", trained.append, workers=0)
        assert records.pending(wanted) == []
    assert trained == [5, 5, 2, 2, 2, 2, 1, 1]
    said = capfd.readouterr().err
    assert said.count("trained") == said.count("5 runs of about 0.00 GiB each") == 1
    assert "trained 2 at a time" in said


def test_same_seed_and_threads_leave_the_same_files_bit_for_bit(
    store: Store, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "other"):
        records = Records(tmp_path / name, store)
        train_runs(runs(), records, "cpu", workers=0)
        digests.append([summary(records, run)["sha256"] for run in runs()])
    assert "checkpoint.safetensors" in digests[0][0]
    assert digests[0] == digests[1]


def test_store_that_a_process_finds_damaged_is_refused_with_the_reason(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=20)
    chunk = store.path / "features/c.0.1.0.0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(DamagedError, match=r"c\.0\.1\.0\.0 is damaged"):
        train_runs(runs(), Records(tmp_path / "runs", store), "cpu", workers=1)


def test_store_other_than_asked_for_is_refused_with_the_fields_side_by_side(store: Store) -> None:
    same = [
        "store.encoder=random",
        f"store.weights_sha256={store.identity.encoder.weights_sha256}",
        "store.frames=16",
    ]
    check_runs(runs(*same), store)
    with pytest.raises(RefusedError) as refused:
        check_runs(runs(*same, "store.encoder=ViT-B-32", "store.frames=8"), store)
    lines = [line.split() for line in str(refused.value).splitlines()]
    assert ["encoder.name", "random", "ViT-B-32"] in lines
    assert ["frames", "16", "8"] in lines
    assert len(lines) == 5


def test_run_whose_state_does_not_fit_or_is_damaged_is_named_and_begins_again(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = runs("optimiser.epochs=3")
    whole, data = Records(tmp_path / "whole", store), load_training_data(store, torch.device("cpu"))
    saved: list[RunState] = []
    for run in (other, first):
        outcomes = train_stack(data, [run], keep=lambda stack: saved.append(stack.state(0)))
        whole.write(outcomes[0], seconds=1)
    state, ended = saved[0], saved[2]
    unfit = {
        "another network": replace(state, parameters={"w": torch.zeros(3)}),
        "another type": replace(state, moments=_doubled(state.moments)),
        "other metrics": replace(state, epochs=[{"epoch": 1, "train_loss": 0.0}]),
        "no reported epoch": replace(ended, best=-1, selected=None),
        "too many epochs": replace(ended, epochs=[*ended.epochs, ended.epochs[0] | {"epoch": 4}]),
    }
    for name, forged in unfit.items():
        records = Records(tmp_path / name, store)
        records.write_state(other, forged)
        train_runs([other], records, "cpu", workers=0)
        said = capfd.readouterr().err
        assert said.count("fold 2, seed 0 does not fit it: the epochs that it held are lost") == 1
        assert summary(records, other)["sha256"] == summary(whole, other)["sha256"], name
    records = Records(tmp_path / "damaged", store)
    records.write_state(other, state)
    records.write_state(first, saved[3])
    file = records.folder(first) / "resume.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert (records.epochs_done(first), records.epochs_kept(first)) == (1, 0)
    done: list[int] = []
    train_runs([first, other], records, "cpu", done.append, workers=0)
    assert done == [1] * 6  # the other resumed, and both were trained alone
    assert f"the state of {records.folder(first)} is damaged" in capfd.readouterr().err
    for run in (first, other):
        assert summary(records, run)["sha256"] == summary(whole, run)["sha256"]


def _doubled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


SCRIPT = """
import sys
from pathlib import Path
from cache.store import open_store
from pipeline.config import Run, load_method
from pipeline.interrupt import StoppedError
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
def runs(*settings, folds="12"):
    method = load_method("paper", ["optimiser.epochs=2", *settings])
    return [Run(method=method, fold=fold, seed=0) for fold in folds]
records = Records(Path(sys.argv[2]), open_store(sys.argv[1]))
wanted = runs(folds="1") + runs(*LONG, folds="23")
try:
    train_runs(wanted, records, "cpu", print, workers=1, keep_seconds=0)
except StoppedError as error:
    sys.exit(128 + error.signal)
"""
LONG = ["optimiser.epochs=30", "selection.rule=best_on_test"]


@pytest.fixture(scope="module")
def training(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Records]:
    """A script that trains a short run and two long ones, and what it leaves."""
    main = tmp_path_factory.mktemp("training") / "main.py"
    main.write_text(SCRIPT.replace("*LONG", f"*{LONG}"))
    whole = Records(main.parent / "whole", store)
    done = script(main, store.path, whole.root)
    assert done.returncode == 0, done.stderr
    return main, whole


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_training_is_resumed_and_leaves_the_same_files(
    store: Store, training: tuple[Path, Records], tmp_path: Path, number: signal.Signals
) -> None:
    (main, whole), records = training, Records(tmp_path / "runs", store)
    command = list(map(str, (main, store.path, records.root)))
    started = forker().start(command, tmp_path, workers="fork", what="script")
    short, long = runs(folds="1"), runs(*LONG, folds="23")
    deadline = time.monotonic() + 120
    while records.epochs_done(long[1]) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, number)
    ended = started.wait(60)
    if number == signal.SIGINT:
        assert ended.code == 130, ended.stderr
        assert "finishing the current epoch" in ended.stderr
        assert "Traceback" not in ended.stderr
    begun = records.epochs_done(long[1])
    assert 5 <= begun < 30
    assert records.pending(short + long) == short + long
    # A kill between two runs' states leaves them an epoch apart; they then resume as two stacks.
    same = records.epochs_done(long[0]) == begun
    assert same or number == signal.SIGKILL
    resumed = script(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split().count(str(2 * begun)) == same
    assert not list(records.root.glob("*/resume.safetensors"))
    for run in short + (long if same else []):
        assert summary(records, run)["sha256"] == summary(whole, run)["sha256"]


KILLING = """
import os, signal, sys
from pathlib import Path
from cache.store import open_store
from pipeline.config import load_method, runs_of
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
def kill(_):
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
wanted = runs_of(load_method("paper", ["optimiser.epochs=500"]), "12", [0])
train_runs(wanted, Records(Path("runs"), open_store(sys.argv[1])), "cpu", kill, workers=1)
"""


def test_death_of_a_training_process_is_reported_with_the_remedy(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(KILLING)
    done = tgdfer(tmp_path / "main.py", store.path, cwd=tmp_path, what="script")
    assert done.returncode == 1
    died = (
        r"TaskError: .*stack 1 of 1 \(fold 1, seed 0 and 1 more\): a worker process died .* again"
    )
    assert re.search(died, done.stderr), done.stderr


def test_what_a_store_cannot_train_is_refused_before_training(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"no fold 9; it has 1, 2, 3, 4, 5"):
        check_runs([Run(method=MethodConfig(), fold="9", seed=0)], store)
    with pytest.raises(RefusedError, match=r"do not cover 16 frames"):
        check_runs(runs("temporal.window=5", "temporal.stride=2"), store)
    with pytest.raises(RefusedError, match=r"input\.frames=17 is more than the 16 .*--frames 17"):
        check_runs(runs("input.frames=17"), store)
    for wrong in ("temporal.coarse_keys=9", "label.pooling=top_k"):
        with pytest.raises(RefusedError, match=r"=9 is more than the 8 frames"):
            check_runs(runs("input.frames=8", "label.top_k=9", wrong), store)
    with pytest.raises(RefusedError, match=r"head_size=3 does not divide 16"):
        check_runs(runs("temporal.head_size=3"), store)
    with pytest.raises(RefusedError, match=r"leaves 48 of .*context_length=64; choose"):
        check_runs(runs("prompts.context_length=64", "prompts.fine_text=descriptors"), store)
    for kind in ("grace", "cliper"):  # whose texts are shorter
        short = ("prompts.context_length=64", "prompts.fine_text=descriptors", f"head.kind={kind}")
        check_runs(runs(*short), store)
    broken = random_store(tmp_path / "m.zarr", videos=20, missing=(3, 4))
    with pytest.raises(RefusedError, match=r"2 of 20 videos .*00003: 0 bytes.*--allow-missing"):
        check_runs(runs(), broken)
    check_runs(runs(), broken, allow_missing=True)


def test_rule_that_needs_more_videos_than_there_are_is_refused_before_training(
    store: Store,
) -> None:
    rule = ["selection.rule=best_on_val", "selection.validation_share=0.05"]
    with pytest.raises(RefusedError, match=r"no class has the 20 training videos"):
        check_runs(runs(*rule), store)


def test_what_killed_processes_left_is_swept_but_nothing_of_a_running_one(
    store: Store, tmp_path: Path
) -> None:
    records, (one, two) = Records(tmp_path, store), runs()
    train_runs([two], records, "cpu", workers=0)
    (tmp_path / ".tmp" / "0123456789abcdef0123456789abcdef").write_bytes(b"cut sho")
    (records.folder(two) / "resume.safetensors").write_bytes(b"older")
    records.folder(one).mkdir()
    (records.folder(one) / "resume.safetensors").write_bytes(b"state")
    (tmp_path / ".locks" / "deaddeaddeaddead").touch()
    with records.claim([one]):
        records.sweep()
        assert [path.name for path in (tmp_path / ".locks").iterdir()] == [records.folder(one).name]
    assert list((tmp_path / ".tmp").iterdir()) == []
    assert list(tmp_path.glob("*/resume.safetensors")) == [
        records.folder(one) / "resume.safetensors"
    ]


def test_missing_videos_are_left_out_and_counted(tmp_path: Path) -> None:
    store = random_store(tmp_path / "m.zarr", videos=20, missing=(0, 3))
    (run,) = runs(folds="1")
    records = Records(tmp_path / "runs", store)
    train_runs([run], records, "cpu", workers=0)
    result = summary(records, run)
    assert (result["train_videos"], result["test_videos"]) == (15, 3)
    assert '"missing_videos": 2' in (records.folder(run) / "run.json").read_text()


def test_more_training_views_than_the_store_has_are_refused(store: Store) -> None:
    check_runs(runs("optimiser.views=1"), store)
    with pytest.raises(RefusedError, match=r"has 1 augmented views.*tgdfer extract --views 3"):
        check_runs(runs("optimiser.views=2"), store)
