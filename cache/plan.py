"""What a store will hold: its videos, their labels and folds, and how they are cut into blocks."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from cache.errors import DamagedError, RefusedError
from cache.files import canonical_json, sha256
from cache.identity import FrozenModel, Identity
from cache.remote import StorePath

SCHEMA_VERSION = 2
BLOCK_VIDEOS = 64  # 64 videos x 16 frames x 512 features x 2 bytes = 1 MiB per chunk

# One row per source frame of every video, in the order of the videos.
TRUTH_DTYPE = np.dtype([("video", "<i4"), ("label", "i1"), ("intensity", "<f4")])


class PlanFold(FrozenModel):
    """One split; rows of the store to train on and to test on."""

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]


class VideoTable(FrozenModel):
    """What stage two needs to know about the videos besides their features."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    subjects: tuple[str | None, ...]
    folds: tuple[PlanFold, ...]
    subsets: dict[str, tuple[int, ...]]
    truth_sha256: str | None = None

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of all fields."""
        return sha256(canonical_json(self.model_dump(mode="json")))


class VideoStatus(FrozenModel):
    """The outcome of one video: what its decoder found, or why it has no features."""

    id: str
    status: Literal["ok", "failed"]
    reason: str = ""
    frames: int = 0  # frames decoded
    flags: tuple[str, ...] = ()
    sha256: str = ""  # of the source's bytes


@dataclass(frozen=True)
class Unit:
    """What is computed and committed together: some views of one block of videos."""

    block: int
    start: int  # first row of the store
    stop: int
    views: tuple[int, ...]


class Plan(FrozenModel):
    """The immutable part of a store, kept as ``plan.json``; only ``views`` may grow."""

    schema_version: int = SCHEMA_VERSION
    identity: Identity
    videos: VideoTable
    views: int
    frames: int
    dim: int
    block_videos: int = BLOCK_VIDEOS

    @property
    def blocks(self) -> int:
        """Number of blocks, the last of which may be short."""
        return -(-len(self.videos.ids) // self.block_videos)

    def units(self) -> Iterator[Unit]:
        """Every block with all its views."""
        for block in range(self.blocks):
            start = block * self.block_videos
            stop = min(start + self.block_videos, len(self.videos.ids))
            yield Unit(block, start, stop, tuple(range(self.views)))


def read_plan(path: StorePath) -> Plan:
    """Read ``plan.json`` of the store at ``path``.

    Raises RefusedError if there is no store or its schema is newer, DamagedError if the plan is
    not as it was written.
    """
    plan_path = path / "plan.json"
    try:
        data = plan_path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise RefusedError(_why_no_store(path)) from error
    _refuse_other_schema(data, plan_path)
    try:
        plan = Plan.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(
            f"{plan_path} is damaged ({where}: {first['msg']}): {_remedy(path)}"
        ) from error
    if encode_plan(plan) != data or plan.videos.digest != plan.identity.videos:
        raise DamagedError(f"{plan_path} is damaged or written by another version: {_remedy(path)}")
    return plan


def encode_plan(plan: Plan) -> bytes:
    """The bytes of ``plan.json``."""
    return canonical_json(plan.model_dump(mode="json")) + b"\n"


def encode_truth(rows: NDArray[np.void]) -> bytes:
    """The bytes of ``truth.npy``, from rows of TRUTH_DTYPE."""
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(TRUTH_DTYPE), allow_pickle=False)
    return buffer.getvalue()


def _remedy(path: StorePath) -> str:
    # Everything else is checked against the plan.
    if not isinstance(path, Path):
        return "copy the store there again from an intact one"
    return (
        "delete it and manifest.json, then extract with the same options; what was committed under "
        "the same identity is kept"
    )


def _why_no_store(path: StorePath) -> str:
    if not isinstance(path, Path):
        return f"no store at {path}: there is no plan.json; check the address"
    if not path.exists():
        return f"no store at {path}; make one with: tgdfer extract --store {path}"
    return f"{path} is not a feature store: it has no plan.json; check --store"


def _refuse_other_schema(data: bytes, path: StorePath) -> None:
    class Version(BaseModel):
        schema_version: int

    try:
        version = Version.model_validate_json(data).schema_version
    except ValidationError as error:
        raise DamagedError(
            f"{path} is not the plan of a feature store: {_remedy(path.parent)}"
        ) from error
    if version > SCHEMA_VERSION:
        raise RefusedError(
            f"{path} has schema version {version}, this tgdfer reads up to {SCHEMA_VERSION}; "
            "install a newer tgdfer"
        )
