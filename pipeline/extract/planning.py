"""Video list + encoder + settings -> the plan of a store; imports no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import numpy as np

from cache.errors import RefusedError
from cache.files import sha256
from cache.identity import WHOLE_FRAMES, Identity, refused
from cache.plan import (
    TRUTH_DTYPE,
    ListFile,
    Plan,
    PlanFold,
    VideoTable,
    encode_truth,
    lowest_schema,
    read_plan,
)
from cache.store import LIVE, Store
from cache.writer import check_same
from pipeline.config import FRAMES_MAX, VIEWS_MAX
from pipeline.datasets.videos import Video, VideoList
from pipeline.device import check_device
from pipeline.encoders.clip import LOCAL_DIR, EncoderFiles, Precision
from pipeline.resources import check_writable
from pipeline.video.augmentation import STANDARD, VIEW_RULES, ViewNames
from pipeline.video.frames import decoder_name
from pipeline.video.sampling import EVALUATION_RULE, TRAINING_RULES

if TYPE_CHECKING:
    from pipeline.video.crops import Cropping

CROPPINGS: tuple["Cropping", ...] = ("crop", "aligned")
MOST = {
    "views": VIEWS_MAX,
    "frames": FRAMES_MAX,
    "batch_frames": 65_536,
    "seed": (1 << 32) - 1,
    "workers": 1024,
    "decode_seconds": 86_400,  # a day
}
LEAST = {"seed": 0, "decode_seconds": 0.1}  # of all others 1


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract; ``workers``, ``isolate``, ``decode_seconds``, ``shard`` change no feature."""

    views: int = 5
    frames: int = 16
    batch_frames: int | None = None  # None: what suits the device
    seed: int = 0
    sampling: str = STANDARD.sampling  # which frames training views show
    augmentation: str = STANDARD.augmentation
    device: str = "auto"
    precision: Precision = "auto"
    workers: int | None = None  # decode threads
    isolate: bool = False  # decode every video in a separate process
    decode_seconds: float = 600.0  # a video that takes longer counts as hanging
    fold: str = "all"  # the fold whose training videos the encoder was trained on
    shard: tuple[int, int] = (0, 1)  # (i, n): the blocks with block % n == i
    faces: str = WHOLE_FRAMES  # or one of CROPPINGS: how the face of each video is cut out

    def __post_init__(self) -> None:
        parse_precision(self.precision)
        cropping_of(self.faces)
        check_device(self.device)
        i, n = self.shard
        if not 0 <= i < n:
            raise RefusedError(f"shard {i}/{n}: expected I/N with 0 <= I < N, such as 0/4")
        for name, most in MOST.items():
            value, least = getattr(self, name), LEAST.get(name, 1)
            if value is not None and not least <= value <= most:
                raise RefusedError(f"{name} is {value}, expected {least} to {most}")
        for name, known in (("sampling", TRAINING_RULES), ("augmentation", VIEW_RULES)):
            if getattr(self, name) not in known:
                raise RefusedError(
                    f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}"
                )
        if self.batch_frames is not None and self.batch_frames % self.frames:
            raise RefusedError(
                f"batch_frames is {self.batch_frames}, expected a multiple of frames, {self.frames}"
            )

    @property
    def names(self) -> ViewNames:
        """Of the rules by which training views are made."""
        return ViewNames(self.sampling, self.augmentation)


def default_store(dataset: str, encoder: str, limit: int | None, faces: str = WHOLE_FRAMES) -> Path:
    """The default store of a data set, or of its first ``limit`` videos, and an encoder."""
    encoder = "-".join(map(_short_name, encoder.split("+")))
    name = re.sub(r"[^\w.-]", "-", f"{dataset}-{encoder}")
    name += "" if faces == WHOLE_FRAMES else f"-{faces}"
    return Path("data") / (name + ("" if limit is None else f"-first{limit}") + ".zarr")


def _short_name(encoder: str) -> str:
    if encoder.startswith(LOCAL_DIR):
        return Path(encoder.removeprefix(LOCAL_DIR)).resolve().name
    return encoder.partition("=")[0]


