"""A specification -> the embedded face set on disk, in DFEW's own layout, and read back.

Every video has onset, apex and offset of one expression at a random time, is neutral elsewhere or
shows weaker expressions: one label, and many frames that do not show it.

    frame       0 1 2 3 4 5 6 7 8 9
    expression  . . h H H h . s s .     label happiness: four frames of ten show it

In the setting ``long``, every video has two expressions, and the label is their order.

    frame       0 1 2 3 4 5 6 7 8 9
    expression  . h H H . . s S s .     label happiness-surprise; backwards, surprise-happiness
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import count, permutations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from cache.errors import RefusedError
from cache.outside import MIB, parse_json, read_text
from pipeline.datasets.dfew import CLASSES, read_dfew
from pipeline.datasets.videos import Fold, Video, VideoList
from pipeline.demo.conditions import CLEAN, CONDITIONS, clean, impose
from pipeline.demo.face import (
    UNITS,
    Person,
    Scene,
    draw_occluder,
    draw_person,
    expression_units,
    render_face,
)
from pipeline.demo.people import ATTRIBUTES, GROUPS, HALVES, draw_member
from pipeline.engines.local import Local
from pipeline.engines.task import Boss, Task, results

# Increase it whenever the same specification gives other pixels, lists or ground truth.
FORMAT = 5
FOLDS, VIDEOS = 5, 700
DFEW_COUNTS = (2445, 1894, 2669, 2173, 1469, 145, 902)  # in the order of CLASSES
MIN_FRAMES, MAX_FRAMES = 11, 60
# Below this intensity a frame's expression cannot be seen: its true label is neutral.
VISIBLE = 0.2
NEUTRAL = CLASSES.index("neutral")
VIDEOS_PER_PERSON = 7
Setting = Literal["easy", "mid", "long", "robust", "people"]
# The classes of the setting long: expressions that look unlike, in an order.
ORDERS = tuple(permutations(("happiness", "anger", "surprise"), 2))
LONG_MIN_FRAMES, LONG_MAX_FRAMES = 128, 192
LISTS, FRAMES = "EmoLabel_DataSplit", "frames.csv"
_NAME = re.compile(r"faces(?:-([a-z]+))?(?:-seed(\d{1,9}))?(?:-videos(\d{1,6}))?")
_SCRATCH = re.compile(r"\.\w+\.[0-9a-f]{32}(\.mp4)?")  # names that _scratch gives

OnVideo = Callable[[int, int], None]  # (videos rendered, videos to render)


@dataclass(frozen=True)
class FacesSpec:
    """What determines the set: the same specification gives the same pixels of every frame.

    ``easy`` (the demonstration): peaks .7 to 1, distractors at most .4 of the peak. ``mid`` (the
    stress set): peaks .4 to 1, distractors .3 to .7 of the peak. The subset low_intensity has .6
    of that peak. ``long``: two expressions in 128 to 192 frames, whose order is the label, with
    peaks of .7 to 1 and neither distractors nor subsets; a video backwards is one of another class.
    ``robust``: ``videos`` with the courses of ``mid``, each rendered once clean and once under
    every one of CONDITIONS, which are the subsets; only clean videos are trained on. ``people``:
    the courses of ``mid``, shown by equally many people of every skin, age and with or without
    glasses, which are the subsets; each fold trains on one of these values, and on half of the
    people.
    """

    videos: int = VIDEOS
    setting: Setting = "easy"
    seed: int = 0
    size_px: int = 112

    def __post_init__(self) -> None:
        if self.videos < 2 * len(CLASSES):
            raise RefusedError(f"faces: {self.videos} videos, needs {2 * len(CLASSES)} or more")
        if self.setting not in get_args(Setting):
            *most, last = map(repr, get_args(Setting))
            raise RefusedError(
                f"faces: setting {self.setting!r}, expected {', '.join(most)} or {last}"
            )
        if self.setting == "people" and self.videos % 4:
            raise RefusedError(
                f"faces: {self.videos} videos; for folds of equal size, the setting 'people' needs "
                "a multiple of 4"
            )
        if self.size_px < 32 or self.size_px % 2:
            raise RefusedError(f"faces: size_px {self.size_px}, expected an even number >= 32")

    @property
    def name(self) -> str:
        """What the set is called: what differs from the embedded one follows ``faces``."""
        parts = [f"-{self.setting}"] if self.setting != "easy" else []
        parts += [f"-seed{self.seed}"] if self.seed else []
        parts += [f"-videos{self.videos}"] if self.videos != VIDEOS else []
        return "".join(["faces", *parts])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return tuple(map("-".join, ORDERS)) if self.setting == "long" else CLASSES

    @property
    def folds(self) -> tuple[str, ...]:
        """The names of the folds; of ``people``, the value that is trained on and the half."""
        if self.setting == "people":
            values = (value for pair in ATTRIBUTES for value in pair)
            return tuple(f"{value}-{half + 1}" for value in values for half in range(HALVES))
        return tuple(str(number + 1) for number in range(FOLDS))

    def digest(self) -> str:
        """sha256 of the specification and of the format's version."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PlannedVideo:
    """One video before it is drawn: who, which label, in which test fold, which subsets.

    Of the setting ``people``, ``fold`` is the half of the people.
    """

    index: int
    label: int
    fold: int
    subject: int
    subsets: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.index + 1:05d}"


