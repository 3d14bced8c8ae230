"""Videos -> a feature store: decode, encode, commit, block by block; resumes where it stopped.

::

    decode threads          this thread             encode threads            this thread
    video -> views ───────> videos of a batch ────> batch -> features ──────> block -> store
       bounded look-ahead             bounded queue            at most two blocks

On a GPU, decode threads upload the frames that some view shows, and the GPU makes the views.

Every frame has a fixed position in a batch of fixed size, whatever else is decoded, fails, is added
later or is done by another worker.  So the features of a video depend, bit for bit, on the plan
alone, with the same libraries on the same kind of processor.
"""

import importlib.metadata
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.files import storage_errors
from cache.plan import Plan, Unit, VideoStatus, read_plan
from cache.store import Store, create_store, open_store
from cache.writer import StoreWriter, check_same
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import EncoderFiles
from pipeline.extract.planning import (
    ExtractSettings,
    cropping_of,
    known_to,
    make_plan,
    suited_batch,
    suited_block,
)
from pipeline.extract.reuse import refuse_other, reuse_features
from pipeline.interrupt import stop_on_signal
from pipeline.profile import stage
from pipeline.resources import usable_cores
from pipeline.video.frames import Found, read_frames
from pipeline.video.images import BadVideoError
from pipeline.video.isolated import DecoderDeathError, read_frames_isolated

if TYPE_CHECKING:
    from pipeline.encoders.clip import Encoder
    from pipeline.extract.block import Block, Decoded


STAGES = ("decode", "upload", "views", "encode", "write")


@dataclass(frozen=True)
class ExtractProgress:
    """Progress of a running extraction; busy times are in seconds.

    On a GPU, those of upload and views are the GPU's; else, like decoding, of the decode threads.
    """

    videos: int = 0  # finished in this run
    total: int = 0  # to do in this run
    earlier: int = 0  # of this shard, done by earlier runs
    failed: int = 0
    frames: int = 0  # encoded
    seconds: float = 0.0
    decode_seconds: float = 0.0  # summed over the decode threads
    upload_seconds: float = 0.0
    views_seconds: float = 0.0
    encode_seconds: float = 0.0  # summed over the threads that encode
    write_seconds: float = 0.0
    workers: int = 1  # decode threads; on a CPU they encode as well
    encoders: int = 1
    device: str = "cpu"

    @property
    def busy(self) -> dict[str, float]:
        """The share of the time in which each stage was busy, of all the threads that it has."""
        own = {"decode": self.workers, "encode": self.encoders}
        own |= {"views": self.workers} if self.device == "cpu" else {}
        whole = max(self.seconds, 1e-9)
        return {
            name: getattr(self, f"{name}_seconds") / own.get(name, 1) / whole for name in STAGES
        }


@dataclass(frozen=True)
class Summary:
    """What an extraction did; ``digest`` is None while the store is unfinished."""

    store: Path
    digest: str | None
    progress: ExtractProgress
    failures: dict[str, str]  # of the whole store once finished, else of this run
    device: str = ""
    precision: str = ""
    stopped_by: int | None = None  # the signal
    reused: int = 0  # videos whose features came from another store
    shard_done: bool = True  # no block of this process's shard is left to do

    @property
    def bottleneck(self) -> str:
        """The stage that was busiest, or ``nothing to do``."""
        busy = self.progress.busy
        return max(STAGES, key=lambda name: busy[name]) if any(busy.values()) else "nothing to do"


# While one waits for its features to be copied back, the other starts its batch.
_CUDA_ENCODERS = 2
_LIBRARIES = ("torch", "open_clip_torch", "timm", "av")
_WAITING_BATCHES = 4  # for each thread that encodes

OnProgress = Callable[[ExtractProgress], None]


