"""Tasks of a Ray cluster, where they differ from those of the other engines."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cache.errors import RefusedError
from pipeline.engines.choose import choose_engine
from pipeline.engines.task import TaskError, results
from support.labour import named, tasks

if TYPE_CHECKING:
    from support.ray import Cluster

GIB = 2**30
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="no Ray; see tgdfer[ray]")


@pytest.mark.slow
def test_task_that_kills_its_processes_is_given_up_and_stdout_stays_empty(
    ray: "Cluster", tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done: list[int] = []
    with pytest.raises(TaskError, match=r"^1 of 2 tasks .*; die: its process died 3 times in turn"):
        results(named("ray", tmp_path / "engine"), tasks("die", "a"), done.append)
    assert done == [1] * 2
    assert capfd.readouterr().out == ""


def test_address_that_nobody_listens_at_is_refused_at_once() -> None:
    with pytest.raises(RefusedError, match=r"no Ray cluster at 127\.0\.0\.1:1 .* ray start --head"):
        choose_engine("ray", None, ["address=127.0.0.1:1"], "cpu")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "local"])
def test_addresses_of_other_kinds_are_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RefusedError, match=f"RAY_ADDRESS is {address}, expected HOST:PORT"):
        choose_engine("ray", None, [], "cpu")


def test_tasks_that_fit_no_node_are_said_to_wait() -> None:
    from pipeline.engines.ray import too_large

    nodes = [{"CPU": 8.0, "memory": 64.0 * GIB}, {"CPU": 4.0, "GPU": 1.0, "memory": 16.0 * GIB}]
    small = {"num_cpus": 4, "num_gpus": 1, "memory": 16 * GIB}
    assert too_large([small], nodes) is None
    said = too_large([small, small | {"num_cpus": 8}], nodes)
    assert said is not None
    assert said.startswith("no node has 8 cores, 1 GPUs and 16 GiB, so tasks wait for one")