@dataclass(frozen=True)
class Script:
    """Everything that determines a video's pixels, and the truth of every frame (see Video)."""

    person: Person
    units_TU: NDArray[np.float64]
    scenes: tuple[Scene, ...]
    labels_T: NDArray[np.int8]
    intensities_T: NDArray[np.float32]


def named_spec(name: str) -> FacesSpec:
    """The set of that name.

    >>> named_spec("faces-mid-seed7")
    FacesSpec(videos=700, setting='mid', seed=7, size_px=112)

    Raises RefusedError for a name that ``FacesSpec.name`` does not give.
    """
    found = _NAME.fullmatch(name)
    if found is not None:
        setting, seed, videos = found.groups()
        spec = FacesSpec(int(videos or VIDEOS), setting or "easy", int(seed or 0))  # type: ignore[arg-type]
        if spec.name == name:
            return spec
    raise RefusedError(
        f"no face set {name}; expected faces, or faces-SETTING-seedN-videosN without the parts "
        "that are as in the embedded set, such as faces-mid or faces-seed7"
    )


def faces_folder(spec: FacesSpec | None = None) -> Path:
    """Where the set is kept: in ``TGDFER_CACHE``, else in the user's cache folder."""
    named = os.environ.get("TGDFER_CACHE")
    cache = Path(named) if named else platformdirs.user_cache_path("tgdfer")
    return cache / f"faces-{(spec or FacesSpec()).digest()[:12]}"


def write_faces(
    root: Path,
    spec: FacesSpec | None = None,
    workers: int | None = None,
    on_video: OnVideo | None = None,
    limit: int | None = None,
) -> None:
    """Write the lists and the first ``limit`` videos, or all, under ``root`` in DFEW's layout.

    Existing videos are kept, and several processes may write at once.  ``on_video(done, total)`` is
    called before the first and after every video that was missing.  ``workers`` defaults to one
    per core and does not change a byte.  Raises RefusedError if ``root`` holds anything else.
    """
    spec = spec or FacesSpec()
    plan = plan_videos(spec)
    _claim(root, spec, plan)
    missing = [video for video in plan[:limit] if not all(p.exists() for p in _paths(root, video))]
    if missing:
        with _swept(root):
            processes = workers or len(os.sched_getaffinity(0))
            _write_videos(root, spec, missing, processes, on_video or (lambda done, total: None))


def ensure_faces(
    root: Path,
    spec: FacesSpec | None = None,
    workers: int | None = None,
    on_video: OnVideo | None = None,
    limit: int | None = None,
) -> VideoList:
    """The first ``limit`` videos under ``root``, or all; those that are missing are written."""
    write_faces(root, spec, workers, on_video, limit)
    return read_faces(root, limit=limit)


