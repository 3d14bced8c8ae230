"""Videos -> a feature store: decode, encode, commit, block by block; goes on where it stopped.

::

    decode threads                              this thread
    video -> views ──(bounded look-ahead)──>    a batch a view -> encode -> block -> commit

Every frame has its place: row (video, frame) of a view sits at one position of one batch of fixed
size, whatever else is decoded, failed, added later or done by another worker.  So the features of a
video are a function of the plan alone, to the bit.
"""

import importlib.metadata
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.files import sha256
from cache.identity import Identity
from cache.plan import TRUTH_DTYPE, Plan, PlanFold, Row, Unit, VideoFacts, encode_truth, read_plan
from cache.store import create_store, open_store
from cache.writer import StoreWriter, check_same
from pipeline.datasets.video import Video, VideoList
from pipeline.extract.augmentation import VIEW_RULE
from pipeline.extract.encoder import EncoderFiles, Precision
from pipeline.extract.frames import BadVideoError, decoder_name, read_frames
from pipeline.extract.sampling import EVALUATION_RULE, TRAINING_RULE

if TYPE_CHECKING:
    import torch

    from pipeline.extract.encoder import Encoder


@dataclass(frozen=True)
class ExtractSettings:
    """How to extract; ``views`` to ``seed`` decide what the store holds, the rest does not."""

    views: int = 5
    frames: int = 16
    batch_frames: int = 128
    limit: int | None = None  # only the first videos of the list
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    workers: int | None = None  # decode threads
    shard: tuple[int, int] = (0, 1)  # (i, n): the blocks with block % n == i

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 0 <= i < n:
            raise RefusedError(f"shard {i}/{n}: expected I/N with 0 <= I < N, such as 0/4")
        for name in ("views", "frames", "batch_frames", "limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RefusedError(f"{name} is {value}, expected 1 or more")
        if self.batch_frames % self.frames:
            raise RefusedError(
                f"batch_frames is {self.batch_frames}, expected a multiple of frames, {self.frames}"
            )


@dataclass(frozen=True)
class Progress:
    """Where a running extraction stands; busy times are in seconds."""

    videos: int = 0  # finished in this run
    total: int = 0  # to do in this run
    failed: int = 0
    frames: int = 0  # encoded
    seconds: float = 0.0
    decode_seconds: float = 0.0  # summed over the decode threads
    waiting_seconds: float = 0.0  # the encoder waited for frames
    encode_seconds: float = 0.0
    write_seconds: float = 0.0
    workers: int = 0


@dataclass(frozen=True)
class Summary:
    """What an extraction did; ``digest`` is None while the store is unfinished."""

    store: Path
    digest: str | None
    progress: Progress
    failures: dict[str, str]  # of the whole store once finished, else of this run
    device: str = ""
    precision: str = ""
    stopped_by: int | None = None  # the signal

    @property
    def bottleneck(self) -> str:
        """``decode``, ``encode`` or ``write``; ``nothing to do`` where nothing was."""
        shares = {
            "decode": self.progress.waiting_seconds,
            "encode": self.progress.encode_seconds,
            "write": self.progress.write_seconds,
        }
        return (
            max(shares, key=lambda name: shares[name]) if any(shares.values()) else "nothing to do"
        )


OnProgress = Callable[[Progress], None]


def extract(
    video_list: VideoList,
    store_path: Path,
    encoder: EncoderFiles,
    settings: ExtractSettings | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Summary:
    """Fill the store at ``store_path`` with the features of ``video_list``, or go on filling it.

    A finished store of the same plan is returned at once, without importing torch.  Videos that
    cannot be read stay NaN, with one reason each.  The first SIGINT or SIGTERM ends the work after
    the current block, the second at once.  Raises RefusedError where the store was made from
    something else, StorageError where it cannot be written.
    """
    settings = settings or ExtractSettings()
    videos = video_list.videos[: settings.limit]
    plan, truth = make_plan(video_list, encoder, settings)
    if (store_path / "plan.json").is_file():
        stored = read_plan(store_path)
        check_same(store_path, stored, plan)
        if (store_path / "manifest.json").is_file() and stored.views >= plan.views:
            return _finished_summary(store_path)

    from pipeline.extract.encoder import Encoder

    loaded = Encoder(encoder, settings.device, settings.precision)
    plan = _completed(plan, loaded)
    fixed = {"text.safetensors": loaded.text_weights, "text.json": loaded.text_config}
    if truth is not None:
        fixed["truth.npy"] = truth
    writer = create_store(store_path, plan, fixed)
    writer.note(**_provenance(settings, loaded))
    with _stop_after_block() as stop:
        run = _Run(writer, loaded, settings, videos, on_progress)
        run.work(stop)
        digest = None if stop.signal else writer.finalise()
    failures = open_store(store_path).missing if digest else run.failures
    return Summary(
        store_path,
        digest,
        run.progress(),
        failures,
        str(loaded.device),
        loaded.precision,
        stop.signal,
    )


def make_plan(
    video_list: VideoList, encoder: EncoderFiles, settings: ExtractSettings
) -> tuple[Plan, bytes | None]:
    """(the plan of a store, the bytes of its ``truth.npy`` if there is such truth); no torch."""
    videos = video_list.videos[: settings.limit]
    if not videos:
        raise RefusedError(f"{video_list.name}: the list holds no videos")
    truth = _truth(videos)
    facts = _facts(video_list, videos, truth)
    known = encoder.identity
    identity = Identity(
        encoder=known,
        preprocessing=encoder.preprocessing,
        frames=settings.frames,
        evaluation_frames=EVALUATION_RULE,
        training_frames=TRAINING_RULE,
        view_rule=VIEW_RULE,
        seed=settings.seed,
        decoder=decoder_name(),
        batch_frames=settings.batch_frames,
        videos=facts.digest,
        precision=None if settings.precision == "auto" else settings.precision,
        device=None if settings.device == "auto" else settings.device.partition(":")[0],
    )
    plan = Plan(
        identity=identity,
        videos=facts,
        views=settings.views,
        frames=settings.frames,
        dim=known.dim,
    )
    return plan, truth


@dataclass
class _Stop:
    """Which signal asked the work to end, if any."""

    signal: int | None = None


@dataclass(frozen=True)
class _Decoded:
    """One video as its decode thread hands it over; no views where it failed."""

    row: Row
    seconds: float = 0.0
    views_VTCHW: "torch.Tensor | None" = None
    frame_index_VT: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class _Job:
    """A video being decoded, and the claim on its unit, which ends with the unit's last video."""

    unit: Unit
    row: int
    claim: ExitStack
    result: Future[_Decoded]


class _Run:
    """One process's part of an extraction."""

    def __init__(
        self,
        writer: StoreWriter,
        encoder: "Encoder",
        settings: ExtractSettings,
        videos: Sequence[Video],
        on_progress: OnProgress,
    ) -> None:
        self.failures: dict[str, str] = {}
        self._writer, self._encoder, self._settings = writer, encoder, settings
        self._videos, self._on_progress = videos, on_progress
        self._units = writer.todo(settings.shard)
        self._workers = settings.workers or len(os.sched_getaffinity(0))
        self._started = time.perf_counter()
        self._seconds = dict.fromkeys(("decode", "waiting", "encode", "write"), 0.0)
        self._done = self._encoded = 0

    def work(self, stop: _Stop) -> None:
        """Do all units of this shard that nobody else does, until told to stop."""
        self._on_progress(self.progress())
        pool = ThreadPoolExecutor(self._workers, initializer=_one_torch_thread)
        jobs = self._jobs(pool)
        ahead = deque(islice(jobs, 2 * self._workers))
        try:
            while ahead:
                self._do_unit(ahead, jobs)
                if stop.signal:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
            for job in ahead:
                job.claim.close()

    def progress(self) -> Progress:
        """Where this run stands."""
        return Progress(
            videos=self._done,
            total=sum(unit.stop - unit.start for unit in self._units),
            failed=len(self.failures),
            frames=self._encoded,
            seconds=time.perf_counter() - self._started,
            workers=self._workers,
            **{f"{name}_seconds": value for name, value in self._seconds.items()},
        )

    def _jobs(self, pool: ThreadPoolExecutor) -> Iterator[_Job]:
        """Claim units and start decoding their videos, as far ahead as the caller asks."""
        for unit in self._units:
            claim = ExitStack()
            if not claim.enter_context(self._writer.claim(unit)):
                claim.close()
                continue
            for row in range(unit.start, unit.stop):
                result = pool.submit(self._decode, self._videos[row], unit.views)
                yield _Job(unit, row, claim, result)

    def _do_unit(self, ahead: deque[_Job], jobs: Iterator[_Job]) -> None:
        unit, claim = ahead[0].unit, ahead[0].claim
        block = _Block(unit, self._encoder, self._settings, self._writer.plan.dim)
        for _ in range(unit.start, unit.stop):
            job = ahead.popleft()
            with self._timed("waiting"):
                decoded = job.result.result()
            ahead.extend(islice(jobs, 1))
            with self._timed("encode"):
                self._encoded += block.add(decoded)
            self._note(decoded)
        with self._timed("encode"):
            features = block.finish()
        with self._timed("write"):
            self._writer.commit(unit, features, block.frame_index, block.rows)
        claim.close()

    def _decode(self, video: Video, views: tuple[int, ...]) -> _Decoded:
        from pipeline.extract.views import ViewMaker

        started = time.perf_counter()
        settings, pixels = self._settings, self._encoder.files.preprocessing
        maker = ViewMaker(video.id, views, settings.frames, settings.seed, pixels)
        try:
            found = read_frames(video.path, maker.choose, maker.take)
            _check_truth(video, found.frames)
            views_VTCHW = maker.finish()
        except BadVideoError as error:
            row = Row(id=video.id, status="failed", reason=str(error))
            return _Decoded(row, time.perf_counter() - started)
        except Exception as error:
            error.add_note(f"while decoding video {video.id} ({video.path})")
            raise
        flags = found.flags + (
            ("repeats its last frame",) if found.frames < settings.frames else ()
        )
        row = Row(id=video.id, status="ok", frames=found.frames, flags=flags, sha256=found.sha256)
        return _Decoded(row, time.perf_counter() - started, views_VTCHW, maker.frame_index_VT)

    def _note(self, decoded: _Decoded) -> None:
        self._seconds["decode"] += decoded.seconds
        self._done += 1
        if decoded.row.status == "failed":
            self.failures[decoded.row.id] = decoded.row.reason
        self._on_progress(self.progress())

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[what] += time.perf_counter() - started


class _Block:
    """The features of one unit while it is being encoded."""

    def __init__(self, unit: Unit, encoder: "Encoder", settings: ExtractSettings, dim: int) -> None:
        import torch

        self.rows: list[Row] = []
        self._unit, self._encoder, self._dim = unit, encoder, dim
        videos, views = unit.stop - unit.start, len(unit.views)
        self.frame_index = np.full((videos, views, settings.frames), -1, np.int32)
        # One batch a view, filled video by video; n is the videos of a batch.
        size, n = encoder.files.preprocessing.size_px, settings.batch_frames // settings.frames
        self._batch_VnTCHW = torch.zeros(
            (views, n, settings.frames, 3, size, size), dtype=torch.uint8
        )
        self._encoded: list[torch.Tensor] = []

    def add(self, decoded: _Decoded) -> int:
        """Put a video into its place; returns the number of frames that were encoded for it."""
        place = len(self.rows) % self._batch_VnTCHW.shape[1]
        if decoded.views_VTCHW is None or decoded.frame_index_VT is None:
            self._batch_VnTCHW[:, place] = 0
        else:
            self._batch_VnTCHW[:, place] = decoded.views_VTCHW
            self.frame_index[len(self.rows)] = decoded.frame_index_VT
        self.rows.append(decoded.row)
        if place + 1 == self._batch_VnTCHW.shape[1]:
            self._encode()
        return 0 if decoded.views_VTCHW is None else decoded.views_VTCHW[:, :, 0, 0, 0].numel()

    def finish(self) -> NDArray[np.float16]:
        """The features, float16 [video, view, frame, dim]; NaN for videos that failed."""
        import torch

        rest = len(self.rows) % self._batch_VnTCHW.shape[1]
        if rest:
            self._batch_VnTCHW[:, rest:] = 0
            self._encode()
        features_VBTD = torch.cat(self._encoded, dim=1)[:, : len(self.rows)]
        features: NDArray[np.float16] = features_VBTD.transpose(0, 1).cpu().numpy().copy()
        for row, values in zip(self.rows, features, strict=True):
            if row.status == "failed":
                values[:] = np.nan
            elif not np.isfinite(values).all():
                raise RefusedError(
                    f"the encoder's features of video {row.id} overflow float16 at precision "
                    f"{self._encoder.precision}; use --precision fp32 or another encoder"
                )
        return features

    def _encode(self) -> None:
        import torch

        views, n, frames = self._batch_VnTCHW.shape[:3]
        encoded = [self._encoder.encode(batch.flatten(0, 1)) for batch in self._batch_VnTCHW]
        self._encoded.append(torch.stack(encoded).view(views, n, frames, self._dim))


def _facts(video_list: VideoList, videos: Sequence[Video], truth: bytes | None) -> VideoFacts:
    """What the store keeps of the list; folds and subsets lose the videos that ``limit`` cuts."""
    row_of = {video.id: row for row, video in enumerate(videos)}

    def rows(ids: Iterable[str]) -> tuple[int, ...]:
        return tuple(sorted(row_of[video_id] for video_id in ids if video_id in row_of))

    return VideoFacts(
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
    )


def _truth(videos: Sequence[Video]) -> bytes | None:
    """The bytes of ``truth.npy``: one row per source frame; None if no video has such truth."""
    parts = []
    for row, video in enumerate(videos):
        if video.frame_labels is not None:
            part = np.zeros(len(video.frame_labels), TRUTH_DTYPE)
            part["video"], part["label"] = row, video.frame_labels
            if video.frame_intensities is not None:
                part["intensity"] = video.frame_intensities
            parts.append(part)
    return encode_truth(np.concatenate(parts)) if parts else None


def _check_truth(video: Video, decoded: int) -> None:
    if video.frame_labels is not None and len(video.frame_labels) != decoded:
        raise BadVideoError(
            f"decoded {decoded} frames, its annotation describes {len(video.frame_labels)}"
        )


def _completed(plan: Plan, encoder: "Encoder") -> Plan:
    found = {
        "encoder": encoder.identity,
        "precision": encoder.precision,
        "device": encoder.device.type,
    }
    return plan.model_copy(update={"identity": plan.identity.model_copy(update=found)})


def _finished_summary(store_path: Path) -> Summary:
    store = open_store(store_path)
    return Summary(store_path, store.digest, Progress(), store.missing)


def _provenance(settings: ExtractSettings, encoder: "Encoder") -> dict[str, Any]:
    import torch

    cuda = encoder.device.type == "cuda"
    return {
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "open_clip_torch", "av")},
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "shard": list(settings.shard),
        "weights": encoder.files.weights_path.name,
    }


def _one_torch_thread() -> None:
    import torch

    # Videos run side by side; threads within one would only fight with the encoder's.
    torch.set_num_threads(1)


@contextmanager
def _stop_after_block() -> Iterator[_Stop]:
    """The first SIGINT or SIGTERM is noted, and the second acts as it always did."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        stop.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
