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
from queue import Empty, Full, Queue

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.identity import WHOLE_FRAMES
from pipeline.encoders.clip import Encoder
from pipeline.extract.planning import CROPPINGS, cropping_of
from pipeline.interrupt import Stop
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
_SECONDS_MAX = 86_400.0

OnFrames = Callable[[int, int, str], None]  # (encoded so far, expected in all, what else was done)


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
    crop: Crop | None = None  # None: whole frames
    reason: str = ""
    flags: tuple[str, ...] = ()
    sha256: str = ""  # of the source, as in ``source_sha256``
    windows: Windows | None = None
    features_NTD: NDArray[np.float16] | None = None
    pictures_TCHW: torch.Tensor | None = None


@dataclass(frozen=True)
class _Frame:
    number: int  # of its source
    person: int
    index: int  # in the video
    picture_CHW: torch.Tensor


@dataclass(frozen=True)
class _End:
    number: int
    outcome: list[Encoded] | BaseException

    def rows(self) -> list[Encoded]:
        """One for each person; raises what ended the reading."""
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class _Stopped(Exception):
    """Nobody wants the frames any more."""


@dataclass
class _Partial:
    """A source of which some frames may still be on their way."""

    features: dict[tuple[int, int], NDArray[np.float16]] = field(default_factory=dict)
    pictures: defaultdict[int, dict[int, torch.Tensor]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    sent: int = 0  # frames to the encoder
    rows: list[Encoded] | None = None  # once it is read

    @property
    def is_whole(self) -> bool:
        """Whether no frame of it is on its way any more."""
        return self.rows is not None and len(self.features) == self.sent

    def expect(self, frame: _Frame, most: int) -> None:
        """Note that a frame is on its way; of a person, ``most`` pictures are kept."""
        self.sent += 1
        pictures = self.pictures[frame.person]
        if len(pictures) < most:  # those of many windows would fill the memory
            pictures[frame.index] = frame.picture_CHW

    def finish(self) -> list[Encoded]:
        """Each person with the features of the windows."""
        assert self.rows is not None
        return [self._finish(person, own) for person, own in enumerate(self.rows)]

    def _finish(self, person: int, own: Encoded) -> Encoded:
        if own.windows is None:
            return own
        frame_NT = own.windows.frame_NT
        order = np.unique(frame_NT)
        features_UD = np.stack([self.features[person, index] for index in order.tolist()])
        if not np.isfinite(features_UD).all():
            reason = "the encoder's features overflow float16; use --precision fp32"
            return replace(own, windows=None, reason=reason)
        pictures = self.pictures[person]
        one = len(frame_NT) == 1 and pictures.keys() >= set(order.tolist())
        shown = [pictures[index] for index in frame_NT[0].tolist()] if one else None
        return replace(
            own,
            features_NTD=features_UD[np.searchsorted(order, frame_NT)],
            pictures_TCHW=torch.stack(shown).cpu() if shown else None,
        )


def encode_sources(
    sources: Sequence[Source],
    encoder: Encoder,
    settings: ReadSettings,
    on_frames: OnFrames = lambda done, total, note: None,
    stop: Stop | None = None,
) -> Iterator[tuple[int, list[Encoded]]]:
    """(number, what was found) of each source, as soon as it is done, in any order.

    In a source with several persons each of them is found. A video that cannot be decoded, or that
    kills or hangs its decoder, is found with its reason. After a signal, ``stop``, only what has
    been read is finished.
    """
    reader, stop = _Reader(sources, encoder, settings), stop or Stop()
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
        is_reading = True
        while is_reading:
            is_reading = ended < len(sources) and not stop.signal
            item = reader.next() if is_reading else None
            if isinstance(item, _Frame):
                begun[item.number].expect(item, settings.frames)
                batches.add(item, encoders)
            elif item is not None:
                ended += 1
                begun[item.number].rows = item.rows()
            if not is_reading:
                batches.flush(encoders)
            for frame, features_D in batches.done(wait=not is_reading):
                begun[frame.number].features[frame.person, frame.index] = features_D
                encoded += 1
            on_frames(encoded, reader.expected(), reader.note)
            for number in [number for number, partial in begun.items() if partial.is_whole]:
                yield number, begun.pop(number).finish()


def read_pictures(
    wanted: Sequence[tuple[Encoded, NDArray[np.int32]]], encoder: Encoder
) -> list[torch.Tensor]:
    """Frames of each person in one video, as the encoder sees them, each uint8 [T, C, H, W].

    Errors as in ``read_again``.
    """
    frames = [set(index_T.tolist()) for _, index_T in wanted]
    pictures = [_pictures(encoder, encoded.crop) for encoded, _ in wanted]
    found: list[dict[int, torch.Tensor]] = [{} for _ in wanted]

    def take(index: int, image: NDArray[np.uint8]) -> None:
        for own, making, shown in zip(found, pictures, frames, strict=True):
            if index in shown:
                own.update(making.add(index, image))

    read_again(wanted[0][0], lambda _: set().union(*frames), take)
    for own, making in zip(found, pictures, strict=True):
        own.update(making.rest())
    return [
        torch.stack([own[index] for index in index_T.tolist()]).cpu()
        for own, (_, index_T) in zip(found, wanted, strict=True)
    ]


def read_again(encoded: Encoded, choose: Choose, take: Take) -> None:
    """Decode what was read before once more, as ``read_frames`` does.

    Raises BadVideoError if it cannot be read any more, or has other bytes now.
    """
    # It was read once, within the user's limit.
    found = read_frames_isolated(encoded.source.path, choose, take, _SECONDS_MAX)
    if found.sha256 != encoded.sha256:
        raise BadVideoError("changed while it was read")


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
        self._searched = 0  # frames, for faces
        self._counting = threading.Lock()
        self._rows: dict[int, list[Encoded]] = {}  # source -> who is in it

    def expected(self) -> int:
        """Frames to encode in all, if unread sources are like those read so far."""
        known = len(self._wanted)
        return round(self._wanted_in_all * len(self._sources) / known) if known else 0

    @property
    def note(self) -> str:
        """How far the search for faces is, which comes before a video's frames are encoded."""
        return f"{self._searched} searched for faces" if self._searched else ""

    def next(self) -> _Frame | _End | None:
        """What was read next; None if that was nothing for a while."""
        try:
            return self.queue.get(timeout=_POLL_SECONDS)
        except Empty:
            return None

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
            rows = self._rows.get(number, [Encoded(self._sources[number])])
            outcome = [replace(own, reason=str(error)) for own in rows]
        except _Stopped:
            return
        except Exception as error:
            error.add_note(f"while reading {self._sources[number].name!r}")
            outcome = error
        self._rows.pop(number, None)
        self._put(_End(number, outcome))

    def _decode(self, number: int) -> list[Encoded]:
        faces = self._settings.faces
        if faces == WHOLE_FRAMES:
            return self._decode_whole(number)
        people, told = self._look(self._sources[number])
        if faces == AUTO and (why := people.already_cropped):
            return self._decode_whole(number, f"not cropped: {why}")
        if people.nobody:
            raise BadVideoError(f"{people.nobody}; --faces whole predicts whole frames")
        return self._decode_people(number, people, told)

    def _look(self, source: Source) -> tuple[People, list[NDArray[np.float64]]]:
        """Who is in a video, and what it tells of the times of its frames."""
        told: list[NDArray[np.float64]] = []

        def read(_: Path, choose: Choose, take: Take) -> Found:
            def search(index: int, image: NDArray[np.uint8]) -> None:
                take(index, image)
                with self._counting:
                    self._searched += 1

            return self._read(source, choose, search, told.append)

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
        rows = self._rows[number] = _name_people(source, people, settings.faces)
        found, _ = self._decode_windows(number, rows, lambda _: placed)
        people.check_same(found)
        flags = (*found.flags, *people.flags, *_estimated(told, times_F))
        return [
            replace(
                own,
                flags=(*flags, *_repeats(windows, settings.frames)),
                sha256=found.sha256,
                windows=windows,
            )
            for own, windows in zip(rows, placed, strict=True)
        ]

    def _decode_whole(self, number: int, *why: str) -> list[Encoded]:
        source, settings = self._sources[number], self._settings
        told = list[NDArray[np.float64]]()

        def place(count: int) -> list[Windows]:
            times_F = times_of(count, told, settings.fps)
            return [place_windows(times_F, settings.frames, settings.sliding)]

        found, (windows,) = self._decode_windows(number, [Encoded(source)], place, told.append)
        short = _repeats(windows, settings.frames)
        flags = (*found.flags, *short, *_estimated(told, windows.times_F), *why)
        return [Encoded(source, flags=flags, sha256=found.sha256, windows=windows)]

    def _decode_windows(
        self,
        number: int,
        rows: list[Encoded],
        place: Callable[[int], list[Windows]],
        take_times: TakeTimes | None = None,
    ) -> tuple[Found, list[Windows]]:
        """Put each frame that a window shows into the queue; ``place`` gives each row its windows.

        ``place`` gets the number of frames; again, if the header gave a wrong one.
        """
        pictures = [_pictures(self._encoder, own.crop) for own in rows]
        placed, wanted, sent = list[Windows](), list[set[int]](), set[int]()

        def choose(count: int) -> set[int]:
            placed[:] = place(count)
            wanted[:] = [set(windows.frame_NT.ravel().tolist()) for windows in placed]
            self._expect(number, sum(map(len, wanted)))
            return set().union(*wanted) - sent

        def take(index: int, image: NDArray[np.uint8]) -> None:
            sent.add(index)
            for person, frames in enumerate(wanted):
                if index in frames:
                    self._put_ready(number, person, pictures[person].add(index, image))

        found = self._read(self._sources[number], choose, take, take_times)
        for person, waiting in enumerate(pictures):
            self._put_ready(number, person, waiting.rest())
        return found, placed

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

    def _put_ready(self, number: int, person: int, ready: Mapping[int, torch.Tensor]) -> None:
        for index, picture_CHW in ready.items():
            self._put(_Frame(number, person, index, picture_CHW))

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

    def done(self, wait: bool) -> Iterator[tuple[_Frame, NDArray[np.float16]]]:
        """Frames and features of batches that are done, or of all if ``wait``.

        So that frames do not pile up, it also waits while more than four batches are running.
        """
        while self._running:
            batch, result = self._running[0]
            if not (wait or result.done() or len(self._running) > 4):
                return
            self._running.popleft()
            yield from zip(batch, result.result(), strict=False)


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
    names = [source.name]
    if len(people.tracks) > 1:
        names = [f"{source.name}#{person + 1}" for person in range(len(people.tracks))]
    return [
        Encoded(replace(source, name=name), Crop(track, cropping))
        for name, track in zip(names, people.tracks, strict=True)
    ]


def _repeats(windows: Windows, frames: int) -> tuple[str, ...]:
    return ("repeats its last frame",) if windows.count < frames else ()


def _estimated(told: list[NDArray[np.float64]], times_F: NDArray[np.float64]) -> tuple[str, ...]:
    known = told and len(told[-1]) == len(times_F)
    return () if known else ("times estimated",)


def _pictures(encoder: Encoder, crop: Crop | None = None) -> Pictures:
    return Pictures(encoder.files.preprocessing, encoder.pixel_format, crop)


def _pool(threads: int) -> ThreadPoolExecutor:
    # One torch thread each: the pool's threads provide the parallelism.
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