def preview_faces(root: Path, spec: FacesSpec | None = None, limit: int | None = None) -> VideoList:
    """Ids, labels and folds of the first videos, or all, before anything is rendered."""
    spec = spec or FacesSpec()
    plan = plan_videos(spec)
    videos = tuple(Video(video.id, _paths(root, video)[0], video.label) for video in plan)
    return VideoList(spec.name, spec.classes, videos, plan_folds(spec, plan)).first(limit)


def read_faces(root: Path, source: str = "auto", limit: int | None = None) -> VideoList:
    """Read a written set, or its first videos, through the DFEW adapter."""
    marker = root / LISTS / "faces.json"
    if not marker.is_file():
        raise RefusedError(f"{root}: no face set here; write it with write_faces first")
    found = parse_json(read_text(marker, "the specification of a face set", MIB), marker)
    try:
        spec = FacesSpec(**found["spec"])
    except (KeyError, TypeError) as error:
        raise RefusedError(f"{marker}: not the specification of a face set: {error}") from None
    videos = read_dfew(root, source=source, limit=limit, classes=spec.classes)
    # The lists are numbered, as DFEW's are.
    names = {str(number): name for number, name in enumerate(spec.folds, 1)}
    folds = tuple(replace(fold, name=names.get(fold.name, fold.name)) for fold in videos.folds)
    return replace(videos, name=spec.name, folds=folds)


def plan_videos(spec: FacesSpec) -> list[PlannedVideo]:
    """Labels, test folds with disjoint subjects, and subsets, in the order of the ids."""
    if spec.setting == "people":
        return _plan_people(spec)
    rng = np.random.default_rng([spec.seed, 1])
    subjects_per_fold = max(1, round(spec.videos / VIDEOS_PER_PERSON / FOLDS))
    labels = np.repeat(np.arange(len(spec.classes)), _class_counts(spec))
    # Dealing the sorted labels out like cards gives every fold its share of every class.
    folds = np.arange(spec.videos) % FOLDS
    order = rng.permutation(spec.videos)
    plan = []
    for index, card in enumerate(order):
        fold = int(folds[card])
        subject = fold * subjects_per_fold + int(rng.integers(subjects_per_fold))
        label = int(labels[card])
        subsets = _draw_subsets(rng, label) if spec.setting in ("easy", "mid") else ()
        plan.append(PlannedVideo(index, label, fold, subject, subsets))
    return _vary(plan) if spec.setting == "robust" else plan


def plan_folds(spec: FacesSpec, plan: list[PlannedVideo]) -> tuple[Fold, ...]:
    """Who is trained on and tested in each fold; nobody is on both sides."""
    trained = [v for v in plan if spec.setting != "robust" or CLEAN in v.subsets]
    folds = []
    for name in spec.folds:
        if spec.setting == "people":
            value, half = name.rsplit("-", 1)
            train = [v.id for v in plan if v.fold == int(half) - 1 and value in v.subsets]
            test = [v.id for v in plan if v.fold != int(half) - 1]
        else:
            train = [v.id for v in trained if v.fold != int(name) - 1]
            test = [v.id for v in plan if v.fold == int(name) - 1]
        folds.append(Fold(name, tuple(train), tuple(test)))
    return tuple(folds)


def render_video(spec: FacesSpec, video: PlannedVideo) -> NDArray[np.uint8]:
    """All frames of a planned video, uint8 RGB [T, H, W, 3]; a pure function of its arguments."""
    script = write_script(spec, video)
    frames = zip(script.units_TU, script.scenes, strict=True)
    return np.stack([render_face(script.person, u, scene, spec.size_px) for u, scene in frames])


def write_script(spec: FacesSpec, video: PlannedVideo) -> Script:
    """What happens in a planned video, before any pixel is drawn."""
    script = _write_base(spec, video)
    if spec.setting != "robust":
        return script
    rng = np.random.default_rng([spec.seed, 4, _base(video).index])
    own, (condition,) = (script.person, script.units_TU, clean(script.scenes)), video.subsets
    return replace(script, scenes=impose(condition, *own, rng, spec.size_px))


def _write_base(spec: FacesSpec, video: PlannedVideo) -> Script:
    """The script without what a condition changes, which are neither labels nor intensities."""
    return _write_course(spec, _base(video) if spec.setting == "robust" else video)


