"""A Ray of three nodes on this machine: the head, which does no tasks, and two of one core each."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.cluster_utils

from support.mounts import with_own_mounts

MIB = 2**20
NODE = {"num_cpus": 1, "memory": 64000 * MIB, "object_store_memory": 80 * MIB}
HEAD = NODE | {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
# A killed node, which refuses connections, is missed after three seconds, a busy one never.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class Cluster:
    """The running daemons."""

    daemons: Any
    engine = "ray"

    @property
    def address(self) -> str:
        """As in RAY_ADDRESS."""
        return str(self.daemons.address)

    def daemons_of_nodes(self) -> list[int]:
        """The process that starts the tasks of each node, with mounts of its own."""
        return [_raylet(node) for node in self.daemons.worker_nodes]

    def node_of(self, process: int) -> Any:
        """The node on which a process does a task."""
        parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        return next(node for node in self.daemons.worker_nodes if _raylet(node) == parent)

    def lose(self, node: Any) -> None:
        """Take a node down with all its processes."""
        self.daemons.remove_node(node, allow_graceful=False)

    def revive(self, node: Any) -> None:
        """Start another node in place of a lost one."""
        self.start_node()

    def start_node(self) -> None:
        """Start a node."""
        with_own_mounts(lambda: self.daemons.add_node(**NODE))


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster; RAY_ADDRESS must name its address."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    daemons = ray.cluster_utils.Cluster(
        initialize_head=True,
        head_node_args=HEAD | {"_system_config": HEALTH},
        shutdown_at_exit=False,  # which would change what SIGTERM does to the tests
    )
    cluster = Cluster(daemons)
    try:
        for _ in range(2):
            cluster.start_node()
        yield cluster
    finally:
        daemons.shutdown()
