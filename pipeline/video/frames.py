"""A video file or a folder of images -> RGB frames, or the one reason why there are none.

A video is decoded once, from its first frame to its last; only the frames that some view shows are
converted to RGB and handed on, one at a time.
"""

import hashlib
import importlib.metadata
import io
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cache.files import sha256_file
from pipeline.datasets.videos import IMAGE_SUFFIXES, natural_key

MAX_PIXELS = 50_000_000  # Pillow only warns about more, and needs 2.8 GB for it
MAX_FRAMES = 1_000_000
MIN_DECODED = 0.9  # of the frames that the header promises

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
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


class BadVideoError(ValueError):
    """A video that cannot be used; the message is the reason that the store records."""


@dataclass(frozen=True)
class Found:
    """What was found in a source: its frames, its bytes, and what was repaired on the way."""

    frames: int
    sha256: str
    flags: tuple[str, ...]


def decoder_name() -> str:
    """Names and versions of the decoding libraries, for the store's identity."""
    libraries = {"pyav": "av", "pillow": "pillow", "simplejpeg": "simplejpeg"}
    return ", ".join(f"{name} {importlib.metadata.version(d)}" for name, d in libraries.items())


def read_frames(path: Path, choose: Choose, take: Take) -> Found:
    """Decode the video at ``path`` once.

    ``choose`` gets the number of frames and names those wanted; ``take`` gets each of them, in
    order, as (index, uint8 [height, width, 3]).  Both may be called again from the start, if a
    video file's header gave the wrong number of frames.
    Raises BadVideoError if the source is empty, truncated, not what it claims to be, or unreadable.
    """
    try:
        if path.is_dir():
            return _read_folder(path, choose, take)
        return _read_file(path, choose, take)
    except (OSError, av.error.FFmpegError) as error:
        # The message without the path: reasons must not depend on where the data lies.
        raise BadVideoError(f"{type(error).__name__}: {error.strerror or error}") from error


def source_sha256(path: Path) -> str:
    """sha256 of a video file, or of the names and bytes of a folder's images, as in ``Found``."""
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for image in list_images(path):
        _add_image(digest, image, image.read_bytes())
    return digest.hexdigest()


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; thumbnails and hidden files are skipped."""
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(images, key=lambda path: (natural_key(path.name), path.name))


def decode_image(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(RGB uint8 [height, width, 3], what was repaired) of an encoded image."""
    if not data:
        raise BadVideoError("0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadVideoError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS}")
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return _jpeg_to_rgb(data, image)
            image.load()
            return _to_rgb(image)
    except UnidentifiedImageError:
        formats = ", ".join(_IMAGE_FORMATS)
        raise BadVideoError(f"not an image ({formats}): begins with {data[:16]!r}") from None
    except (SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for broken PNG chunks.
        raise BadVideoError(str(error)) from error


def _jpeg_to_rgb(data: bytes, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The same pixels as Pillow's, but corrupt bytes, a mere warning of libjpeg, are refused."""
    try:
        rgb: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as error:
        raise BadVideoError(str(error)) from error
    if image.getexif().get(0x0112, 1) != 1:
        return _to_rgb(image)
    return rgb, ("converted from L",) if image.mode == "L" else ()


def _to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    flags = []
    if image.getexif().get(0x0112, 1) != 1:
        flags.append("rotated by EXIF")
        image = ImageOps.exif_transpose(image)
    if image.mode != "RGB":
        flags.append(f"converted from {image.mode}")
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 and gives a white image.
        grey = (np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), tuple(flags)
    return np.asarray(image.convert("RGB")), tuple(flags)


def _read_folder(folder: Path, choose: Choose, take: Take) -> Found:
    images = list_images(folder)
    if not images:
        raise BadVideoError("no images in the folder")
    wanted = set(choose(len(images)))
    flags: set[str] = {"gaps in the numbering"} if _has_gaps(images) else set()
    digest = hashlib.sha256()
    for index, path in enumerate(images):
        if not path.is_file():
            raise BadVideoError(f"{path.name}: not a regular file")
        data = path.read_bytes()
        _add_image(digest, path, data)
        if index in wanted:
            take(index, _named(path.name, data, flags))
    return Found(len(images), digest.hexdigest(), tuple(sorted(flags)))


def _add_image(digest: "hashlib._Hash", path: Path, data: bytes) -> None:
    digest.update(path.name.encode() + b"\0" + hashlib.sha256(data).digest())


def _named(name: str, data: bytes, flags: set[str]) -> NDArray[np.uint8]:
    try:
        image, repaired = decode_image(data)
    except (OSError, BadVideoError) as error:
        raise BadVideoError(f"{name}: {error}") from error
    flags.update(repaired)
    return image


def _has_gaps(images: list[Path]) -> bool:
    numbers = [int(found[-1]) for path in images if (found := re.findall(r"\d+", path.stem))]
    return len(numbers) == len(images) and numbers[-1] - numbers[0] + 1 != len(images)


def _read_file(path: Path, choose: Choose, take: Take) -> Found:
    demuxer = _demuxer(path)
    promised = _promised_frames(path, demuxer)
    decoded, flags = _decode_pass(path, demuxer, set(choose(promised)), take)
    if decoded < max(1, MIN_DECODED * promised):
        raise BadVideoError(f"decoded {decoded} frames of the {promised} its header promises")
    if decoded != promised:
        flags |= {f"header promises {promised} frames"}
        _decode_pass(path, demuxer, set(choose(decoded)), take)
    return Found(decoded, source_sha256(path), tuple(sorted(flags)))


def _demuxer(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise BadVideoError("not a regular file")  # opening a pipe would wait forever
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise BadVideoError("0 bytes")
    for offset, magic, demuxer in _MAGIC:
        if head[offset:].startswith(magic):
            return demuxer
    raise BadVideoError(f"not a video: begins with {head!r}")


def _open(path: Path, demuxer: str) -> Any:
    options = {"protocol_whitelist": "file"}
    return av.open(str(path.resolve()), format=demuxer, container_options=options)


def _promised_frames(path: Path, demuxer: str) -> int:
    with _open(path, demuxer) as container:
        stream = _video_stream(container)
        # Without a count in the header, count the packets: that needs no decoding.
        return stream.frames or sum(1 for p in container.demux(stream) if p.size)


def _decode_pass(path: Path, demuxer: str, wanted: set[int], take: Take) -> tuple[int, set[str]]:
    flags: set[str] = set()
    count = 0
    to_rgb = VideoReformatter()  # one per pass: making one takes longer than using it
    with _open(path, demuxer) as container:
        for frame in _decoded(container, flags):
            if frame.width * frame.height > MAX_PIXELS or count >= MAX_FRAMES:
                raise BadVideoError(
                    f"frame {count} of {frame.width} x {frame.height}: at most {MAX_PIXELS} pixels "
                    f"and {MAX_FRAMES} frames"
                )
            if frame.is_corrupt:
                flags.add("corrupt frames")
            if count in wanted:
                rgb: Any = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                take(count, _upright(rgb, frame.rotation, flags))
            count += 1
    return count, flags


def _decoded(container: Any, flags: set[str]) -> Iterator[Any]:
    stream = _video_stream(container)
    stream.codec_context.thread_count = 1  # videos are decoded in parallel instead
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            flags.add("undecodable packets")


def _upright(image: NDArray[np.uint8], degrees: float, flags: set[str]) -> NDArray[np.uint8]:
    turns = round(degrees / 90) % 4
    if turns:
        flags.add("rotated by its display matrix")
    return np.rot90(image, turns)


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise BadVideoError("no video stream")
    return container.streams.video[0]
