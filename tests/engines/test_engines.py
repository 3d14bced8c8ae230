"""What every engine promises, on real processes, a real SLURM and a real Ray."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cache.errors import StorageError
from pipeline.config import Run, load_method
from pipeline.datasets.videos import VideoList
from pipeline.encoders.clip import EncoderFiles, find_encoder
from pipeline.engines.choose import EngineChoice, Name
from pipeline.engines.task import Engine, Task, TaskError, results
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from pipeline.extract.shards import extract_by
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from support.commands import environment
from support.labour import die_once, keep, named, tasks, wait_once
from support.mounts import can_mount, full_disk
from support.sources import listed, write_encoder, write_list
from support.stores import random_store
from support.tiny import store_bytes

if TYPE_CHECKING:
    from support.ray import Cluster as RayCluster
    from support.slurm import Cluster as SlurmCluster

    AnyCluster = RayCluster | SlurmCluster

pytestmark = pytest.mark.slow
SETTINGS = ExtractSettings(views=2, batch_frames=64, device="cpu", workers=1)
METHOD = load_method("paper", ["optimiser.epochs=2"])
RUNS = [Run(method=METHOD, fold=fold, seed=0) for fold in "12"]


class TwoAtOnce(EngineChoice):
    """Two processes also for what one would do, as if this machine had two GPUs."""

    def at_once(self, place: str) -> int:
        return 2


@pytest.fixture(params=["local", "slurm", "ray"])
def name(request: pytest.FixtureRequest) -> Name:
    """The name of an engine, which is running."""
    name: Name = request.param
    if name != "local":
        request.getfixturevalue(name)
    return name


@pytest.fixture(params=["slurm", "ray"])
def cluster(request: pytest.FixtureRequest) -> "AnyCluster":
    """A cluster, whose nodes can be lost."""
    found: AnyCluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def choice(name: Name) -> EngineChoice:
    return TwoAtOnce("local") if name == "local" else EngineChoice(name, None, {"tasks": "2"})


@pytest.fixture
def engine(name: Name, tmp_path: Path) -> Engine:
    return named(name, tmp_path / "engine")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder in which tasks note the processes that have begun them."""
    folder = tmp_path / "begun"
    folder.mkdir()
    return folder


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Two runs, trained one after the other in this process."""
    folder = tmp_path_factory.mktemp("one")
    records = Records(folder / "runs", random_store(folder / "s.zarr", videos=20))
    for run in RUNS:
        train_runs([run], records, "cpu", workers=0)
    return records


def test_networks_and_predictions_are_those_of_one_process(
    choice: EngineChoice, one_by_one: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.grid.usable_cores", lambda: 2)
    records = Records(tmp_path, one_by_one.store)
    done: list[int] = []
    assert train_runs(RUNS, records, "cpu", done.append, engine=choice) == 2
    assert sum(done) == 4
    for run in RUNS:
        for file in ("checkpoint.safetensors", "predictions.csv", "metrics.csv"):
            ours, theirs = records.folder(run) / file, one_by_one.folder(run) / file
            assert ours.read_bytes() == theirs.read_bytes()


@dataclass(frozen=True)
class Extracted:
    """Twenty videos, an encoder, and the store that one process makes of them."""

    videos: VideoList
    encoder: EncoderFiles
    store: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "videos").mkdir()
    write_list(folder / "videos", 20)
    write_encoder(folder / "encoder")
    found = listed(folder), find_encoder(f"local-dir:{folder / 'encoder'}")
    extract(found[0], folder / "s.zarr", found[1], SETTINGS)
    return Extracted(*found, folder / "s.zarr")


def test_store_is_that_of_one_process(
    choice: EngineChoice, whole: Extracted, tmp_path: Path
) -> None:
    wanted = whole.videos, tmp_path / "s.zarr", whole.encoder, SETTINGS
    shown: list[tuple[int, int]] = []
    done = extract_by(choice, *wanted, lambda p: shown.append((p.videos, p.total)))
    assert (done.progress.videos, shown[-1]) == (20, (20, 20))
    assert store_bytes(tmp_path / "s.zarr") == store_bytes(whole.store)
    again = extract_by(choice, *wanted)
    assert (again.digest, again.progress.videos) == (done.digest, 0)


def test_task_whose_process_is_killed_is_begun_again(engine: Engine, begun: Path) -> None:
    done: list[int] = []
    task = Task("killed", partial(die_once, begun))
    assert results(engine, [task], done.append) == ["done"]
    assert sum(done) == 2


def test_task_that_fails_is_named_and_the_others_are_done(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []
    with pytest.raises(TaskError, match=r"^1 of 3 tasks failed, .*; fail: KeyError: 'lost'; run"):
        results(engine, tasks("fail", "a", "b"), done.append)
    assert sum(done) == 3
    assert "failed: fail: Traceback" in capfd.readouterr().err


def test_interrupt_leaves_nothing_at_work(
    name: Name, begun: Path, request: pytest.FixtureRequest
) -> None:
    command = [sys.executable, "-m", "support.labour", str(begun), name]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    until(lambda: len(list(begun.iterdir())) == 2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    workers = [int(path.name) for path in begun.iterdir()]
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    if name == "slurm":
        cluster: SlurmCluster = request.getfixturevalue("slurm")
        until(lambda: cluster.queue() == [])
    else:
        assert list(begun.parent.iterdir()) == [begun]


def test_task_whose_node_is_lost_is_begun_again(
    cluster: "AnyCluster", begun: Path, tmp_path: Path
) -> None:
    lost: list[Any] = []

    def lose(_: int) -> None:
        (process,) = (int(path.suffix[1:]) for path in begun.iterdir())
        lost.append(cluster.node_of(process))
        cluster.lose(lost[0])

    task = Task("waiting", partial(wait_once, begun))
    try:
        assert results(named(cluster.engine, tmp_path / "engine"), [task], lose) == ["done"]
    finally:
        (begun / "end").touch()
        cluster.revive(*lost)


def test_full_disk_of_one_node_is_named_and_what_the_others_did_is_kept(
    cluster: "AnyCluster", begun: Path, tmp_path: Path
) -> None:
    if not can_mount():
        pytest.skip("mounting is not allowed here")
    (scratch := begun / "kept" / ".tmp").mkdir(parents=True)
    nodes, engine = cluster.daemons_of_nodes(), named(cluster.engine, tmp_path / "engine")
    work = [Task(word, partial(keep, begun, word, len(nodes))) for word in "abc"[: len(nodes)]]
    full = f"cannot write {scratch}: the disk is full; free some space and run the same command"
    with full_disk(nodes[0], scratch), pytest.raises(StorageError, match=full):
        results(engine, work)
    kept = {path: path.stat().st_mtime_ns for path in begun.glob("kept/?")}
    assert 0 < len(kept) < len(nodes)
    assert results(engine, work).count(True) == len(nodes) - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_job_that_reaches_its_time_limit_is_begun_again(
    slurm: "SlurmCluster", begun: Path, tmp_path: Path
) -> None:
    def end(_: int) -> None:
        job = slurm.queue()[0].split()[2]
        slurm.ask("scancel", "--signal=USR2", job)  # as SLURM does before the time is over

    task = Task("waiting", partial(wait_once, begun))
    try:
        assert results(named("slurm", tmp_path / "engine"), [task], end) == ["done"]
    finally:
        (begun / "end").touch()
