"""What a store will hold: its videos, their labels and folds, and how they are cut into blocks."""

import errno
import io
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from cache.errors import DamagedError, RefusedError
from cache.files import canonical_json, sha256
from cache.identity import WHOLE_FRAMES, Count, FrozenModel, Identity, Size, refused
from cache.remote import RemotePath, StorePath, inside

SCHEMA_VERSION = 3  # the newest; a plan has the lowest that describes it
FIRST_VERSION = 2  # of those written now; version 1 is still read
BLOCK_VIDEOS = 64  # 64 videos x 16 frames x 512 features x 2 bytes = 1 MiB per chunk
CHUNK_BYTES_MAX = 1 << 31
VOTES_MAX = 1e9

_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}

Vote = Annotated[float, Field(ge=0, le=VOTES_MAX)]
# One row per source frame of every video, in the order of the videos.
TRUTH_DTYPE = np.dtype([("video", "<i4"), ("label", "i1"), ("intensity", "<f4")])


class GrownModel(FrozenModel):
    """A model with fields that earlier versions lack: left out while None, so bytes stay equal."""

    added: ClassVar[tuple[str, ...]] = ()  # the fields of SCHEMA_VERSION

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {n: value for n, value in fields.items() if n not in self.added or value is not None}


class PlanFold(FrozenModel):
    """One split; rows of the store to train on and to test on."""

    name: str
    train: tuple[Count, ...]
    test: tuple[Count, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for part, rows in (("training", self.train), ("test", self.test)):
            if not rows:
                raise ValueError(f"fold {self.name} has no {part} videos")
            _refuse_repeated("row", rows, f" for {part} in fold {self.name}")
        both = set(self.train) & set(self.test)
        if both:
            raise ValueError(f"row {min(both)} is in both training and test of fold {self.name}")
        return self


class ListFile(FrozenModel):
    """A list that the videos were read from; its name starts from the data set's root."""

    name: str
    sha256: str


class VideoTable(GrownModel):
    """What stage two needs to know about the videos besides their features."""

    added = ("texts", "votes", "resplit", "sources")

    name: str
    ids: tuple[str, ...]
    labels: tuple[Count, ...]
    classes: tuple[str, ...]
    subjects: tuple[str | None, ...]
    folds: tuple[PlanFold, ...]
    subsets: dict[str, tuple[Count, ...]]
    truth_sha256: str | None = None
    # A name and a sentence per class, if they are the data set's own.
    texts: tuple[tuple[str, str], ...] | None = None
    # What annotators said of each video, one number per class, if that is known of any.
    votes: tuple[tuple[Vote, ...] | None, ...] | None = None
    # How the folds were drawn, such as "by subject", if they replace the data set's own.
    resplit: str | None = None
    # The file of every video, below the data set's root, or its folder of images and a slash.
    sources: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        videos = len(self.ids)
        if not videos or not self.classes:
            raise ValueError(f"{videos} videos and {len(self.classes)} classes, expected some")
        for name in ("labels", "subjects", "sources"):
            values = getattr(self, name)
            if values is not None and len(values) != videos:
                raise ValueError(f"{len(values)} {name} of {videos} videos")
        for name in self.sources or ():
            if not name or name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"source {name!r} does not start from the data set's root")
        _refuse_repeated("video", self.ids)
        _refuse_repeated("class", self.classes)
        _refuse_repeated("fold", [fold.name for fold in self.folds])
        for name, rows in self.subsets.items():
            _refuse_repeated("row", rows, f" in subset {name}")
        if self.texts is not None and len(self.texts) != len(self.classes):
            raise ValueError(f"{len(self.texts)} texts of {len(self.classes)} classes")
        if self.votes is not None:
            _check_votes(self.votes, videos, len(self.classes))
        if max(self.labels) >= len(self.classes):
            raise ValueError(f"label {max(self.labels)}, but there are {len(self.classes)} classes")
        parts = [rows for fold in self.folds for rows in (fold.train, fold.test)]
        last = max((row for rows in (*parts, *self.subsets.values()) for row in rows), default=0)
        if last >= videos:
            raise ValueError(f"row {last} of a fold or a subset, but there are {videos} videos")
        return self

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of all fields."""
        return sha256(canonical_json(self.model_dump(mode="json")))

    @property
    def source(self) -> str:
        """Where the frames came from, "Clip/original: 11697 video files (.mp4)"; may be empty."""
        if self.sources is None:
            return ""
        folders = [name for name in self.sources if name.endswith("/")]
        files = [name for name in self.sources if not name.endswith("/")]
        suffixes = ", ".join(sorted({PurePosixPath(name).suffix for name in files}))
        parts = [f"{len(folders)} folders of images"] * bool(folders)
        parts += [f"{len(files)} video files ({suffixes})"] * bool(files)
        above = {os.path.dirname(name.rstrip("/")) for name in self.sources}
        return f"{os.path.commonpath(above) or '.'}: {' and '.join(parts)}"


def lowest_schema(
    videos: VideoTable, identity: Identity, lists: "tuple[ListFile, ...] | None"
) -> int:
    """The lowest schema version that describes these videos, this identity and these lists."""
    newer = any(getattr(videos, name) is not None for name in videos.added)
    newer |= identity.faces != WHOLE_FRAMES or lists is not None
    return SCHEMA_VERSION if newer else FIRST_VERSION


class VideoStatus(FrozenModel):
    """The outcome of one video: what its decoder found, or why it has no features."""

    id: str
    status: Literal["ok", "failed"]
    reason: str = ""
    frames: Count = 0  # frames decoded
    flags: tuple[str, ...] = ()
    sha256: str = ""  # of the source's bytes


@dataclass(frozen=True)
class Unit:
    """What is computed and committed together: some views of one block of videos."""

    block: int
    start: int  # first row of the store
    stop: int
    views: tuple[int, ...]


class Plan(GrownModel):
    """The immutable part of a store, kept as ``plan.json``; only ``views`` may grow."""

    added = ("lists",)

    schema_version: Size = FIRST_VERSION
    identity: Identity
    videos: VideoTable
    views: Size
    frames: Size
    dim: Size
    block_videos: Size = BLOCK_VIDEOS
    lists: tuple[ListFile, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        identity = self.identity
        lowest = lowest_schema(self.videos, identity, self.lists)
        if self.schema_version < SCHEMA_VERSION == lowest:
            raise ValueError(
                f"fields of schema version {SCHEMA_VERSION} in a plan of {self.schema_version}"
            )
        for name, found in (("frames", identity.frames), ("dim", identity.encoder.dim)):
            if found != getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}, the identity says {found}")
        if (identity.batch_frames or 0) % self.frames:
            raise ValueError(f"batch_frames {identity.batch_frames} is no multiple of frames")
        if 2 * self.block_videos * self.frames * self.dim > CHUNK_BYTES_MAX:
            raise ValueError(f"chunks larger than {CHUNK_BYTES_MAX} bytes")
        return self

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
    plan_path = inside(path) / "plan.json"
    try:
        data = plan_path.read_bytes()
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise RefusedError(_why_no_store(path)) from error
    _refuse_other_schema(data, plan_path)
    plan = parse_plan(data, f"{plan_path} is damaged", _remedy(path))
    if encode_plan(plan) != data:
        raise DamagedError(f"{plan_path} is damaged or written by another version: {_remedy(path)}")
    return plan


def parse_plan(data: bytes, what: str, remedy: str = "") -> Plan:
    """The plan of a store; raises DamagedError, which begins with ``what``, for anything else."""
    with refused(what, DamagedError, remedy):
        plan = Plan.model_validate_json(data)
    still_open = plan.identity.still_open
    if still_open or plan.videos.digest != plan.identity.videos:
        why = (
            f"the identity lacks {still_open[0]}"
            if still_open
            else "the videos have another digest"
        )
        raise DamagedError(f"{what} ({why}): {remedy}")
    return plan


def parse_rows(data: bytes, ids: Sequence[str], what: str, remedy: str) -> list[VideoStatus]:
    """The outcomes of a block's videos; raises DamagedError unless they are those of ``ids``."""
    with refused(what, DamagedError, remedy):
        rows = TypeAdapter(list[VideoStatus]).validate_json(data)
    if [row.id for row in rows] != list(ids):
        raise DamagedError(f"{what} (other videos than those of the plan): {remedy}")
    return rows


