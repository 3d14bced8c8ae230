"""Fixtures of several tests, where kernels run, and what ``--fast`` leaves out."""

import multiprocessing.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from support import ray as ray_cluster
    from support.slurm import Cluster
    from support.trained import Trained

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks once, when it is first imported

# As where a script starts the tests in the background, or nohup does; commands respect it, so tests
# undo it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# make test has one worker per core, and no result may depend on the number of cores.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip what is slow or starts a process")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if config.getoption("fast") and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow"))


@pytest.fixture(autouse=True, scope="session")
def no_processes_if_fast(pytestconfig: pytest.Config) -> Iterator[None]:
    """With ``--fast``, the test or fixture that would start a process is skipped there."""

    def skip(*_: object, **__: object) -> NoReturn:
        pytest.skip("starts a process")

    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.getoption("fast"):
            patch.setattr(subprocess.Popen, "__init__", skip)
            patch.setattr(multiprocessing.util, "spawnv_passfds", skip)
            patch.setattr(os, "fork", skip)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> "Trained":
    """A small rendered set and two runs trained on it; tests must not change them."""
    from support.trained import train_small  # it imports Triton, so not before the lines above

    return train_small(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def gpu() -> torch.device:
    """A GPU; without one the test is skipped, or fails where TGDFER_REQUIRE_GPU=1 promises one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TGDFER_REQUIRE_GPU") == "1":
        pytest.fail("TGDFER_REQUIRE_GPU=1, but PyTorch finds no GPU")
    pytest.skip("no GPU")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A SLURM on this machine; without its programs the test is skipped, or fails where
    TGDFER_REQUIRE_SLURM=1 promises them.
    """
    from support.commands import environment
    from support.slurm import missing, running

    if names := missing():
        if os.environ.get("TGDFER_REQUIRE_SLURM") == "1":
            pytest.fail(f"TGDFER_REQUIRE_SLURM=1, but there is no {', '.join(names)}")
        pytest.skip(f"no {', '.join(names)}; Debian has them in slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # of the jobs
        with running(folder) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator["ray_cluster.Cluster"]:
    """A Ray on this machine; the test is skipped where Ray is not installed."""
    pytest.importorskip("ray", reason="no Ray; it is in the extra tgdfer[ray]")
    from support.commands import environment
    from support.ray import running

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])  # of the tasks
        with running() as cluster:
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Chromium without a window; where it is not installed the test is skipped, or fails where
    TGDFER_REQUIRE_CHROMIUM=1 promises it.

    It ends with its module: Playwright's event loop runs in this thread until then.
    """
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("TGDFER_REQUIRE_CHROMIUM") == "1":
            pytest.fail("TGDFER_REQUIRE_CHROMIUM=1, but there is no chromium")
        pytest.skip("no chromium; Debian has it in the package of that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Root, as in containers, has no sandbox; what is opened is ours.
        yield driver.chromium.launch(executable_path=path, args=["--no-sandbox"])


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is synced, in order."""
    paths: list[Path] = []

    def note(handle: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{handle}")))

    monkeypatch.setattr(os, "fsync", note)
    return paths
