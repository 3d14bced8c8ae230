"""``--engine``, ``--gpus``, ``--engine-set`` and TOML files -> the engine that a command uses."""

import datetime
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError

from cache.errors import RefusedError
from cache.outside import read_text
from pipeline.config import CONFIG_BYTES_MAX, Settings, parse_toml
from pipeline.device import check_device, choose_device
from pipeline.engines.local import Local
from pipeline.engines.task import Engine

Name = Literal["local", "slurm", "ray"]
NAMES: tuple[Name, ...] = get_args(Name)
TASKS = "tasks"  # a setting of ours: how many tasks are done at a time
ADDRESS = "address"  # a setting of ours: which Ray cluster
SHARES = 8  # into which work for a cluster is cut, where it is not said how many at a time
CONNECT_SECONDS = 5.0
PACKAGES = {"slurm": "submitit", "ray": "ray"}
# Options of sbatch without which the jobs and their results would not be found again.
OF_THE_COMMAND = {
    *("array", "chdir", "error", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait", "wrap"),
}
_NUMBER = r"[0-9]{1,6}(\.[0-9]{1,3})?"
# Settings -> what their values look like, and how they are called; with SLURM, there are others.
_TASKS = {TASKS: ("[1-9][0-9]{0,4}", "a number of tasks")}
_OF_SLURM = {**_TASKS, "cpus-per-task": ("[1-9][0-9]{0,3}", "a number of cores")}
_OF_RAY = {
    **_TASKS,
    ADDRESS: (r"[\w.:\[\]-]+:[0-9]{1,5}", "HOST:PORT of a cluster that this machine is part of"),
    "num-cpus": (_NUMBER, "a number of cores"),
    "num-gpus": (_NUMBER, "a number of GPUs"),
    "memory": ("[1-9][0-9]{0,17}", "a number of bytes"),
    "accelerator-type": (r"[\w.-]+", "a type of GPU, as Ray names it"),
}
_EXAMPLES = {
    "slurm": f"partition=gpu, with an option of sbatch or {TASKS}=N",
    "ray": f"{TASKS}=8; the keys are {', '.join(_OF_RAY)}",
}


@dataclass(frozen=True)
class EngineChoice:
    """What a user says of where tasks are to be done."""

    name: Name = "local"
    gpus: int | None = None  # at a time; None: all of this machine
    settings: Mapping[str, str] = field(default_factory=dict)  # of sbatch or Ray's tasks, and ours

    @property
    def is_local(self) -> bool:
        """Whether tasks are done on this machine."""
        return self.name == "local"

    def place(self, device: str) -> str:
        """The device of a task: ``cpu``, ``cuda`` or, on this machine, ``cuda:N``.

        Raises RefusedError for one that this machine would need to have, but has not.
        """
        place = choose_device(device) if self.is_local else device
        if place == "cpu" and self.gpus is not None:
            raise RefusedError(f"--gpus {self.gpus}: no CUDA device available")
        return place

    def at_once(self, place: str) -> int | None:
        """How many tasks are done at a time, if that is not up to the command.

        Raises RefusedError for more GPUs than there are.
        """
        if not self.is_local:
            tasks = self.settings.get(TASKS)
            return self.gpus if tasks is None else int(tasks)
        return None if place == "cpu" else len(self._names(place))

    def cores(self, default: int) -> int:
        """The cores of a task, each for one thread."""
        given = self.settings.get("cpus-per-task", self.settings.get("num-cpus"))
        return default if given is None else max(1, int(float(given)))

    def make(self, place: str, at_once: int, folder: Path, doing: str) -> Engine:
        """The engine; ``folder`` is for its files, ``doing`` what a stopped task finishes."""
        if self.is_local:
            return Local(at_once, doing, () if place == "cpu" else self._names(place))
        options = {
            key: value for key, value in self.settings.items() if key not in (TASKS, ADDRESS)
        }
        if self.name == "slurm":
            from pipeline.engines.slurm import Slurm

            return Slurm(folder, options, at_once)
        from pipeline.engines.ray import Ray

        return Ray(folder, options, at_once, self.settings.get(ADDRESS, "auto"))

    def _names(self, place: str) -> list[str]:
        """The GPUs to use, as CUDA_VISIBLE_DEVICES names them."""
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = given.split(",") if given else [*map(str, range(torch.cuda.device_count()))]
        _, numbered, number = place.partition(":")
        if numbered:
            return [names[int(number)]]
        if self.gpus is not None and self.gpus > len(names):
            raise RefusedError(f"--gpus {self.gpus}: this machine has {len(names)}")
        return names[: self.gpus]


LOCAL = EngineChoice()


class EngineTable(Settings):
    """What ``[engine]`` in a TOML file says."""

    name: Name
    gpus: int | None = Field(None, ge=1, le=1024)
    settings: dict[str, str | int | float | datetime.time] = Field(default_factory=dict)


class EngineFile(Settings):
    """A TOML file that says where tasks are to be done."""

    engine: EngineTable


def choose_engine(
    name: str,
    gpus: int | None,
    settings: Sequence[str],
    device: str,
    workers: int | None = None,
) -> EngineChoice:
    """The choice that these options make; ``settings`` are KEY=VALUE, ``workers`` processes.

    ``name`` may be a TOML file, which the other options overrule. Raises RefusedError for options
    that do not fit together, and without what an engine needs.
    """
    check_device(device)
    table = EngineTable(name=name) if name in NAMES else _read(Path(name))
    gpus = table.gpus if gpus is None else gpus
    if gpus is not None and (device == "cpu" or ":" in device):
        raise RefusedError(f"--gpus {gpus}: not read with --device {device}")
    if table.name == "local":
        if settings or table.settings:
            raise RefusedError(
                f"--engine {name}: {next(iter([*settings, *table.settings]))} is a setting of a "
                "cluster, not read by the engine local"
            )
        return EngineChoice("local", gpus)
    if workers is not None:
        raise RefusedError(
            f"--workers: not read with --engine {table.name}; use --engine-set {TASKS}=N"
        )
    if device not in ("cpu", "cuda"):
        raise RefusedError(
            f"--engine {table.name}: --device {device} is of this machine; say what the nodes "
            "have, with --device cuda or --device cpu"
        )
    in_file = [_parse(table.name, f"{key}={value}", name) for key, value in table.settings.items()]
    given = [_parse(table.name, setting, "--engine-set") for setting in settings]
    chosen = EngineChoice(table.name, gpus, dict(in_file + given))
    _check_at_hand(chosen)
    return chosen


def _read(path: Path) -> EngineTable:
    text = read_text(path, f"{', '.join(NAMES)} or a TOML file", CONFIG_BYTES_MAX)
    try:
        return EngineFile.model_validate(parse_toml(text, str(path))).engine
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise RefusedError(
            f"{path}: {'; '.join(found)}; expected [engine] with name, gpus and settings"
        ) from None


def _parse(engine: str, setting: str, where: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    known = _OF_RAY if engine == "ray" else _OF_SLURM
    is_key = key in known or (engine == "slurm" and re.fullmatch("[a-z][a-z-]*", key))
    if not equals or not is_key or not value.isprintable():
        raise RefusedError(f"{where} {setting}: expected KEY=VALUE, such as {_EXAMPLES[engine]}")
    if engine == "slurm" and key in OF_THE_COMMAND:
        raise RefusedError(f"{where} {setting}: the command itself says {key}")
    pattern, called = known.get(key, (".*", ""))
    if not re.fullmatch(pattern, value):
        raise RefusedError(f"{where} {setting}: expected {called}")
    return key, value


def _check_at_hand(chosen: EngineChoice) -> None:
    name, package = chosen.name, PACKAGES[chosen.name]
    if find_spec(package) is None:
        raise RefusedError(f"--engine {name} needs {package}: pip install 'tgdfer[{name}]'")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise RefusedError("--engine slurm: no sbatch here; run it where jobs are submitted")
    address = chosen.settings.get(ADDRESS, os.environ.get("RAY_ADDRESS"))
    if name == "ray" and address not in (None, "", "auto"):
        _check_cluster(address)


def _check_cluster(address: str) -> None:
    """Refuse at once what Ray would try to reach for minutes."""
    pattern, called = _OF_RAY[ADDRESS]
    if not re.fullmatch(pattern, address):
        raise RefusedError(f"--engine ray: RAY_ADDRESS is {address}, expected {called}")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RefusedError(
            f"--engine ray: no Ray cluster at {address} ({error.args[-1]}); start one with: ray "
            "start --head"
        ) from error
