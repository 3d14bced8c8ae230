"""Videos -> the features of their windows, while other videos are still being decoded.

::

    decode threads            queue             this thread             encode threads
    video -> its frames ──> bounded ──> batches of any videos' frames ──> features

Every frame that a window shows is encoded once, however many windows show it, and forgotten; of a
long video only features are kept.  All batches have one size, so the features of a frame do not
depend on the others in its batch, and are those that extraction stores.
"""

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from queue import Full, Queue

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import RefusedError
from pipeline.encoders.clip import Encoder
from pipeline.predict.sources import Source
from pipeline.predict.windows import Sliding, Windows, place_windows, spaced_times
from pipeline.video.images import BadVideoError, decoder_errors
from pipeline.video.isolated import Decoder, read_frames_isolated
from pipeline.video.views import fit_for_evaluation

_POLL_SECONDS = 0.5

OnFrames = Callable[[int, int], None]  # (encoded so far, expected in all)


@dataclass(frozen=True)
class ReadSettings:
    """How videos are read and encoded; ``workers`` and batches change no result."""

    frames: int  # T of every window
    batch_frames: int
    sliding: Sliding | None = None
    fps: float = 25.0  # of folders of images, which do not say when they were taken
    decode_seconds: float = 3600.0
    workers: int | None = None

    def __post_init__(self) -> None:
        limits = {"fps": (0.01, 10_000), "decode_seconds": (0.1, 86_400)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise RefusedError(f"{name} is {value:g}, expected {least:g} to {most:g}")


@dataclass(frozen=True)
class Encoded:
    """What became of one source: its windows and their features, or the reason why there are none.

    ``pictures`` are the T frames as the encoder saw them if there is one window.
    """

    source: Source
    reason: str = ""
    flags: tuple[str, ...] = ()
    windows: Windows | None = None
    features_NTD: NDArray[np.float16] | None = None
    pictures_TCHW: torch.Tensor | None = None


@dataclass(frozen=True)
class _Frame:
    number: int  # of the source
    index: int  # in the video
    picture_CHW: torch.Tensor


@dataclass(frozen=True)
class _End:
    number: int
    outcome: Encoded | BaseException


class _Stopped(Exception):
    """Nobody wants the frames any more."""


@dataclass
class _Partial:
    """A source of which some frames may still be on their way."""

    features: dict[int, NDArray[np.float16]] = field(default_factory=dict)
    pictures: dict[int, torch.Tensor] = field(default_factory=dict)
    sent: int = 0  # frames to the encoder
    end: Encoded | None = None

    @property
    def is_whole(self) -> bool:
        """Whether no frame of it is on its way any more."""
        return self.end is not None and len(self.features) == self.sent


def encode_sources(
    sources: Sequence[Source],
    encoder: Encoder,
    settings: ReadSettings,
    on_frames: OnFrames = lambda done, total: None,
) -> Iterator[tuple[int, Encoded]]:
    """(number, what was found) of each source, as soon as it is done, in any order.

    A video that cannot be decoded, or that kills or hangs its decoder, is found with its reason.
    """
    reader = _Reader(sources, encoder, settings)
    batches = _Batches(encoder, settings.batch_frames)
    begun: defaultdict[int, _Partial] = defaultdict(_Partial)
    with ExitStack() as stack:
        on_cpu = encoder.device.type == "cpu"
        decoders, encoders = _pool(reader.workers), _pool(reader.workers if on_cpu else 2)
        stack.callback(reader.close)
        for pool in (decoders, encoders):
            stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(reader.stop)
        for number in range(len(sources)):
            decoders.submit(reader.read, number)
        ended = encoded = 0
        while ended < len(sources) or begun:
            if ended < len(sources):
                item = reader.queue.get()
                ended += isinstance(item, _End)
                _note(begun[item.number], item, settings.frames)
                if isinstance(item, _Frame):
                    batches.add(item, encoders)
            else:
                batches.flush(encoders)
            for number, index, features_D in batches.done(wait=ended == len(sources)):
                begun[number].features[index] = features_D
                encoded += 1
            on_frames(encoded, reader.expected())
            for number in [number for number, partial in begun.items() if partial.is_whole]:
                yield number, _finish(begun.pop(number))


def read_pictures(source: Source, index_T: NDArray[np.int32], encoder: Encoder) -> torch.Tensor:
    """Some frames of a source that was read before, as the encoder sees them, uint8 [T, C, H, W].

    Raises BadVideoError if it cannot be read any more.
    """
    found: dict[int, torch.Tensor] = {}

    def take(index: int, image: NDArray[np.uint8]) -> None:
        found[index] = _picture(image, encoder)

    read_frames_isolated(source.path, lambda _: set(index_T.tolist()), take, 3600.0)
    if missing := set(index_T.tolist()) - found.keys():
        raise BadVideoError(f"frame {min(missing)} is no longer there")
    return torch.stack([found[index] for index in index_T.tolist()])


class _Reader:
    """Decodes sources, on several threads, into one queue."""

    def __init__(self, sources: Sequence[Source], encoder: Encoder, settings: ReadSettings) -> None:
        self._sources, self._encoder, self._settings = sources, encoder, settings
        self.workers = settings.workers or len(os.sched_getaffinity(0))
        self.queue: Queue[_Frame | _End] = Queue(2 * max(settings.batch_frames, settings.frames))
        self._stopped = threading.Event()
        self._local = threading.local()
        self._decoders: list[Decoder] = []
        self._wanted: dict[int, int] = {}  # source -> its frames that some window shows

    def expected(self) -> int:
        """Frames to encode in all, if unread sources are like those read so far."""
        known = list(self._wanted.copy().values())
        return round(sum(known) * len(self._sources) / len(known)) if known else 0

    def stop(self) -> None:
        """Stop reading, also in the middle of a video."""
        self._stopped.set()
        for decoder in self._decoders:
            decoder.kill()

    def close(self) -> None:
        """Close the decoders, once no thread uses them."""
        for decoder in self._decoders:
            decoder.close()

    def read(self, number: int) -> None:
        """Put the frames of a source into the queue, and then what became of it."""
        outcome: Encoded | BaseException
        try:
            outcome = self._decode(number)
        except BadVideoError as error:
            self._wanted.setdefault(number, 0)
            outcome = Encoded(self._sources[number], str(error))
        except _Stopped:
            return
        except Exception as error:
            error.add_note(f"while reading {self._sources[number].name!r}")
            outcome = error
        self._put(_End(number, outcome))

    def _decode(self, number: int) -> Encoded:
        source, settings = self._sources[number], self._settings
        times, sent = np.empty(0), set[int]()
        windows: Windows | None = None

        def note_times(found: NDArray[np.float64]) -> None:
            nonlocal times
            times = found

        def choose(count: int) -> set[int]:
            """May be called again, if the header gave a wrong number of frames."""
            nonlocal windows
            spaced = times if len(times) == count else spaced_times(count, times, settings.fps)
            windows = place_windows(spaced, settings.frames, settings.sliding)
            wanted = set(windows.frame_NT.flat)
            self._wanted[number] = len(wanted | sent)
            return {int(index) for index in wanted - sent}

        def take(index: int, image: NDArray[np.uint8]) -> None:
            sent.add(index)
            self._put(_Frame(number, index, _picture(image, self._encoder)))

        with decoder_errors():
            moving = not source.path.is_dir()
        found = self._decoder().read_frames(
            source.path, choose, take, settings.decode_seconds, note_times if moving else None
        )
        assert windows is not None
        short = ("repeats its last frame",) if found.frames < settings.frames else ()
        spread = ("times estimated",) if len(times) != found.frames else ()
        return Encoded(source, flags=(*found.flags, *short, *spread), windows=windows)

    def _decoder(self) -> Decoder:
        """The process that decodes for this thread."""
        if not hasattr(self._local, "decoder"):
            self._local.decoder = Decoder()
            self._decoders.append(self._local.decoder)
        decoder: Decoder = self._local.decoder
        return decoder

    def _put(self, item: _Frame | _End) -> None:
        while not self._stopped.is_set():
            try:
                self.queue.put(item, timeout=_POLL_SECONDS)
                return
            except Full:
                continue
        raise _Stopped


class _Batches:
    """Frames -> batches of one size -> features, a few batches at a time."""

    def __init__(self, encoder: Encoder, size: int) -> None:
        self._encoder, self._size = encoder, size
        self._filling: list[_Frame] = []
        self._running: deque[tuple[list[_Frame], Future[NDArray[np.float16]]]] = deque()

    def add(self, frame: _Frame, pool: ThreadPoolExecutor) -> None:
        """Add a frame, and start its batch if that is full."""
        self._filling.append(frame)
        if len(self._filling) == self._size:
            self.flush(pool)

    def flush(self, pool: ThreadPoolExecutor) -> None:
        """Start the batch that is being filled, even if it is not full."""
        if self._filling:
            batch, self._filling = self._filling, []
            self._running.append((batch, pool.submit(_encode, self._encoder, batch, self._size)))

    def done(self, wait: bool) -> Iterator[tuple[int, int, NDArray[np.float16]]]:
        """(source, frame, features) of batches that are done, or all if ``wait``.

        So that frames do not pile up, it also waits while more than four batches are running.
        """
        while self._running:
            batch, result = self._running[0]
            if not (wait or result.done() or len(self._running) > 4):
                return
            self._running.popleft()
            for frame, features_D in zip(batch, result.result(), strict=False):
                yield frame.number, frame.index, features_D


def _encode(encoder: Encoder, batch: list[_Frame], size: int) -> NDArray[np.float16]:
    frames_NCHW = torch.zeros((size, *batch[0].picture_CHW.shape), dtype=torch.uint8)
    torch.stack([frame.picture_CHW for frame in batch], out=frames_NCHW[: len(batch)])
    features_ND: NDArray[np.float16] = encoder.encode(frames_NCHW).cpu().numpy()
    return features_ND


def _picture(image: NDArray[np.uint8], encoder: Encoder) -> torch.Tensor:
    image_CHW = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    return fit_for_evaluation(image_CHW, encoder.files.preprocessing)


def _note(partial: _Partial, item: _Frame | _End, frames: int) -> None:
    if isinstance(item, _End):
        if isinstance(item.outcome, BaseException):
            raise item.outcome
        partial.end = item.outcome
        return
    partial.sent += 1
    if len(partial.pictures) < frames:  # those of many windows would fill the memory
        partial.pictures[item.index] = item.picture_CHW


def _finish(partial: _Partial) -> Encoded:
    end = partial.end
    assert end is not None
    if end.windows is None:
        return end
    frame_NT = end.windows.frame_NT
    order = np.unique(frame_NT)
    features_UD = np.stack([partial.features[index] for index in order.tolist()])
    if not np.isfinite(features_UD).all():
        return replace(
            end,
            windows=None,
            reason="the encoder's features overflow float16; use --precision fp32",
        )
    one = len(frame_NT) == 1 and partial.pictures.keys() >= set(order.tolist())
    pictures = [partial.pictures[index] for index in frame_NT[0].tolist()] if one else None
    return replace(
        end,
        features_NTD=features_UD[np.searchsorted(order, frame_NT)],
        pictures_TCHW=torch.stack(pictures) if pictures else None,
    )


def _pool(threads: int) -> ThreadPoolExecutor:
    # One torch thread each: the pool's threads provide the parallelism.
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
