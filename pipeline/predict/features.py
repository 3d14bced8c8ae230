"""Videos -> the features of their windows, while other videos are still being decoded.

::

    decode threads            queue             this thread             encode threads
    video -> its frames ──> bounded ──> batches of any videos' frames ──> features

Every frame that a window shows is encoded once, however many windows show it, and forgotten; of a
long video only features are kept.  All batches have one size, so the features of a frame do not
depend on the others in its batch, and are those that extraction stores.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Full, Queue

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.identity import WHOLE_FRAMES
from pipeline.encoders.clip import Encoder
from pipeline.extract.planning import CROPPINGS, cropping_of
from pipeline.predict.sources import Source
from pipeline.predict.windows import (
    Sliding,
    Windows,
    place_windows,
    place_windows_within,
    times_of,
)
from pipeline.resources import usable_cores
from pipeline.video.crops import Crop
from pipeline.video.frames import Choose, Found, Take
from pipeline.video.images import BadVideoError, decoder_errors
from pipeline.video.isolated import Decoder, TakeTimes, read_frames_isolated
from pipeline.video.tracks import People, find_people
from pipeline.video.views import Pictures

AUTO = "auto"
FACES = (AUTO, WHOLE_FRAMES, *CROPPINGS)
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
    faces: str = AUTO  # one of FACES

    def __post_init__(self) -> None:
        if self.faces not in FACES:
            raise RefusedError(f"faces is {self.faces}, expected {', '.join(FACES)}")
        limits = {"fps": (0.01, 10_000), "decode_seconds": (0.1, 86_400)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise RefusedError(f"{name} is {value:g}, expected {least:g} to {most:g}")


@dataclass(frozen=True)
class Encoded:
    """What became of a source or of one person in it: windows with features, or why there are none.

    ``pictures`` are the T frames as the encoder saw them if there is one window.
    """

    source: Source  # of several persons, each has a name of its own
    person: int = 0
    crop: Crop | None = None  # None: whole frames
    reason: str = ""
    flags: tuple[str, ...] = ()
    windows: Windows | None = None
    features_NTD: NDArray[np.float16] | None = None
    pictures_TCHW: torch.Tensor | None = None


@dataclass(frozen=True)
class _Frame:
    row: tuple[int, int]  # source and person
    index: int  # in the video
    picture_CHW: torch.Tensor


@dataclass(frozen=True)
class _End:
    number: int
    outcome: list[Encoded] | BaseException


class _Stopped(Exception):
    """Nobody wants the frames any more."""


@dataclass
class _Partial:
    """A source, or a person in it, of which some frames may still be on their way."""

    features: dict[int, NDArray[np.float16]] = field(default_factory=dict)
    pictures: dict[int, torch.Tensor] = field(default_factory=dict)
    sent: int = 0  # frames to the encoder
    end: Encoded | None = None

    @property
    def is_whole(self) -> bool:
        """Whether no frame of it is on its way any more."""
        return self.end is not None and len(self.features) == self.sent

    def expect(self, frame: _Frame, pictures: int) -> None:
        """Note that a frame is on its way; ``pictures`` of them are kept."""
        self.sent += 1
        if len(self.pictures) < pictures:  # those of many windows would fill the memory
            self.pictures[frame.index] = frame.picture_CHW


def encode_sources(
    sources: Sequence[Source],
    encoder: Encoder,
    settings: ReadSettings,
    on_frames: OnFrames = lambda done, total: None,
) -> Iterator[tuple[int, Encoded]]:
    """(number, what was found) of each source, as soon as it is done, in any order.

    A source with several persons is found once for each of them. A video that cannot be decoded, or
    that kills or hangs its decoder, is found with its reason.
    """
    reader = _Reader(sources, encoder, settings)
    batches = _Batches(encoder, settings.batch_frames)
    begun: defaultdict[tuple[int, int], _Partial] = defaultdict(_Partial)
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
                if isinstance(item, _Frame):
                    begun[item.row].expect(item, settings.frames)
                    batches.add(item, encoders)
                else:
                    ended += 1
                    for own in _rows(item):
                        begun[item.number, own.person].end = own
            else:
                batches.flush(encoders)
            for row, index, features_D in batches.done(wait=ended == len(sources)):
                begun[row].features[index] = features_D
                encoded += 1
            on_frames(encoded, reader.expected())
            for row in [row for row, partial in begun.items() if partial.is_whole]:
                yield row[0], _finish(begun.pop(row))


def read_pictures(encoded: Encoded, index_T: NDArray[np.int32], encoder: Encoder) -> torch.Tensor:
    """Some frames of what was read before, as the encoder sees them, uint8 [T, C, H, W].

    Raises BadVideoError if it cannot be read any more.
    """
    found: dict[int, torch.Tensor] = {}
    pictures = _pictures(encoder, encoded.crop)

    def take(index: int, image: NDArray[np.uint8]) -> None:
        found.update(pictures.add(index, image))

    read_frames_isolated(encoded.source.path, lambda _: set(index_T.tolist()), take, 3600.0)
    found.update(pictures.rest())
    if missing := set(index_T.tolist()) - found.keys():
        raise BadVideoError(f"frame {min(missing)} is no longer there")
    return torch.stack([found[index] for index in index_T.tolist()]).cpu()


class _Reader:
    """Decodes sources, on several threads, into one queue."""

    def __init__(self, sources: Sequence[Source], encoder: Encoder, settings: ReadSettings) -> None:
        self._sources, self._encoder, self._settings = sources, encoder, settings
        self.workers = settings.workers or usable_cores()
        self.queue: Queue[_Frame | _End] = Queue(2 * max(settings.batch_frames, settings.frames))
        self._stopped = threading.Event()
        self._local = threading.local()
        self._decoders: list[Decoder] = []
        self._wanted: dict[int, int] = {}  # source -> its pictures that some window shows
        self._wanted_in_all = 0  # their sum
        self._counting = threading.Lock()
        self._people: dict[int, list[Encoded]] = {}  # source -> who is in it

    def expected(self) -> int:
        """Frames to encode in all, if unread sources are like those read so far."""
        known = len(self._wanted)
        return round(self._wanted_in_all * len(self._sources) / known) if known else 0

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
        outcome: list[Encoded] | BaseException
        try:
            outcome = self._decode(number)
        except BadVideoError as error:
            self._expect(number, self._wanted.get(number, 0))
            rows = self._people.get(number, [Encoded(self._sources[number])])
            outcome = [replace(own, reason=str(error)) for own in rows]
        except _Stopped:
            return
        except Exception as error:
            error.add_note(f"while reading {self._sources[number].name!r}")
            outcome = error
        self._put(_End(number, outcome))

    def _decode(self, number: int) -> list[Encoded]:
        faces = self._settings.faces
        if faces == WHOLE_FRAMES:
            return [self._decode_whole(number)]
        people, told = self._look(self._sources[number])
        if faces == AUTO and (why := people.already_cropped):
            return [self._decode_whole(number, f"not cropped: {why}")]
        if people.nobody:
            raise BadVideoError(f"{people.nobody}; --faces whole predicts whole frames")
        return self._decode_people(number, people, told)

    def _look(self, source: Source) -> tuple[People, list[NDArray[np.float64]]]:
        """Who is in a video, and what it tells of the times of its frames."""
        told: list[NDArray[np.float64]] = []

        def read(_: Path, choose: Choose, take: Take) -> Found:
            return self._read(source, choose, take, told.append)

        return find_people(source.path, read), told

    def _decode_people(
        self, number: int, people: People, told: list[NDArray[np.float64]]
    ) -> list[Encoded]:
        source, settings = self._sources[number], self._settings
        times_F = times_of(people.found.frames, told, settings.fps)
        placed = [
            place_windows_within(times_F, track.span, settings.frames, settings.sliding)
            for track in people.tracks
        ]
        wanted = [set(windows.frame_NT.flat) for windows in placed]
        self._expect(number, sum(map(len, wanted)))
        sent = set[int]()
        rows = self._people[number] = _name_people(source, people, settings.faces)
        pictures = [_pictures(self._encoder, own.crop) for own in rows]

        def take(index: int, image: NDArray[np.uint8]) -> None:
            sent.add(index)
            for person, frames in enumerate(wanted):
                if index in frames:
                    self._put_ready((number, person), pictures[person].add(index, image))

        found = self._read(
            source, lambda _: {int(index) for index in set().union(*wanted) - sent}, take
        )
        people.check_same(found)
        for person, waiting in enumerate(pictures):
            self._put_ready((number, person), waiting.rest())
        flags = (*found.flags, *people.flags, *_estimated(told, times_F))
        return [
            replace(own, windows=windows, flags=(*flags, *_repeats(windows, settings.frames)))
            for own, windows in zip(rows, placed, strict=True)
        ]

    def _decode_whole(self, number: int, *flags: str) -> Encoded:
        source, settings = self._sources[number], self._settings
        told, sent = list[NDArray[np.float64]](), set[int]()
        pictures = _pictures(self._encoder)
        windows: Windows | None = None

        def choose(count: int) -> set[int]:
            """May be called again, if the header gave a wrong number of frames."""
            nonlocal windows
            times_F = times_of(count, told, settings.fps)
            windows = place_windows(times_F, settings.frames, settings.sliding)
            wanted = set(windows.frame_NT.flat)
            self._expect(number, len(wanted | sent))
            return {int(index) for index in wanted - sent}

        def take(index: int, image: NDArray[np.uint8]) -> None:
            sent.add(index)
            self._put_ready((number, 0), pictures.add(index, image))

        found = self._read(source, choose, take, told.append)
        self._put_ready((number, 0), pictures.rest())
        assert windows is not None
        short = _repeats(windows, settings.frames)
        flags = (*found.flags, *short, *_estimated(told, windows.times_F), *flags)
        return Encoded(source, flags=flags, windows=windows)

    def _expect(self, number: int, pictures: int) -> None:
        with self._counting:
            self._wanted_in_all += pictures - self._wanted.get(number, 0)
            self._wanted[number] = pictures

    def _read(
        self, source: Source, choose: Choose, take: Take, take_times: TakeTimes | None = None
    ) -> Found:
        with decoder_errors():
            moving = not source.path.is_dir()
        return self._decoder().read_frames(
            source.path,
            choose,
            take,
            self._settings.decode_seconds,
            take_times if moving else None,
        )

    def _decoder(self) -> Decoder:
        """The process that decodes for this thread."""
        if not hasattr(self._local, "decoder"):
            self._local.decoder = Decoder()
            self._decoders.append(self._local.decoder)
        decoder: Decoder = self._local.decoder
        return decoder

    def _put_ready(self, row: tuple[int, int], ready: Mapping[int, torch.Tensor]) -> None:
        for index, picture_CHW in ready.items():
            self._put(_Frame(row, index, picture_CHW))

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

    def done(self, wait: bool) -> Iterator[tuple[tuple[int, int], int, NDArray[np.float16]]]:
        """((source, person), frame, features) of batches that are done, or all if ``wait``.

        So that frames do not pile up, it also waits while more than four batches are running.
        """
        while self._running:
            batch, result = self._running[0]
            if not (wait or result.done() or len(self._running) > 4):
                return
            self._running.popleft()
            for frame, features_D in zip(batch, result.result(), strict=False):
                yield frame.row, frame.index, features_D


def _encode(encoder: Encoder, batch: list[_Frame], size: int) -> NDArray[np.float16]:
    first_CHW = batch[0].picture_CHW
    frames_NCHW = first_CHW.new_zeros((size, *first_CHW.shape))
    torch.stack([frame.picture_CHW for frame in batch], out=frames_NCHW[: len(batch)])
    features_ND: NDArray[np.float16] = encoder.encode(frames_NCHW).cpu().numpy()
    return features_ND


def _name_people(source: Source, people: People, faces: str) -> list[Encoded]:
    """A row for each person, called ``video.mp4#1`` and so on if there are several."""
    cropping = cropping_of(CROPPINGS[0] if faces == AUTO else faces)
    assert cropping is not None
    return [
        Encoded(
            replace(source, name=f"{source.name}#{person + 1}")
            if len(people.tracks) > 1
            else source,
            person,
            Crop(track, cropping),
        )
        for person, track in enumerate(people.tracks)
    ]


def _repeats(windows: Windows, frames: int) -> tuple[str, ...]:
    return ("repeats its last frame",) if windows.count < frames else ()


def _estimated(told: list[NDArray[np.float64]], times_F: NDArray[np.float64]) -> tuple[str, ...]:
    known = told and len(told[-1]) == len(times_F)
    return () if known else ("times estimated",)


def _pictures(encoder: Encoder, crop: Crop | None = None) -> Pictures:
    return Pictures(encoder.files.preprocessing, encoder.pixel_format, crop)


def _rows(end: _End) -> list[Encoded]:
    if isinstance(end.outcome, BaseException):
        raise end.outcome
    return end.outcome


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
        pictures_TCHW=torch.stack(pictures).cpu() if pictures else None,
    )


def _pool(threads: int) -> ThreadPoolExecutor:
    # One torch thread each: the pool's threads provide the parallelism.
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