def _base(video: PlannedVideo) -> PlannedVideo:
    """What all versions of a video have in common."""
    return replace(video, index=video.index // len(CONDITIONS), subsets=())


@lru_cache(maxsize=1)  # versions of a video follow each other
def _write_course(spec: FacesSpec, video: PlannedVideo) -> Script:
    rng = np.random.default_rng([spec.seed, 2, video.index])
    rng_person = np.random.default_rng([spec.seed, 3, video.subject])
    if spec.setting == "people":
        person = draw_member(rng_person, video.subsets)
    else:
        person = draw_person(rng_person)
    if spec.setting == "long":
        intensities_TK = draw_order(rng, video.label)
        frames = len(intensities_TK)
        return Script(
            person=person,
            units_TU=draw_units(rng, intensities_TK),
            scenes=tuple(draw_scenes(rng, frames)),
            labels_T=np.full(frames, -1, np.int8),  # no frame shows an order
            intensities_T=intensities_TK.max(1).astype(np.float32),
        )
    frames = int(np.clip(MIN_FRAMES + rng.gamma(2.0, 9.8), MIN_FRAMES, MAX_FRAMES))
    intensities_TK = _draw_course(rng, spec, video, frames)
    strongest_T = intensities_TK.max(1)
    return Script(
        person=person,
        units_TU=draw_units(rng, intensities_TK),
        scenes=tuple(draw_scenes(rng, frames, video.subsets)),
        labels_T=np.where(strongest_T >= VISIBLE, intensities_TK.argmax(1), NEUTRAL).astype(
            np.int8
        ),
        intensities_T=strongest_T.astype(np.float32),
    )


def draw_scenes(
    rng: np.random.Generator, frames: int, subsets: tuple[str, ...] = ()
) -> list[Scene]:
    """The scene of every frame: one camera and light, a head that drifts."""
    clock_T = np.linspace(0, 1, frames)
    turn = rng.uniform(0.45, 0.7) * rng.choice((-1, 1)) if "extreme_pose" in subsets else 0.0
    yaw_T = turn + rng.normal(0, 0.18) + _drift(rng, clock_T, 0.12)
    pitch_T = rng.normal(0, 0.09) + _drift(rng, clock_T, 0.06)
    roll_T = rng.normal(0, 0.1) + _drift(rng, clock_T, 0.05)
    shift_x_T = rng.normal(0, 0.025) + _drift(rng, clock_T, 0.015)
    shift_y_T = rng.normal(0, 0.012) + _drift(rng, clock_T, 0.01)
    scale_T = rng.uniform(0.8, 1.05) + _drift(rng, clock_T, 0.025)
    camera = Scene(
        light=rng.uniform(0, 0.55),
        light_angle=rng.uniform(-np.pi, np.pi),
        gain=tuple((rng.uniform(0.5, 1.1) * rng.uniform(0.92, 1.08, 3)).tolist()),
        blur_px=rng.uniform(0.0, 1.6),
        noise=rng.uniform(0, 10),
        occluder=draw_occluder(rng) if "occluded" in subsets else None,
    )
    noise_seed = int(rng.integers(2**31))
    return [
        replace(
            camera,
            yaw=float(yaw_T[t]),
            pitch=float(pitch_T[t]),
            roll=float(roll_T[t]),
            shift_x=float(shift_x_T[t]),
            shift_y=float(shift_y_T[t]),
            scale=float(scale_T[t]),
            noise_seed=noise_seed + t,
        )
        for t in range(frames)
    ]


def draw_order(rng: np.random.Generator, label: int) -> NDArray[np.float64]:
    """Class intensities [T, K] of a long video; backwards, as likely for the opposite order."""
    frames = int(rng.integers(LONG_MIN_FRAMES, LONG_MAX_FRAMES + 1))
    course_TK = np.zeros((frames, len(CLASSES)))
    for name, middle in zip(ORDERS[label], (0.25, 0.75), strict=True):
        length = rng.uniform(0.25, 0.4) * frames
        start = (middle + rng.uniform(-0.05, 0.05)) * frames - length / 2
        course_TK[:, CLASSES.index(name)] = rng.uniform(0.7, 1) * _pulse(rng, frames, start, length)
    return course_TK


def draw_units(
    rng: np.random.Generator, intensities_TK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Class intensities [T, K] -> action units [T, U]; each call draws new manner and habits."""
    prototypes_KU = np.stack([expression_units(name) for name in CLASSES]).astype(np.float64)
    manner_KU = rng.uniform(0.6, 1.1, prototypes_KU.shape)
    units_TU = intensities_TK @ (prototypes_KU * manner_KU)
    habit_U = rng.uniform(0, 0.2, len(UNITS)) * (rng.random(len(UNITS)) < 0.3)
    units_TU = np.clip(units_TU + habit_U, 0, 1)
    frames = len(units_TU)
    blink_T = np.zeros(frames)
    for frame in np.flatnonzero(rng.random(frames) < 0.03):
        blink_T[frame : frame + 2] = (1.0, 0.6)[: frames - frame]
    units_TU[:, UNITS.index(45)] = blink_T
    return units_TU


def _plan_people(spec: FacesSpec) -> list[PlannedVideo]:
    """Labels dealt out like cards to GROUPS, and within each of them to its people."""
    rng = np.random.default_rng([spec.seed, 1])
    people = max(1, round(spec.videos / VIDEOS_PER_PERSON / len(GROUPS)))
    labels = np.repeat(np.arange(len(spec.classes)), _class_counts(spec))
    plan = []
    for index, card in enumerate(rng.permutation(spec.videos).tolist()):
        turn, group = divmod(card, len(GROUPS))
        values, half = GROUPS[group]
        subject = group * people + turn % people
        plan.append(PlannedVideo(index, int(labels[card]), half, subject, values))
    return plan


def _vary(plan: list[PlannedVideo]) -> list[PlannedVideo]:
    """Every video under all conditions, one after the other."""
    versions = ((video, condition) for video in plan for condition in CONDITIONS)
    return [replace(v, index=n, subsets=(name,)) for n, (v, name) in enumerate(versions)]


def _class_counts(spec: FacesSpec) -> list[int]:
    """DFEW's imbalance, with at least one video per fold (if there are enough) and 20 disgust.

    Of the setting long, as many of each class, or one more.
    """
    videos = spec.videos
    if spec.setting == "long":
        return [(videos + k) // len(ORDERS) for k in range(len(ORDERS))]
    floor = min(FOLDS, videos // len(CLASSES))
    floors = [floor] * len(CLASSES)
    floors[CLASSES.index("disgust")] = max(floor, min(20, videos // 35))
    total = sum(DFEW_COUNTS)
    counts = [
        max(least, round(Fraction(videos * count, total)))
        for count, least in zip(DFEW_COUNTS, floors, strict=True)
    ]
    while sum(counts) != videos:
        step = 1 if sum(counts) < videos else -1
        counts[int(np.argmax(counts))] += step
    return counts


def _draw_subsets(rng: np.random.Generator, label: int) -> tuple[str, ...]:
    chances = (("occluded", 0.12), ("extreme_pose", 0.1), ("low_intensity", 0.08))
    drawn = [name for name, chance in chances if rng.random() < chance]
    # A neutral video has no intensity that could be low.
    return tuple(name for name in drawn if label != NEUTRAL or name != "low_intensity")


def _drift(
    rng: np.random.Generator, clock_T: NDArray[np.float64], size: float
) -> NDArray[np.float64]:
    """A slow wave of at most ``size``."""
    wave_T = np.sin(2 * np.pi * (rng.uniform(0.3, 1.2) * clock_T + rng.random()))
    return rng.uniform(0.3, 1.0) * size * wave_T


def _draw_course(
    rng: np.random.Generator, spec: FacesSpec, video: PlannedVideo, frames: int
) -> NDArray[np.float64]:
    """Intensity of every class in every frame: the label's own course and its distractors."""
    course_TK = np.zeros((frames, len(CLASSES)))
    peak = rng.uniform(0.7, 1.0) if spec.setting == "easy" else rng.uniform(0.4, 1.0)
    if "low_intensity" in video.subsets:
        peak *= 0.6
    length = rng.uniform(0.38, 0.72) * frames
    start = rng.uniform(-0.05, 1.05) * (frames - length)
    if video.label != NEUTRAL:
        course_TK[:, video.label] = peak * _pulse(rng, frames, start, length)
    others = [k for k in range(len(CLASSES)) if k not in (video.label, NEUTRAL)]
    low, high = (0.15, 0.4) if spec.setting == "easy" else (0.3, 0.7)
    for _ in range(int(rng.integers(1, 4))):
        other = int(rng.choice(others))
        room_before, room_after = start, frames - start - length
        side_length = rng.uniform(0.15, 0.35) * frames
        middle = (
            start / 2
            if rng.random() * (room_before + room_after) < room_before
            else (frames - room_after / 2)
        )
        pulse_T = _pulse(rng, frames, middle - side_length / 2, side_length)
        strength = peak * rng.uniform(low, high)
        course_TK[:, other] = np.maximum(course_TK[:, other], strength * pulse_T)
    # Expressions cross-fade: the others get what the label's own expression leaves.
    own_T = course_TK[:, video.label].copy()
    course_TK *= (1 - own_T / peak)[:, None]
    course_TK[:, video.label] = own_T
    return course_TK


def _pulse(
    rng: np.random.Generator, frames: int, start: float, length: float
) -> NDArray[np.float64]:
    """Onset, apex, offset in [0, 1]: smooth steps up and down, flat between."""
    onset, offset = rng.uniform(0.15, 0.4, 2) * length
    frame_T = np.arange(frames) + 0.5
    up_T = np.clip((frame_T - start) / onset, 0, 1)
    down_T = np.clip((start + length - frame_T) / offset, 0, 1)
    value_T = np.minimum(up_T, down_T)
    smooth_T: NDArray[np.float64] = value_T**2 * (3 - 2 * value_T)
    return smooth_T


def _claim(root: Path, spec: FacesSpec, plan: list[PlannedVideo]) -> None:
    """Write the lists and the truth, unless they are there; refuse anything else in ``root``."""
    marker = root / LISTS / "faces.json"
    if not marker.is_file():
        others = [path for path in root.glob("*") if not path.name.startswith(f".{LISTS}.")]
        if others and not marker.is_file():  # another process may just have written them
            raise RefusedError(f"{root}: holds other files but no face set; choose an empty folder")
        scratch = _scratch(root / LISTS)
        scratch.mkdir(parents=True)
        _write_lists(scratch, spec, plan)
        record = {"format": FORMAT, "spec": asdict(spec), "digest": spec.digest()}
        (scratch / "faces.json").write_text(json.dumps(record, indent=1) + "\n")
        _put_folder(scratch, root / LISTS)
    found = parse_json(read_text(marker, "the specification of a face set", MIB), marker)
    if found.get("digest") != spec.digest():
        raise RefusedError(
            f"{root}: holds the face set {found.get('spec')} (format {found.get('format')}), "
            f"asked for {asdict(spec)} (format {FORMAT}); choose another root, or delete it"
        )
    _refuse_changed_lists(marker.parent, spec, plan)


@contextmanager
def _swept(root: Path) -> Iterator[None]:
    """Remove what killed processes left, unless another process is rendering, as the caller will.

    Where locks do not work, nothing is removed.
    """
    with (root / LISTS / "faces.json").open("rb") as marker:
        with suppress(OSError):
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for litter in root.glob("Clip/*/.*"):
                if _SCRATCH.fullmatch(litter.name):
                    _remove(litter)
        with suppress(OSError):
            fcntl.flock(marker, fcntl.LOCK_SH)
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_videos(
    root: Path, spec: FacesSpec, plan: list[PlannedVideo], processes: int, on_video: OnVideo
) -> None:
    """Write all videos of ``plan``; one process means this one."""
    done = count(1)
    on_video(0, len(plan))
    if processes == 1:
        for video in plan:
            _write_video(root, spec, video)
            on_video(next(done), len(plan))
        return
    tasks = [Task(video.id, partial(_write_for, root, spec, video)) for video in plan]
    engine = Local(processes, "the current videos")
    results(engine, tasks, lambda _: on_video(next(done), len(plan)))


def _write_for(root: Path, spec: FacesSpec, video: PlannedVideo, boss: Boss) -> None:
    _write_video(root, spec, video)
    boss.report(1)


def _write_video(root: Path, spec: FacesSpec, video: PlannedVideo) -> None:
    """One mp4 and one folder of jpg frames, each given its name only when it is complete."""
    mp4, folder = _paths(root, video)
    frames_THWC = render_video(spec, video)
    mp4.parent.mkdir(parents=True, exist_ok=True)
    scratch_mp4, scratch = _scratch(mp4), _scratch(folder)
    write_mp4(scratch_mp4, frames_THWC)
    os.replace(scratch_mp4, mp4)
    scratch.mkdir(parents=True)
    for number, frame_HWC in enumerate(frames_THWC, start=1):
        name = f"{video.id}_{number:05d}.jpg"
        Image.fromarray(frame_HWC).save(scratch / name, quality=95)
    _put_folder(scratch, folder)


def _paths(root: Path, video: PlannedVideo) -> tuple[Path, Path]:
    clip = root / "Clip"
    return clip / "original" / f"{video.id}.mp4", clip / "clip_224x224" / video.id


def _scratch(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process uses."""
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")


def _put_folder(scratch: Path, folder: Path) -> None:
    """Move a complete folder to its place, unless another process was there first."""
    try:
        os.replace(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(scratch)


def write_mp4(path: Path, frames_THWC: NDArray[np.uint8]) -> None:
    """Write frames [T, H, W, 3] at 25 per second; the same frames give the same bytes."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Without cpu-independent, x264 gave different bytes from one call to the next.
        exact = "cpu-independent=1:threads=1:lookahead-threads=1"
        stream.options = {"crf": "12", "preset": "veryfast", "x264-params": exact}
        for frame_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_lists(lists: Path, spec: FacesSpec, plan: list[PlannedVideo]) -> None:
    for name, text in _list_texts(spec, plan).items():
        (lists / name).parent.mkdir(exist_ok=True)
        (lists / name).write_text(text)
    (lists / FRAMES).write_text(_frames_text(spec, plan))


def _refuse_changed_lists(lists: Path, spec: FacesSpec, plan: list[PlannedVideo]) -> None:
    for name, text in _list_texts(spec, plan).items():
        if read_text(lists / name, "a list of the face set", 64 * MIB) != text:
            raise RefusedError(f"{lists / name} was changed; delete {lists.parent} and start again")
    if not (lists / FRAMES).is_file():
        raise RefusedError(f"{lists / FRAMES} is missing; delete {lists.parent} and start again")


def _list_texts(spec: FacesSpec, plan: list[PlannedVideo]) -> dict[str, str]:
    """DFEW's official split, with unpadded ids and labels from 1, subjects and subsets."""
    names = sorted({name for video in plan for name in video.subsets})
    truth = {
        "subjects": {video.id: f"s{video.subject:03d}" for video in plan},
        "subsets": {name: [v.id for v in plan if name in v.subsets] for name in names},
    }
    texts = {"truth.json": json.dumps(truth, indent=1) + "\n"}
    labels = {video.id: video.label for video in plan}
    for number, fold in enumerate(plan_folds(spec, plan), 1):
        for part, ids in (("train", fold.train), ("test", fold.test)):
            rows = "".join(f"{int(video_id)},{labels[video_id] + 1}\n" for video_id in ids)
            texts[f"{part}(single-labeled)/set_{number}.csv"] = "video_name,label\n" + rows
    return texts


def _frames_text(spec: FacesSpec, plan: list[PlannedVideo]) -> str:
    """The truth of every frame."""
    rows = ["video_name,frame,label,intensity"]
    for video in plan:
        script = _write_base(spec, video)
        frames = zip(script.labels_T, script.intensities_T, strict=True)
        rows += [
            f"{video.id},{t},{label + 1},{value:.4f}" for t, (label, value) in enumerate(frames, 1)
        ]
    return "\n".join(rows) + "\n"
