"""A SLURM of three nodes of one core each, all of them on this machine."""

import getpass
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.mounts import with_own_mounts

NODES = ("n1", "n2", "n3")
CONFIGURATION = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=1
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/ctld.pid
SlurmctldLogFile={folder}/ctld.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=64000\n"
)
START_SECONDS = 60.0


@dataclass
class Cluster:
    """The running daemons."""

    folder: Path
    daemons: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    engine = "slurm"

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground."""
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        command = ("slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))
        with_own_mounts(lambda: self.start(node, *command))

    def daemons_of_nodes(self) -> list[int]:
        """The process that starts the tasks of each node, with mounts of its own."""
        return [self.daemons[node].pid for node in NODES]

    def node_of(self, process: int) -> str:
        """The node on which a process does a task."""
        variables = Path(f"/proc/{process}/environ").read_text().split("\0")
        return dict(line.split("=", 1) for line in variables if "=" in line)["SLURMD_NODENAME"]

    def lose(self, node: str) -> None:
        """Take a node down; what it computes goes on, but out of reach."""
        self.daemons.pop(node).kill()
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def revive(self, node: str) -> None:
        """Bring a lost node back."""
        self.start_node(node)
        self.ask("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_for_nodes()

    def ask(self, *command: str) -> list[str]:
        """The lines that a command of SLURM prints."""
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[:-1]

    def queue(self) -> list[str]:
        """State, node and job of all that is queued, running or ending."""
        return self.ask("squeue", "--noheader", "--array", "--format=%T %N %i")

    def empty(self) -> None:
        """End all jobs and wait for that: without the daemons, their own would wait for ever."""
        subprocess.run(["scancel", "--me"], capture_output=True)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            left = subprocess.run(["squeue", "--noheader"], capture_output=True)
            if left.returncode or not left.stdout:
                return
            time.sleep(0.1)

    def wait_for_nodes(self) -> None:
        """Wait until every node is idle."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--format=%T"], capture_output=True, text=True
            )
            if found.stdout.split() == ["idle"] * len(NODES):
                return
            time.sleep(0.2)
        logs = "\n".join(path.read_text() for path in self.folder.glob("*.out"))
        raise RuntimeError(f"SLURM has not started: {found.stdout}{found.stderr}\n{logs}")


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster, whose files are in ``folder``; SLURM_CONF must name slurm.conf in it."""
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    about = {"host": socket.gethostname().partition(".")[0], "folder": folder}
    ports = _free_ports(1 + len(NODES))
    text = CONFIGURATION.format(**about, port=ports[0], user=getpass.getuser())
    nodes = zip(NODES, ports[1:], strict=True)
    text += "".join(NODE.format(**about, node=node, port=port) for node, port in nodes)
    (folder / "slurm.conf").write_text(text)
    cluster = Cluster(folder)
    files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    files |= {"seed-file": "munge.seed", "key-file": "munge.key"}
    try:
        options = [f"--{name}={folder / file}" for name, file in files.items()]
        cluster.start("munged", "munged", "--foreground", "--force", *options)
        cluster.start("slurmctld", "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for node in NODES:
            cluster.start_node(node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.empty()
        for daemon in reversed(cluster.daemons.values()):
            daemon.kill()
            daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
