"""A video file or a folder of images -> RGB frames, or the one reason why there are none.

A video is decoded once, from its first frame to its last; only the frames that some view shows are
converted to RGB and handed on, one at a time.
"""

import hashlib
import importlib.metadata
import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from cache.files import sha256_file
from pipeline.datasets.videos import IMAGE_SUFFIXES, natural_key
from pipeline.video.images import (
    MAX_PIXELS,
    BadVideoError,
    check_beginning,
    check_size,
    decode_image,
    decoder_errors,
)

MAX_FRAMES = 1_000_000
MAX_IMAGE_BYTES = 8 * MAX_PIXELS  # four channels of 16 bits, not compressed
MIN_DECODED = 0.9  # of the frames that the header promises
MAX_STRETCH = 1.01  # of pixels that count as square
# Grows when the same libraries give other pixels or frames of a video: part of a store's identity.
RULES = 2

Choose = Callable[[int], Collection[int]]
Take = Callable[[int, NDArray[np.uint8]], None]

# First bytes -> the only FFmpeg demuxer that may read the file.  Left to itself FFmpeg also follows
# playlists (ffconcat, HLS) inside files of any name, and reads whatever they point at.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (4, b"free", "mp4"),
    (4, b"skip", "mp4"),
    (8, b"AVI ", "avi"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpegvideo"),
    (0, b"GIF8", "gif"),
    (0, b"FLV", "flv"),
    (0, b"\x30\x26\xb2\x75", "asf"),
    (0, b"OggS", "ogg"),
    (0, b"\x47", "mpegts"),
)
_TS_PACKET_BYTES = 188
_BOXES_MAX = 10_000  # that are looked at in an mp4
# Their headers give a duration; the others' is estimated from what there is.
_GIVE_DURATION = ("mp4", "matroska", "flv", "asf")


@dataclass(frozen=True)
class Found:
    """What was found in a source: its frames, its bytes, and what was repaired on the way."""

    frames: int
    sha256: str
    flags: tuple[str, ...]


def decoder_name() -> str:
    """Versions of the decoding libraries and of the rules here, for the store's identity."""
    libraries = {"pyav": "av", "pillow": "pillow", "simplejpeg": "simplejpeg"}
    versions = [f"{name} {importlib.metadata.version(d)}" for name, d in libraries.items()]
    return ", ".join([*versions, f"rules {RULES}"])


def read_frames(path: Path, choose: Choose, take: Take) -> Found:
    """Decode the video at ``path`` once.

    ``choose`` gets the number of frames and names those wanted; ``take`` gets each of them, in
    order, as (index, uint8 [height, width, 3]).  Both may be called again from the start, if a
    video file's header gave the wrong number of frames.
    Raises BadVideoError if the source is empty, truncated, not what it claims to be, unreadable, or
    changed while it was read.
    """
    with decoder_errors():
        read = _read_folder if path.is_dir() else _read_file
    return read(path, choose, take)


def read_times(path: Path) -> NDArray[np.float64]:
    """When each frame of a video file is shown, in seconds from the first one, [frame].

    Nothing is decoded, so of a damaged file it may be another number of frames than is read. Empty
    if the file does not say; what is wrong with it, ``read_frames`` says.
    """
    stamps: list[int] = []
    try:
        with decoder_errors():
            _stat_file(path)
            with _open(path, _demuxer(path)[0]) as container:
                stream = _video_stream(container)
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard and len(stamps) <= MAX_FRAMES:
                        stamps.append(packet.dts if packet.pts is None else packet.pts)
                seconds = float(stream.time_base)
            times = np.sort(np.array(stamps, np.float64)) * seconds
            return times - times[0]
    except BadVideoError:
        return np.empty(0)


def check_beginning_of(path: Path, is_image: bool) -> None:
    """Raise BadVideoError if an image or a video file is none by its size or its first bytes."""
    with decoder_errors():
        _stat_file(path)
        if not is_image:
            _demuxer(path)
            return
        with open(path, "rb", buffering=0) as file:
            check_beginning(file.read(16))