def suited_batch(frames: int, device: str) -> int:
    """Frames per batch: whole views, about 32 on a CPU and 256 on a GPU.

    On a CPU the hidden layers of larger batches do not fit its caches, and their memory is
    allocated anew at every call; small batches leave a GPU idle.
    """
    near = 32 if device == "cpu" else 256
    return frames * max(1, near // frames)


def suited_block(videos: int, batch_videos: int) -> int:
    """Videos per block: whole batches, about 64, or 16 so that a small set spreads as well."""
    near = 64 if videos >= 1024 else 16
    return batch_videos * max(1, near // batch_videos)


def make_plan(
    video_list: VideoList, encoder: EncoderFiles, settings: ExtractSettings
) -> tuple[Plan, bytes | None]:
    """(the plan of a store, the bytes of its ``truth.npy`` if there is one); no torch."""
    if not video_list.videos:
        raise RefusedError(f"{video_list.name}: the list holds no videos")
    truth = _truth(video_list.videos)
    with refused(f"{video_list.name}: the videos and settings make no store"):
        plan = _plan(video_list, truth, encoder, settings)
    return plan, truth


def describe_live(plan: Plan, encoder: EncoderFiles, digest: str = "") -> Store:
    """The videos as a store would describe them; there is nothing on disk behind it."""
    manifest = {"missing": {}, "files": {}, "text": encoder.text_config}
    return Store(Path(plan.videos.name), LIVE + digest, plan, manifest)


def known_to(stored: Plan, video_list: VideoList) -> VideoList:
    """The list without sources, if the version that wrote ``stored`` did not record them."""
    return without_sources(video_list) if stored.videos.sources is None else video_list


def without_sources(video_list: VideoList) -> VideoList:
    """The list without the places of its videos, as of features whose frames nobody here read."""
    return replace(video_list, videos=tuple(replace(v, source="") for v in video_list.videos))


def _plan(
    video_list: VideoList, truth: bytes | None, encoder: EncoderFiles, settings: ExtractSettings
) -> Plan:
    table = _table(video_list, truth)
    known = encoder.identity
    identity = Identity(
        encoder=known,
        preprocessing=encoder.preprocessing,
        frames=settings.frames,
        evaluation_frames=EVALUATION_RULE,
        training_frames=TRAINING_RULES[settings.sampling],
        view_rule=VIEW_RULES[settings.augmentation],
        seed=settings.seed,
        decoder=decoder_name(),
        batch_frames=settings.batch_frames,
        videos=table.digest,
        fold=settings.fold,
        precision=None if settings.precision == "auto" else settings.precision,
        device=None if settings.device == "auto" else settings.device.partition(":")[0],
        faces=_faces_rule(cropping_of(settings.faces)),
    )
    lists = tuple(ListFile(name=name, sha256=digest) for name, digest in video_list.lists)
    return Plan(
        schema_version=lowest_schema(table, identity, lists or None),
        identity=identity,
        videos=table,
        views=settings.views,
        frames=settings.frames,
        dim=known.dim,
        block_videos=suited_block(len(table.ids), 1),
        lists=lists or None,
    )


def _faces_rule(cropping: "Cropping | None") -> str:
    if cropping is None:
        return WHOLE_FRAMES
    from pipeline.video.crops import cropping_rule
    from pipeline.video.detector import check_detector

    check_detector()
    return cropping_rule(cropping)


def check_place(
    path: Path, video_list: VideoList, encoder: EncoderFiles, settings: ExtractSettings
) -> None:
    """Refuse a place where a store cannot be written, whatever the videos will be.

    Raises RefusedError if it holds a store of other settings, and what ``check_writable`` raises
    unless it holds a finished one.
    """
    if (path / "plan.json").is_file():
        stored = read_plan(path)
        plan, _ = make_plan(video_list, encoder.hashed_like(stored.identity.encoder), settings)
        identity = plan.identity.model_copy(update={"videos": stored.identity.videos})
        asked = plan.model_copy(update={"identity": identity, "videos": stored.videos})
        check_same(path, stored, asked)
        if (path / "manifest.json").is_file() and stored.views >= plan.views:
            return
    check_writable(path, "--store")


def _table(video_list: VideoList, truth: bytes | None) -> VideoTable:
    """What the store keeps about the list."""
    videos = video_list.videos
    row_of = {video.id: row for row, video in enumerate(videos)}
    votes = tuple(video.votes for video in videos)

    def rows(ids: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted(row_of[video_id] for video_id in ids))

    return VideoTable(
        name=video_list.name,
        ids=tuple(row_of),
        labels=tuple(video.label for video in videos),
        classes=video_list.classes,
        subjects=tuple(video.subject for video in videos),
        folds=tuple(
            PlanFold(name=fold.name, train=rows(fold.train), test=rows(fold.test))
            for fold in video_list.folds
        ),
        subsets={name: rows(ids) for name, ids in sorted(video_list.subsets.items())},
        truth_sha256=None if truth is None else sha256(truth),
        texts=video_list.texts,
        votes=None if {*votes} == {None} else votes,
        resplit=video_list.resplit,
        sources=tuple(v.source for v in videos) if all(v.source for v in videos) else None,
    )


def _truth(videos: Sequence[Video]) -> bytes | None:
    """The bytes of ``truth.npy``: one row per source frame; None if no video has frame labels."""
    parts = []
    for row, video in enumerate(videos):
        if video.frame_labels is not None:
            part = np.zeros(len(video.frame_labels), TRUTH_DTYPE)
            part["video"], part["label"] = row, video.frame_labels
            if video.frame_intensities is not None:
                part["intensity"] = video.frame_intensities
            parts.append(part)
    return encode_truth(np.concatenate(parts)) if parts else None


def parse_shard(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """``I/N``, or ``auto`` for this task of a SLURM array or process of torchrun -> (i, n).

    Raises RefusedError for anything else, and for ``auto`` if this is neither.
    """
    if text == "auto":
        text = _own_shard(environment)
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise RefusedError(f"--shard {text}: expected I/N with 0 <= I < N, such as 0/4, or auto")
    return int(found[1]), int(found[2])


def _own_shard(environment: Mapping[str, str]) -> str:
    if "SLURM_ARRAY_TASK_COUNT" in environment:
        names = ("ID", "MIN", "MAX", "STEP", "COUNT")
        texts = [environment.get(f"SLURM_ARRAY_TASK_{n}", str(int(n == "STEP"))) for n in names]
        if not all(re.fullmatch("[0-9]{1,9}", text) for text in texts):
            raise RefusedError(f"--shard auto: SLURM_ARRAY_TASK_… are {texts}; give --shard I/N")
        task, low, high, step, count = map(int, texts)
        if high and (high - low) // step + 1 != count:
            raise RefusedError("--shard auto: the SLURM array has gaps; give --shard I/N")
        return f"{(task - low) // step}/{count}"
    if "WORLD_SIZE" in environment:
        return f"{environment.get('RANK', 0)}/{environment['WORLD_SIZE']}"
    raise RefusedError(
        "--shard auto: this is neither a task of a SLURM array nor a process of torchrun "
        "(no SLURM_ARRAY_TASK_COUNT and no WORLD_SIZE is set); give --shard I/N"
    )


def cropping_of(faces: str) -> "Cropping | None":
    """How faces are cut out, of a name or of the rule in a store's identity; None if they are not.

    Raises RefusedError for anything else.
    """
    name = faces.partition(",")[0]
    if name == WHOLE_FRAMES:
        return None
    for known in CROPPINGS:
        if name == known:
            return known
    raise RefusedError(f"--faces {name}: expected {', '.join((WHOLE_FRAMES, *CROPPINGS))}")


def parse_precision(text: str) -> Precision:
    """The name of a precision; raises RefusedError for anything else."""
    for known in get_args(Precision):
        if text == known:
            return cast(Precision, known)
    raise RefusedError(f"--precision {text}: expected one of {', '.join(get_args(Precision))}")