def encode_plan(plan: Plan) -> bytes:
    """The bytes of ``plan.json``."""
    return canonical_json(plan.model_dump(mode="json")) + b"\n"


def encode_truth(rows: NDArray[np.void]) -> bytes:
    """The bytes of ``truth.npy``, from rows of TRUTH_DTYPE."""
    buffer = io.BytesIO()
    np.save(buffer, rows.astype(TRUTH_DTYPE), allow_pickle=False)
    return buffer.getvalue()


def parse_truth(data: bytes, videos: VideoTable, what: str, remedy: str) -> NDArray[np.void]:
    """The rows of ``truth.npy``; raises DamagedError unless they are of these videos, in order."""
    try:
        rows: NDArray[np.void] = np.load(io.BytesIO(data), allow_pickle=False)
        why = _why_no_truth(rows, videos)
    except (ValueError, EOFError, OSError, TypeError, SyntaxError, MemoryError) as error:
        why = str(error)
    if why:
        raise DamagedError(f"{what} ({why}): {remedy}")
    return rows


def _why_no_truth(rows: NDArray[np.void], videos: VideoTable) -> str:
    if rows.dtype != TRUTH_DTYPE or rows.ndim != 1:
        return f"{rows.dtype} {rows.shape}, expected rows of {TRUTH_DTYPE}"
    row_of_video, label = rows["video"], rows["label"]
    known = (row_of_video >= 0) & (row_of_video < len(videos.ids))
    if not (known & (label >= -1) & (label < len(videos.classes))).all():
        return "rows or labels are out of range"
    if (np.diff(row_of_video) < 0).any() or not np.isfinite(rows["intensity"]).all():
        return "rows are out of order, or intensities are not finite"
    return ""


def _check_votes(votes: Sequence[Sequence[float] | None], videos: int, classes: int) -> None:
    known = [row for row in votes if row is not None]
    if len(votes) != videos or not known:
        raise ValueError(f"{len(votes)} votes of {videos} videos, {len(known)} of them known")
    for row in known:
        if len(row) != classes or sum(row) <= 0:
            raise ValueError(f"votes {list(row)}, expected {classes} numbers that are not all 0")


def _refuse_repeated(what: str, values: Collection[str | int], where: str = "") -> None:
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise ValueError(f"{what} {twice} is listed twice{where}")


def _remedy(path: StorePath) -> str:
    # Everything else is checked against the plan.
    if isinstance(path, RemotePath):
        return "copy the store there again from an intact one"
    return (
        "delete it and manifest.json, then extract with the same options; what was committed under "
        "the same identity is kept"
    )


def _why_no_store(path: StorePath) -> str:
    if isinstance(path, RemotePath):
        return f"no store at {path}: there is no plan.json; check the address"
    if not os.path.exists(str(path)):
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