def extract(
    video_list: VideoList,
    store_path: Path,
    encoder: EncoderFiles,
    settings: ExtractSettings | None = None,
    on_progress: OnProgress = lambda progress: None,
    reuse: Store | None = None,
) -> Summary:
    """Fill the store at ``store_path`` with the features of ``video_list``, or continue filling it.

    A finished store of the same plan is returned at once, without importing torch.  Blocks that
    ``reuse`` holds are copied.  Videos that cannot be read stay NaN, with one reason each.  The
    first SIGINT or SIGTERM ends the work after the current block, the second at once.  Raises
    RefusedError if the store or ``reuse`` was made from something else, StorageError if the store
    cannot be written.
    """
    settings = settings or ExtractSettings()
    asked = ask(video_list, store_path, encoder, settings)
    if isinstance(asked, Summary):
        return asked
    return extract_here(asked, settings, on_progress, reuse)


def ask(
    video_list: VideoList, store_path: Path, encoder: EncoderFiles, settings: ExtractSettings
) -> "Asked | Summary":
    """What is to be extracted; the summary of a store that holds all of it already.

    Imports no torch. Raises RefusedError if the store was made from something else.
    """
    stored = read_plan(store_path) if (store_path / "plan.json").is_file() else None
    if stored is not None:
        encoder = encoder.hashed_like(stored.identity.encoder)
        video_list = known_to(stored, video_list)
    plan, truth = make_plan(video_list, encoder, settings)
    if stored is not None:
        check_same(store_path, stored, plan)
        if (store_path / "manifest.json").is_file() and stored.views >= plan.views:
            return _finished_summary(store_path)
    return Asked(store_path, video_list.videos, encoder, plan, truth)


def extract_here(
    asked: "Asked", settings: ExtractSettings, on_progress: OnProgress, reuse: Store | None
) -> Summary:
    """Fill the store in this process, and finish it if no block is left for others."""
    begun = begin(asked, settings, reuse)
    with stop_on_signal("the current block") as stop:
        summary = fill(begun, on_progress, lambda: bool(stop.signal))
    return replace(summary, stopped_by=stop.signal)


@dataclass(frozen=True)
class Asked:
    """What is to be extracted, as the store knows it."""

    store_path: Path
    videos: Sequence[Video]
    encoder: EncoderFiles
    plan: Plan
    truth: bytes | None


@dataclass(frozen=True)
class Begun:
    """An extraction whose encoder is loaded and whose store is open."""

    videos: Sequence[Video]
    settings: ExtractSettings
    encoder: "Encoder"
    writer: StoreWriter
    reuse: Store | None


def begin(asked: Asked, settings: ExtractSettings, reuse: Store | None) -> Begun:
    """Load the encoder and create or open the store; raises RefusedError if they do not fit."""
    from pipeline.encoders.clip import Encoder

    encoder = Encoder(asked.encoder, settings.device, settings.precision)
    plan = completed_plan(asked.plan, encoder, settings)
    if reuse is not None:
        refuse_other(reuse, plan, asked.encoder)
    fixed = {"text.safetensors": encoder.text_weights, "text.json": encoder.text_config}
    truth = {"truth.npy": asked.truth} if asked.truth else {}
    writer = create_store(asked.store_path, plan, fixed | truth)
    writer.note(**_provenance(settings, encoder, plan))
    return Begun(asked.videos, settings, encoder, writer, reuse)


def fill(
    begun: Begun, on_progress: OnProgress, stopped: Callable[[], bool], finalise: bool = True
) -> Summary:
    """Do the blocks of a shard until ``stopped``; finish the store if all are done."""
    videos, settings, writer, reuse = begun.videos, begun.settings, begun.writer, begun.reuse
    shard = settings.shard
    reused = reuse_features(writer, reuse, videos, shard) if reuse is not None else 0
    run = _Run(writer, begun.encoder, settings, videos, on_progress)
    run.work(stopped)
    digest = writer.finalise() if finalise and not stopped() else None
    return Summary(
        writer.path,
        digest,
        run.progress(),
        open_store(writer.path).missing if digest else run.failures,
        str(begun.encoder.device),
        begun.encoder.precision,
        reused=reused,
        shard_done=not writer.todo(shard),
    )