def source_sha256(path: Path) -> str:
    """sha256 of a video file, or of the bytes of a folder's images in their order, as in ``Found``.

    Raises OSError or BadVideoError if it cannot be read.
    """
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for image in list_images(path):
        _read_image(image, digest)
    return digest.hexdigest()


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; thumbnails and hidden files are skipped."""
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(images, key=lambda path: (natural_key(path.name), path.name))


def _read_folder(folder: Path, choose: Choose, take: Take) -> Found:
    with decoder_errors():
        images = list_images(folder)
    if not images:
        raise BadVideoError("no images in the folder")
    _check_count(len(images), "the folder holds")
    wanted = set(choose(len(images)))
    flags: set[str] = {"gaps in the numbering"} if _has_gaps(images) else set()
    digest = hashlib.sha256()
    for index, path in enumerate(images):
        try:
            data = _read_image(path, digest)
            rgb, repaired = decode_image(data) if index in wanted else (None, ())
        except BadVideoError as error:
            raise BadVideoError(f"{path.name}: {error}") from error
        if rgb is not None:
            flags.update(repaired)
            take(index, rgb)
    return Found(len(images), digest.hexdigest(), tuple(sorted(flags)))


def _read_image(path: Path, digest: "hashlib._Hash") -> bytes:
    with decoder_errors():
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # of a pipe, opening would wait
        try:
            found = _check_regular(os.fstat(file))
            if found.st_size > MAX_IMAGE_BYTES:
                raise BadVideoError(f"{found.st_size} bytes, at most {MAX_IMAGE_BYTES}")
            data = os.read(file, found.st_size + 1)
            if len(data) != found.st_size:  # in parts, or of a file system that tells no size
                while len(data) <= MAX_IMAGE_BYTES and (more := os.read(file, 1 << 20)):
                    data += more
            if _stamp(os.fstat(file)) != _stamp(found):
                raise BadVideoError("changed while it was read")
        finally:
            os.close(file)
    digest.update(hashlib.sha256(data).digest())
    return data


def _stat_file(path: Path) -> os.stat_result:
    return _check_regular(path.stat())  # opening a pipe would wait forever


def _check_regular(found: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        raise BadVideoError("not a regular file")
    return found


def _has_gaps(images: list[Path]) -> bool:
    numbers = [int(found[-1]) for path in images if (found := re.findall(r"\d+", path.stem))]
    return len(numbers) == len(images) and numbers[-1] - numbers[0] + 1 != len(images)


def _check_count(frames: int, source: str) -> None:
    if not 0 < frames <= MAX_FRAMES:
        raise BadVideoError(f"{source} {frames} frames, expected 1 to {MAX_FRAMES}")


def _read_file(path: Path, choose: Choose, take: Take) -> Found:
    with decoder_errors():
        before = _version(path)
        demuxer, flags = _demuxer(path)
        promised = _promised_frames(path, demuxer)
    _check_count(promised, "its header promises")
    decoded, seen = _decode_pass(path, demuxer, set(choose(promised)), take)
    flags |= seen
    if decoded < max(1, MIN_DECODED * promised):
        raise BadVideoError(f"decoded {decoded} frames of the {promised} its header promises")
    if decoded != promised:
        flags |= {f"header promises {promised} frames"}
        _decode_pass(path, demuxer, set(choose(decoded)), take)
    with decoder_errors():
        sha256 = source_sha256(path)
        if _version(path) != before:
            raise BadVideoError("changed while it was read")
    return Found(decoded, sha256, tuple(sorted(flags)))


def _version(path: Path) -> tuple[int, int, int]:
    return _stamp(_stat_file(path))


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _demuxer(path: Path) -> tuple[str, set[str]]:
    """(FFmpeg's demuxer for the file, flags); the end of a GIF or transport stream is checked."""
    with path.open("rb") as file:
        head = file.read(16)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        end = file.read()
    if not head:
        raise BadVideoError("0 bytes")
    known = (name for offset, magic, name in _MAGIC if head[offset:].startswith(magic))
    demuxer = next(known, None)
    if demuxer is None:
        raise BadVideoError(f"not a video: begins with {head!r}")
    if demuxer == "gif" and not end.rstrip(b"\0").endswith(b";"):
        raise BadVideoError("cut short: the GIF has no end")
    cut = demuxer == "mpegts" and size % _TS_PACKET_BYTES
    return demuxer, {"ends inside a packet"} if cut else set()


def _open(path: Path, demuxer: str) -> Any:
    options = {"protocol_whitelist": "file"}
    try:
        return av.open(str(path.resolve()), format=demuxer, container_options=options)
    except av.error.InvalidDataError:
        if demuxer == "mp4" and _lacks_index(path):
            raise BadVideoError(
                "its index (moov) is missing: the recording or the copy was not finished; copy it "
                "again, finish it with the program that recorded it, or repair it with untrunc"
            ) from None
        raise


def _lacks_index(path: Path) -> bool:
    """Whether an mp4 has media data (mdat), but not all of the index that says what is where."""
    found, at = set[bytes](), 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        for _ in range(_BOXES_MAX):
            if at >= end:
                break
            file.seek(at)
            size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
            at += {0: end, 1: large}.get(size, size)
            if at <= end or kind == b"mdat":
                found.add(kind)
    return b"mdat" in found and b"moov" not in found


def _promised_frames(path: Path, demuxer: str) -> int:
    with _open(path, demuxer) as container:
        stream = _video_stream(container)
        if demuxer == "mp4" and stream.frames:
            # What comes before the start of an edit list is not shown.
            return sum(not entry.is_discard for entry in stream.index_entries)
        # Without a count in the header, count the packets: that needs no decoding.
        return stream.frames or _count_packets(container, stream, demuxer in _GIVE_DURATION)


def _count_packets(container: Any, stream: Any, gives_duration: bool) -> int:
    """The video's packets, and as many again as would fill the duration that the header gives."""
    count, end_seconds = 0, 0.0
    for packet in container.demux():  # all streams, since sound may go on without a picture
        if packet.size:
            count += packet.stream_index == stream.index
            start = max(packet.pts or 0, packet.dts or 0) * packet.time_base
            lasts = (packet.duration or 0) * packet.time_base or 1 / (stream.average_rate or 25)
            end_seconds = max(end_seconds, float(start + lasts))
    missing_seconds = (container.duration or 0) / av.time_base - end_seconds
    if gives_duration and count and missing_seconds > 0:
        count += round(missing_seconds * count / end_seconds)
    return count


def _decode_pass(path: Path, demuxer: str, wanted: set[int], take: Take) -> tuple[int, set[str]]:
    flags: set[str] = set()
    count = 0
    to_rgb = VideoReformatter()  # one per pass: making one takes longer than using it
    for frame, width, height in _decoded(path, demuxer, flags):
        check_size(width, height)
        if count >= MAX_FRAMES:
            raise BadVideoError(f"more than {MAX_FRAMES} frames")
        if frame.is_corrupt:
            flags.add("corrupt frames")
        if (width, height) != (frame.width, frame.height):
            flags.add("resampled to square pixels")
        if count in wanted:
            with decoder_errors():
                square: Any = to_rgb.reformat(frame, width, height, "rgb24", threads=1)
                rgb, matrix = square.to_ndarray(), frame.side_data.get("DISPLAYMATRIX")
            take(count, rgb if matrix is None else _upright(rgb, matrix, flags))
        count += 1
    return count, flags


def _decoded(path: Path, demuxer: str, flags: set[str]) -> Iterator[tuple[Any, int, int]]:
    """Each frame, with the width and height that it has in square pixels."""
    with decoder_errors(), _open(path, demuxer) as container:
        stream = _video_stream(container)
        context = stream.codec_context
        context.thread_count = 1  # videos are decoded in parallel instead
        check_size(context.width, context.height)
        context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change midway
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                flags.add("undecodable packets")
                continue
            aspect = float(stream.sample_aspect_ratio or 1)
            if 1 / MAX_STRETCH < aspect < MAX_STRETCH:
                aspect = 1.0
            # The short side of a pixel is enlarged, so that nothing is lost.
            wider, higher = max(aspect, 1), max(1 / aspect, 1)
            for frame in frames:
                yield frame, round(frame.width * wider), round(frame.height * higher)


def _upright(image: NDArray[np.uint8], matrix: Any, flags: set[str]) -> NDArray[np.uint8]:
    """The image as its display matrix shows it, which may turn and mirror it.

    (x, y) is shown at (a x + c y, b x + d y); of an odd angle, the nearest quarter turn is applied.
    """
    a, b, _, c, d = (int(value) for value in np.frombuffer(matrix, np.int32)[:5])
    on_its_side = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if on_its_side else (a, d)
    rest = (a, d) if on_its_side else (b, c)
    if any(rest) or abs(across) != abs(down):
        flags.add("odd display matrix, applied roughly")
    if on_its_side:
        image = image.swapaxes(0, 1)
    if ((across < 0) != (down < 0)) != on_its_side:
        flags.add("mirrored by its display matrix")
    elif on_its_side or across < 0:
        flags.add("rotated by its display matrix")
    return image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _video_stream(container: Any) -> Any:
    """The first video stream that is not a picture attached to sound."""
    streams = container.streams.video
    moving = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise BadVideoError("no video stream" + (" (cover art only)" if streams else ""))
    return moving[0]
