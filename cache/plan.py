"""What a store will hold: its videos, their labels and folds, and how they are cut into blocks."""

import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from cache.columns import (
    ColumnFile,
    Counts,
    KnownNames,
    Names,
    Texts,
    Votes,
    check_sources,
    check_votes,
    encode_columns,
    listed_once,
    refuse_repeated,
)
from cache.errors import DamagedError, RefusedError
from cache.files import canonical_json, sha256
from cache.identity import WHOLE_FRAMES, Count, FrozenModel, Identity, Size, refused
from cache.remote import RemotePath, StoreFiles, StorePath, inside

ARRAY_VERSION = 4  # a plan of a version below, kept in two files
GROWN_VERSION = 3  # the newest of a plan in one file; it has the lowest that describes it
FIRST_VERSION = 2  # of those written now; version 1 is still read
ARRAY_VIDEOS = 1 << 16  # a new store of so many videos keeps its plan in two files
COLUMNS = "videos.safetensors"  # the second
BLOCK_VIDEOS = 64  # 64 videos x 16 frames x 512 features x 2 bytes = 1 MiB per chunk
CHUNK_BYTES_MAX = 1 << 31

_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}

# One row per source frame of every video, in the order of the videos.
TRUTH_DTYPE = np.dtype([("video", "<i4"), ("label", "i1"), ("intensity", "<f4")])


class GrownModel(FrozenModel):
    """A model with fields that earlier versions lack: left out while None, so bytes stay equal."""

    added: ClassVar[tuple[str, ...]] = ()  # the fields of GROWN_VERSION

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return {n: value for n, value in fields.items() if n not in self.added or value is not None}


class PlanFold(FrozenModel):
    """One split; rows of the store to train on and to test on."""

    name: str
    train: Counts
    test: Counts


class ListFile(FrozenModel):
    """A list that the videos were read from; its name starts from the data set's root."""

    name: str
    sha256: str


class DataSet(GrownModel):
    """What a plan says of the videos together."""

    added: ClassVar[tuple[str, ...]] = ("texts", "resplit")

    name: str
    classes: tuple[str, ...]
    truth_sha256: str | None = None
    # A name and a sentence per class, if they are the data set's own.
    texts: tuple[tuple[str, str], ...] | None = None
    # How the folds were drawn, such as "by subject", if they replace the data set's own.
    resplit: str | None = None


class VideoTable(DataSet):
    """What stage two needs to know about the videos besides their features."""

    added = (*DataSet.added, "votes", "sources")

    ids: Names
    labels: Counts
    subjects: KnownNames
    folds: tuple[PlanFold, ...]
    subsets: dict[str, Counts]
    # What annotators said of each video, one number per class, if that is known of any.
    votes: Votes | None = None
    # The file of every video, below the data set's root, or its folder of images and a slash.
    sources: Names | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        videos, classes = len(self.ids), len(self.classes)
        if not videos or not classes:
            raise ValueError(f"{videos} videos and {classes} classes, expected some")
        for name in ("labels", "subjects", "sources"):
            values = getattr(self, name)
            if values is not None and len(values) != videos:
                raise ValueError(f"{len(values)} {name} of {videos} videos")
        check_sources(self.sources or ())
        refuse_repeated("video", self.ids)
        refuse_repeated("class", self.classes)
        refuse_repeated("fold", [fold.name for fold in self.folds])
        for fold in self.folds:
            _check_fold(fold, videos)
        for name, rows in self.subsets.items():
            listed_once(rows, videos, f" in subset {name}")
        if self.texts is not None and len(self.texts) != classes:
            raise ValueError(f"{len(self.texts)} texts of {classes} classes")
        if self.votes is not None:
            check_votes(self.votes, videos, classes)
        strange = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if strange.size:
            raise ValueError(f"label {strange[0]}, but there are {classes} classes")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VideoTable) and self.digest == other.digest

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
        suffixes = ", ".join(sorted({os.path.splitext(name)[1] for name in files}))
        parts = [f"{len(folders)} folders of images"] * bool(folders)
        parts += [f"{len(files)} video files ({suffixes})"] * bool(files)
        above = {os.path.dirname(name.rstrip("/")) for name in self.sources}
        return f"{os.path.commonpath(above) or '.'}: {' and '.join(parts)}"


def _check_fold(fold: PlanFold, videos: int) -> None:
    for part, rows in (("training", fold.train), ("test", fold.test)):
        if not len(rows):
            raise ValueError(f"fold {fold.name} has no {part} videos")
    train_N = listed_once(fold.train, videos, f" for training in fold {fold.name}")
    both_N = train_N & listed_once(fold.test, videos, f" for test in fold {fold.name}")
    if both_N.any():
        raise ValueError(f"row {both_N.argmax()} is in both training and test of fold {fold.name}")


def lowest_schema(
    videos: VideoTable, identity: Identity, lists: "tuple[ListFile, ...] | None"
) -> int:
    """The lowest schema version that describes these videos, this identity and these lists."""
    newer = any(getattr(videos, name) is not None for name in videos.added)
    newer |= identity.faces != WHOLE_FRAMES or lists is not None
    return GROWN_VERSION if newer else FIRST_VERSION


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


