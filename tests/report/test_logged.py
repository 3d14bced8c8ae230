"""Finished runs as TensorBoard and trackio show them; both read back with their own readers."""

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Run, load_method
from pipeline.report.logged import log_runs, name_of_run
from pipeline.train.record import Record, read_records
from pipeline.train.records import Records
from support.commands import python, script, tgdfer
from support.records import forge, write_record
from support.stores import random_store

needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None,
    reason="no TensorBoard; it is in the extra tgdfer[tensorboard]",
)
needs_trackio = pytest.mark.skipif(
    find_spec("trackio") is None, reason="no trackio; it is in the extra tgdfer[trackio]"
)
METRICS = "epoch,train_loss,test_uar,test_war\n1,1.5,0.25,0.3\n2,0.7,0.5,0.6\n3,0.1,0.4,0.7\n"
DIVERGED = "epoch,train_loss,test_uar,test_war\n1,1.5,0.25,0.3\n2,nan,nan,nan\n"

# Logs the runs below its first argument, until one is written but not yet in its place.
KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.report.logged import log_runs
from pipeline.train.record import read_records

runs, logs = map(Path, sys.argv[1:])
fsync = os.fsync
os.fsync = lambda file: os.kill(os.getpid(), 9) if (logs / ".tmp").exists() else fsync(file)
log_runs("tensorboard", list(read_records(runs)), logs)
"""
TRACKIO = """
import json
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage

runs = Api().runs("tgdfer")
logs = {run.name: SQLiteStorage.get_logs("tgdfer", run.name) for run in runs}
print(json.dumps({run.name: [run.config, logs[run.name]] for run in runs}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two finished runs and one that diverged."""
    folder = tmp_path_factory.mktemp("logged")
    store = random_store(folder / "s.zarr", 14, frames=8, dim=4, folds=2)
    records = Records(folder / "runs", store)
    for seed, diverged in ((0, False), (1, False), (2, True)):
        method = load_method("paper", ["temporal.window=8"] if seed == 1 else [])
        run = Run(method=method, fold="1", seed=seed)
        written = write_record(records, run, np.arange(7), diverged=diverged)
        forge(written, "metrics.csv", (DIVERGED if diverged else METRICS).encode())
    return records.root


def by_seed(runs: Path) -> list[Record]:
    return sorted(read_records(runs), key=lambda record: record.run.seed)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: the values of each tag by their steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def hparams(folder: Path) -> Iterator[tuple[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(found["_hparams_/session_start_info"])
    for name, value in start.session_start_info.hparams.items():
        yield name, getattr(value, value.WhichOneof("kind"))


def curves(record: Record) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.csv, as 32-bit floats."""
    columns = record.epochs()
    steps = columns.pop("epoch").astype(int).tolist()
    return {
        name: list(zip(steps, values.astype(np.float32).tolist(), strict=True))
        for name, values in columns.items()
    }


def test_names_say_the_nearest_preset_what_differs_from_it_and_whose_result_it_is(
    runs: Path,
) -> None:
    first, second, third = by_seed(runs)
    names = [name_of_run(record) for record in (first, second, third)]
    assert [name[:-16] for name in names] == [
        "paper-fold1-seed0-",
        "paper,temporal.window=8-fold1-seed1-",
        "paper-fold1-seed2-",
    ]
    assert [name[-16:-8] for name in names] == [r.folder.name[:8] for r in by_seed(runs)]
    assert len({name[-8:] for name in names}) == 3


@needs_tensorboard
def test_tensorboard_shows_epochs_settings_and_what_is_reported(runs: Path, tmp_path: Path) -> None:
    records = by_seed(runs)
    assert log_runs("tensorboard", records, tmp_path) == 3
    folders = [tmp_path / "tensorboard" / name_of_run(record) for record in records]
    for record, folder in zip(records, folders, strict=True):
        found = scalars(folder)
        reported = {name: found.pop(f"reported_{name}", None) for name in ("uar", "war")}
        np.testing.assert_equal(found, curves(record))
        for name, values in reported.items():
            assert record.result is not None
            expected = [np.float32(record.result[name])] if record.ok else []
            assert [value for _, value in values or []] == expected
    shown = dict(hparams(folders[1]))
    assert (shown["temporal.window"], shown["seed"], shown["fold"]) == (8, 1, "1")
    assert shown["folder"] == str(records[1].folder)
    assert dict(hparams(folders[2]))["status"] == "diverged"


@needs_tensorboard
def test_runs_are_logged_once(runs: Path, tmp_path: Path) -> None:
    records = by_seed(runs)
    assert log_runs("tensorboard", records[:2], tmp_path) == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events*")}
    assert log_runs("tensorboard", records, tmp_path) == 1
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("events*")}.items()
    assert len(os.listdir(tmp_path / "tensorboard")) == 3


@needs_tensorboard
def test_what_a_kill_cut_short_is_no_run_and_is_logged_by_the_next_command(
    runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    done = script(tmp_path / "killed.py", runs, tmp_path / "logs")
    assert done.returncode == -9, done.stderr
    assert os.listdir(tmp_path / "logs/tensorboard") == []
    assert list((tmp_path / "logs/.tmp").glob("events*"))
    assert log_runs("tensorboard", by_seed(runs), tmp_path / "logs") == 3
    assert len(os.listdir(tmp_path / "logs/tensorboard")) == 3
    assert not (tmp_path / "logs/.tmp").exists()


@needs_tensorboard
def test_train_logs_what_it_trained_and_what_was_finished_before(tmp_path: Path) -> None:
    random_store(tmp_path / "s.zarr", 28, frames=4, dim=16, folds=2)
    words = ["train", "--store", "s.zarr", "--set", "optimiser.epochs=2", "--device", "cpu"]
    words += ["--set", "temporal.window=2"]
    alone = tgdfer(*words, "--fold", "1", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert not (tmp_path / "logs").exists()
    both = tgdfer(*words, "--log", "tensorboard", cwd=tmp_path)
    assert "2 runs logged in logs/tensorboard\n" in both.stderr
    assert "next: tensorboard --logdir logs/tensorboard\n" in both.stderr
    for record in read_records(tmp_path / "runs"):
        found, expected = (
            scalars(tmp_path / "logs/tensorboard" / name_of_run(record)),
            curves(record),
        )
        assert {name: found[name] for name in expected} == expected
    again = tgdfer(*words, "--log", "tensorboard", cwd=tmp_path)
    assert "0 runs logged in logs/tensorboard\n" in again.stderr


@needs_trackio
def test_trackio_stores_epochs_settings_and_what_is_reported_once(
    runs: Path, tmp_path: Path
) -> None:
    records = by_seed(runs)
    assert log_runs("trackio", records[:2], tmp_path) == 2
    assert log_runs("trackio", records, tmp_path) == 1
    done = python("-c", TRACKIO, env={"TRACKIO_DIR": str(tmp_path / "trackio")})
    stored = json.loads(done.stdout)
    assert sorted(stored) == sorted(map(name_of_run, records))
    for record in records[:2]:
        config, rows = stored[name_of_run(record)]
        assert config["seed"] == record.run.seed
        assert config["temporal.window"] == record.run.method.temporal.window
        for name, values in record.epochs().items():
            assert [row[name] for row in rows] == values.tolist()
        assert record.result is not None
        assert rows[-1]["reported_war"] == record.result["war"]