@dataclass(frozen=True)
class _DecodeJob:
    """A video being decoded, and the claim on its unit, which ends with the unit's last video."""

    unit: Unit
    row: int
    claim: ExitStack
    result: "Future[Decoded]"


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
        self._todo = videos_in(self._units)
        self._earlier = videos_in(writer.plan.units(), settings.shard) - self._todo
        self._workers = settings.workers or usable_cores()
        on_cpu = encoder.device.type == "cpu"
        self._encoders = self._workers if on_cpu else _CUDA_ENCODERS
        self._started = time.perf_counter()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._done = self._frames = 0
        self._cropping = cropping_of(settings.faces)
        self._decoding: dict[int, float] = {}  # row decoded in this process -> when it began

    def work(self, stopped: Callable[[], bool]) -> None:
        """Do all units of this shard that no other process does, until ``stopped``."""
        self._on_progress(self.progress())
        with ExitStack() as pools:
            pool = pools.enter_context(_pool(self._workers))
            # A CPU is used best when each core does its own batch: torch's threads wait for each
            # other, and wait long while a core is busy decoding.
            on_cpu = self._encoder.device.type == "cpu"
            encoders = pool if on_cpu else pools.enter_context(_pool(_CUDA_ENCODERS))
            jobs = self._jobs(pool)
            ahead = deque(islice(jobs, 2 * self._workers))
            unfinished: deque[tuple[Block, ExitStack]] = deque()
            try:
                while ahead and not stopped():
                    unfinished.append(self._pack_unit(ahead, jobs, encoders))
                    # The last batches of a block are encoded while the next is being decoded.
                    if len(unfinished) > 1:
                        self._commit(*unfinished.popleft())
                while unfinished:
                    self._commit(*unfinished.popleft())
            finally:
                pool.shutdown(cancel_futures=True)
                for claim in [job.claim for job in ahead] + [claim for _, claim in unfinished]:
                    claim.close()

    def progress(self) -> ExtractProgress:
        """Progress of this run so far."""
        return ExtractProgress(
            videos=self._done,
            total=self._todo,
            earlier=self._earlier,
            failed=len(self.failures),
            frames=self._frames,
            seconds=time.perf_counter() - self._started,
            workers=self._workers,
            encoders=self._encoders,
            device=self._encoder.device.type,
            **{f"{name}_seconds": value for name, value in self._seconds.items()},
        )

    def _jobs(self, pool: ThreadPoolExecutor) -> Iterator[_DecodeJob]:
        """Claim units and start decoding their videos, as far ahead as the caller asks."""
        for unit in self._units:
            claim = ExitStack()
            if not claim.enter_context(self._writer.claim(unit)):
                claim.close()
                continue
            for row in range(unit.start, unit.stop):
                result = pool.submit(self._decode, row, unit.views)
                yield _DecodeJob(unit, row, claim, result)

    def _pack_unit(
        self, ahead: deque[_DecodeJob], jobs: Iterator[_DecodeJob], encoders: Executor
    ) -> "tuple[Block, ExitStack]":
        from pipeline.extract.block import Block

        unit, claim = ahead[0].unit, ahead[0].claim
        most = _WAITING_BATCHES * self._encoders
        block = Block(unit, self._writer.plan, self._encoder, encoders, most)
        for _ in range(unit.start, unit.stop):
            decoded = self._wait(ahead.popleft())
            ahead.extend(islice(jobs, 1))
            block.add(decoded)
            self._note(decoded)
        return block, claim

    def _wait(self, job: _DecodeJob) -> "Decoded":
        while not wait([job.result], timeout=1).done:
            seconds = time.perf_counter() - self._decoding.get(job.row, math.inf)
            if seconds > self._settings.decode_seconds:
                print(
                    f"video {self._videos[job.row].id!r} hangs its decoder; what was committed is "
                    "kept: run the same command again, and it is decoded in a separate process "
                    "and left out if it hangs again",
                    file=sys.stderr,
                    flush=True,
                )
                # A thread inside a decoder cannot be stopped, and would be waited for at exit.
                os._exit(1)
        return job.result.result()

    def _commit(self, block: "Block", claim: ExitStack) -> None:
        features = block.finish()
        started = time.perf_counter()
        with stage("write"):
            self._writer.commit(block.unit, features, block.frame_index, block.rows)
        claim.close()
        self._seconds["write"] += time.perf_counter() - started
        self._seconds["encode"] += block.encode_seconds
        self._on_progress(self.progress())

    def _decode(self, row: int, views: tuple[int, ...]) -> "Decoded":
        from pipeline.extract.block import Decoded
        from pipeline.video.views import decode_views

        started = time.perf_counter()
        video, settings = self._videos[row], self._settings
        pixels, form = self._encoder.files.preprocessing, self._encoder.pixel_format
        segment = self._encoder.files.segment
        frames = settings.frames * segment
        read: Callable[..., Found] = read_frames
        mark = self._writer.decoding_mark(row)
        if settings.isolate or mark.is_file():
            read = partial(read_frames_isolated, seconds_max=settings.decode_seconds)
        else:
            self._decoding[row] = started
        with storage_errors(mark):
            mark.touch()
        died = False
        try:
            with stage("decode"):
                wanted = (views, frames, settings.seed, pixels)
                made = decode_views(video, *wanted, read, settings.names, self._cropping, form)
        except BadVideoError as error:
            died = isinstance(error, DecoderDeathError)  # its mark stays: a repair isolates it
            failed = VideoStatus(id=video.id, status="failed", reason=str(error))
            return Decoded(failed, {"decode": time.perf_counter() - started})
        except Exception as error:
            error.add_note(f"while decoding video {video.id!r} ({str(video.path)!r})")
            raise
        finally:
            self._decoding.pop(row, None)
            if not died:
                mark.unlink(missing_ok=True)
        spent = {"upload": made.upload_seconds, "views": made.views_seconds}
        spent["decode"] = time.perf_counter() - started - sum(spent.values())
        described = _describe(video, made.found, made.length < frames)
        middle_VT = made.frame_index_VT[:, segment // 2 :: segment]
        return Decoded(described, spent, made.views_VTCHW, middle_VT)

    def _note(self, decoded: "Decoded") -> None:
        for name, seconds in decoded.seconds.items():
            self._seconds[name] += seconds
        self._done += 1
        if decoded.frame_index_VT is not None:
            self._frames += decoded.frame_index_VT.size
        if decoded.row.status == "failed":
            self.failures[decoded.row.id] = decoded.row.reason
        self._on_progress(self.progress())


def _describe(video: Video, found: Found, is_short: bool) -> VideoStatus:
    short = ("repeats its last frame",) if is_short else ()
    return VideoStatus(
        id=video.id,
        status="ok",
        frames=found.frames,
        flags=found.flags + short,
        sha256=found.sha256,
    )


def completed_plan(plan: Plan, encoder: "Encoder", settings: ExtractSettings) -> Plan:
    """The plan with what only the loaded encoder knows."""
    batch = settings.batch_frames or suited_batch(settings.frames, encoder.device.type)
    found = {
        "batch_frames": batch,
        "encoder": encoder.identity,
        "precision": encoder.precision,
        "device": encoder.device.type,
    }
    return plan.model_copy(
        update={
            "identity": plan.identity.model_copy(update=found),
            "block_videos": suited_block(len(plan.videos.ids), batch // settings.frames),
        }
    )


def videos_in(units: Iterable[Unit], shard: tuple[int, int] = (0, 1)) -> int:
    """How many videos the units of a shard hold."""
    i, n = shard
    return sum(unit.stop - unit.start for unit in units if unit.block % n == i)


def _finished_summary(store_path: Path) -> Summary:
    store = open_store(store_path)
    return Summary(store_path, store.digest, ExtractProgress(), store.missing)


def _provenance(settings: ExtractSettings, encoder: "Encoder", plan: Plan) -> dict[str, Any]:
    import torch

    cuda = encoder.device.type == "cuda"
    return {
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "device": torch.cuda.get_device_name(encoder.device)
        if cuda
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "shard": list(settings.shard),
        "weights": encoder.files.weights_path.name,
        "source": plan.videos.source,
        "lists": {file.name: file.sha256 for file in plan.lists or ()},
    }


def _pool(threads: int) -> ThreadPoolExecutor:
    import torch

    # One torch thread each: the pool's threads provide the parallelism.
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
