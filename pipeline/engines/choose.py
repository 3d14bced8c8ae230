"""``--engine``, ``--gpus`` and ``--engine-set`` -> the engine that a command uses."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cache.errors import RefusedError
from pipeline.device import check_device, choose_device
from pipeline.engines.local import Local
from pipeline.engines.task import Engine

TASKS = "tasks"  # the one setting of ours: how many tasks are done at a time


@dataclass(frozen=True)
class EngineChoice:
    """What a user says of where tasks are to be done."""

    name: Literal["local", "slurm"] = "local"
    gpus: int | None = None  # at a time; None: all of this machine
    settings: Mapping[str, str] = field(default_factory=dict)  # of sbatch, and TASKS

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

    def make(self, place: str, at_once: int, folder: Path, doing: str) -> Engine:
        """The engine; ``folder`` is for its files, ``doing`` what a stopped task finishes."""
        if self.is_local:
            return Local(at_once, doing, () if place == "cpu" else self._names(place))
        from pipeline.engines.slurm import Slurm

        options = {name: value for name, value in self.settings.items() if name != TASKS}
        return Slurm(folder, options, at_once)

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


def choose_engine(
    name: str,
    gpus: int | None,
    settings: Sequence[str],
    device: str,
    workers: int | None = None,
) -> EngineChoice:
    """The choice that these options make; ``settings`` are KEY=VALUE, ``workers`` processes.

    Raises RefusedError for options that do not fit together, and without what an engine needs.
    """
    check_device(device)
    if gpus is not None and (device == "cpu" or ":" in device):
        raise RefusedError(f"--gpus: not read with --device {device}")
    if name == "local":
        if settings:
            raise RefusedError("--engine-set: not read with --engine local")
        return EngineChoice("local", gpus)
    if workers is not None:
        raise RefusedError(f"--workers: not read with --engine slurm; use --engine-set {TASKS}=N")
    if device not in ("cpu", "cuda"):
        raise RefusedError(
            f"--engine slurm: --device {device} is of this machine; say what the nodes have, with "
            "--device cuda or --device cpu"
        )
    chosen = EngineChoice("slurm", gpus, dict(map(_parse, settings)))
    if find_spec("submitit") is None:
        raise RefusedError("--engine slurm needs submitit: pip install 'tgdfer[slurm]'")
    if shutil.which("sbatch") is None:
        raise RefusedError("--engine slurm: no sbatch here; run it where jobs are submitted")
    return chosen


def _parse(setting: str) -> tuple[str, str]:
    name, equals, value = setting.partition("=")
    if not equals or not re.fullmatch("[a-z][a-z-]*", name) or not value.isprintable():
        raise RefusedError(
            f"--engine-set {setting}: expected KEY=VALUE, such as partition=gpu, with an option of "
            f"sbatch or {TASKS}=N"
        )
    if name == TASKS and not re.fullmatch("[1-9][0-9]{0,4}", value):
        raise RefusedError(f"--engine-set {setting}: expected a number of tasks")
    return name, value