class Arrays(FrozenModel):
    """What ``plan.json`` says of a plan whose columns are in a file beside it."""

    columns: tuple[Count, str]  # size in bytes and sha256 of that file
    whole: tuple[Count, str]  # of the plan in one file, which the manifest names
    source: str


class Plan(GrownModel):
    """The immutable part of a store; only ``views`` may grow."""

    added = ("lists",)

    schema_version: Annotated[int, Field(ge=1, le=GROWN_VERSION)] = FIRST_VERSION
    identity: Identity
    videos: VideoTable
    views: Size
    frames: Size
    dim: Size
    block_videos: Size = BLOCK_VIDEOS
    lists: tuple[ListFile, ...] | None = None
    arrays: Arrays | None = Field(default=None, exclude=True)  # None if it is kept in one file

    @model_validator(mode="after")
    def _check(self) -> Self:
        identity = self.identity
        lowest = lowest_schema(self.videos, identity, self.lists)
        if self.schema_version < GROWN_VERSION == lowest:
            raise ValueError(
                f"fields of schema version {GROWN_VERSION} in a plan of {self.schema_version}"
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

    @property
    def source(self) -> str:
        """Where the frames came from, as ``VideoTable.source``."""
        return self.arrays.source if self.arrays else self.videos.source

    def units(self) -> Iterator[Unit]:
        """Every block with all its views."""
        for block in range(self.blocks):
            start = block * self.block_videos
            stop = min(start + self.block_videos, len(self.videos.ids))
            yield Unit(block, start, stop, tuple(range(self.views)))

    def with_views(self, views: int) -> "Plan":
        """The plan of a store to which views were added."""
        grown = self.model_copy(update={"views": views})
        if self.arrays is None:
            return grown
        arrays = self.arrays.model_copy(update={"whole": _fingerprint(encode_plan(grown))})
        return grown.model_copy(update={"arrays": arrays})

    def in_arrays(self) -> "tuple[Plan, bytes]":
        """The plan kept in two files, and the bytes of the second, ``videos.safetensors``."""
        columns = encode_columns(_columns(self.videos))
        arrays = Arrays(
            columns=_fingerprint(columns),
            whole=_fingerprint(encode_plan(self)),
            source=self.videos.source,
        )
        return self.model_copy(update={"arrays": arrays}), columns


class _Heading(DataSet):
    """The videos of a plan without their columns."""

    folds: tuple[str, ...]
    subsets: tuple[str, ...]


class _ArrayFile(FrozenModel):
    """``plan.json`` of schema version 4."""

    schema_version: Literal[4]
    arrays: Arrays
    plan: dict[str, Any]  # its fields but ``videos``
    videos: _Heading
    sha256: str  # of the canonical JSON of the others


def read_plan(path: StorePath) -> Plan:
    """Read the plan of the store at ``path``.

    Raises RefusedError if there is no store or its schema is newer, DamagedError if the plan is
    not as it was written.
    """
    files = inside(path)
    plan_path = files / "plan.json"
    try:
        data = plan_path.read_bytes()
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise RefusedError(_why_no_store(path)) from error
    what, remedy = f"{plan_path} is damaged", _remedy(path)
    if _version(data, plan_path, remedy) == ARRAY_VERSION:
        return parse_array_plan(data, _read_columns(files), what, remedy)
    return parse_plan(data, what, remedy)


def parse_plan(data: bytes, what: str, remedy: str = "") -> Plan:
    """A plan in one file; raises DamagedError, which begins with ``what``, for anything else."""
    with refused(what, DamagedError, remedy):
        plan = Plan.model_validate_json(data)
    if plan.identity.still_open:
        raise DamagedError(f"{what} (the identity lacks {plan.identity.still_open[0]}): {remedy}")
    videos = _part_of_videos(data, plan)
    if videos is None:
        raise DamagedError(f"{what} or written by another version: {remedy}")
    if sha256(videos) != plan.identity.videos:
        raise DamagedError(f"{what} (the videos have another digest): {remedy}")
    return plan


def _part_of_videos(data: bytes, plan: Plan) -> bytes | None:
    """The videos in the JSON of a plan; None unless the rest is canonical."""
    rest = canonical_json(plan.model_dump(mode="json", exclude={"videos"})) + b"\n"
    before, _, views = rest.rpartition(b',"views":')
    begin, end = before + b',"videos":', b',"views":' + views
    canonical = data.startswith(begin) and data.endswith(end)
    return data[len(begin) : -len(end)] if canonical else None


def parse_array_plan(data: bytes, columns: bytes, what: str, remedy: str) -> Plan:
    """A plan from the bytes of its two files; errors as in ``parse_plan``.

    That they hold the plan which the manifest names is checked by ``contradiction``.
    """
    with refused(what, DamagedError, remedy):
        found = _ArrayFile.model_validate_json(data)
        try:
            if _fingerprint(columns) != found.arrays.columns:
                raise ValueError(f"{COLUMNS} is missing or changed")
            videos = _fields(found.videos, ColumnFile(columns))
        except ValueError as error:
            raise DamagedError(f"{what} ({error}): {remedy}") from error
        plan = Plan.model_validate(found.plan | {"videos": videos, "arrays": found.arrays})
    if plan.identity.still_open or encode_plan_file(plan) != data:
        raise DamagedError(f"{what} or written by another version: {remedy}")
    return plan


def contradiction(plan: Plan) -> str:
    """What the two files of a plan say differently; encodes all of it. Empty if nothing."""
    if plan.arrays is None:
        return ""
    if plan.videos.digest != plan.identity.videos:
        return "the videos have another digest than the identity says"
    if _fingerprint(encode_plan(plan)) != plan.arrays.whole:
        return "the whole plan has another sha256 than plan.json says"
    return "" if plan.videos.source == plan.arrays.source else "the source is another"


def refuse_contradiction(plan: Plan, path: StorePath) -> None:
    """Raise DamagedError if the two files of a plan say different things; reads all of it."""
    if why := contradiction(plan):
        raise DamagedError(f"{inside(path) / 'plan.json'} is damaged ({why}): {_remedy(path)}")


def parse_rows(data: bytes, ids: Sequence[str], what: str, remedy: str) -> list[VideoStatus]:
    """The outcomes of a block's videos; raises DamagedError unless they are those of ``ids``."""
    with refused(what, DamagedError, remedy):
        rows = TypeAdapter(list[VideoStatus]).validate_json(data)
    if [row.id for row in rows] != list(ids):
        raise DamagedError(f"{what} (other videos than those of the plan): {remedy}")
    return rows


def encode_plan(plan: Plan) -> bytes:
    """A plan in one file; of a plan in two, the one that the manifest names."""
    return canonical_json(plan.model_dump(mode="json")) + b"\n"


def encode_plan_file(plan: Plan) -> bytes:
    """The bytes of ``plan.json``."""
    if plan.arrays is None:
        return encode_plan(plan)
    videos = plan.videos
    heading = _Heading(
        **{name: getattr(videos, name) for name in DataSet.model_fields},
        folds=tuple(fold.name for fold in videos.folds),
        subsets=tuple(videos.subsets),
    )
    content = {
        "schema_version": ARRAY_VERSION,
        "arrays": plan.arrays.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json", exclude={"videos"}),
        "videos": heading.model_dump(mode="json"),
    }
    return canonical_json(content | {"sha256": sha256(canonical_json(content))}) + b"\n"


def _columns(videos: VideoTable) -> dict[str, NDArray[Any] | Texts[Any]]:
    """The columns of ``videos.safetensors``, by name."""
    columns: dict[str, NDArray[Any] | Texts[Any]] = {"labels": videos.labels}
    for name in ("ids", "subjects", "sources"):
        if getattr(videos, name) is not None:
            columns[name] = Texts.of(getattr(videos, name))
    for number, fold in enumerate(videos.folds):
        columns |= {f"folds.{number}.train": fold.train, f"folds.{number}.test": fold.test}
    for number, rows in enumerate(videos.subsets.values()):
        columns[f"subsets.{number}"] = rows
    return columns if videos.votes is None else columns | {"votes": videos.votes}


def _fields(heading: _Heading, columns: ColumnFile) -> dict[str, Any]:
    """Those of a VideoTable; raises ValueError unless there are exactly its columns."""
    fields = dict(
        heading,
        ids=columns.take_texts("ids"),
        labels=columns.take("labels"),
        subjects=columns.take_texts("subjects", all_known=False),
        folds=tuple(
            PlanFold(
                name=name,
                train=columns.take(f"folds.{number}.train"),
                test=columns.take(f"folds.{number}.test"),
            )
            for number, name in enumerate(heading.folds)
        ),
        subsets={
            name: columns.take(f"subsets.{number}") for number, name in enumerate(heading.subsets)
        },
        votes=columns.take("votes", np.float64, axes=2) if "votes" in columns else None,
        sources=columns.take_texts("sources") if "sources" in columns else None,
    )
    columns.refuse_others()
    return fields


def _read_columns(files: StoreFiles) -> bytes:
    try:
        return (files / COLUMNS).read_bytes()
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return b""


def _fingerprint(data: bytes) -> tuple[int, str]:
    return len(data), sha256(data)


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


def _version(data: bytes, path: StorePath, remedy: str) -> int:
    """The schema version, before anything else is understood; RefusedError if it is newer."""
    last = max(data.rfind(b'"schema_version"'), 0)  # a plan in two files has two of them
    found = re.compile(rb'"schema_version":\s*(\d{1,9})\b').match(data, last)
    if found is None:
        raise DamagedError(f"{path} is not the plan of a feature store: {remedy}")
    version = int(found[1])
    if version > ARRAY_VERSION:
        raise RefusedError(
            f"{path} has schema version {version}, this tgdfer reads up to {ARRAY_VERSION}; "
            "install a newer tgdfer"
        )
    return version
