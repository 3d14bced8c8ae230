"""Hostile videos and images: the column "input" of the catalogue's table of media.

``video mp4 mpeg4 ; cut 0.5`` calls ``video(source, "mp4", "mpeg4")`` and ``cut(source, "0.5")``.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from support.sources import pictures, write_folder

FRAMES, SIZE_PX = 40, 32


@dataclass
class Source:
    """One video being made; ``path`` begins without suffix."""

    path: Path
    victim: Path  # a file that nothing may read


def make_source(steps: Sequence[Sequence[str]], path: Path, victim: Path) -> None:
    """Make the video of a row."""
    source = Source(path, victim)
    for word, *arguments in steps:
        globals()[word](source, *arguments)


def frames(source: Source, suffix: str, image: str = "") -> None:
    """A folder of four images, of which the second is ``image``."""
    write_folder(source.path, _pictures(4), suffix)
    if image:
        (source.path / f"1{suffix}").write_bytes(IMAGES[image]())


def video(source: Source, suffix: str, codec: str, *options: str) -> None:
    """A video of 40 frames: ``rotated``, ``mirrored``, ``wide`` pixels, ``short``, ``sound``."""
    source.path = source.path.with_suffix(f".{suffix}")
    with av.open(str(source.path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height = stream.width = SIZE_PX
        known = [known.name for known in av.Codec(codec, "w").video_formats or ()]
        wanted = ("yuv420p", "yuvj420p", "rgb8")
        stream.pix_fmt = next(name for name in wanted if name in known)
        if "wide" in options:
            stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        if "rotated" in options:
            stream.set_display_rotation(90)
        if "mirrored" in options:
            stream.set_display_rotation(0, hflip=True)
        for picture in _pictures(1 if "short" in options else FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def sound(source: Source, *options: str) -> None:
    """Sound without a video, perhaps with ``cover`` art."""
    source.path = source.path.with_suffix(".mp4")
    with av.open(str(source.path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        art: Any = container.add_stream("png") if "cover" in options else None
        if art is not None:
            art.width = art.height = SIZE_PX
            art.pix_fmt, art.disposition = "rgb24", av.stream.Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(_pictures(1)[0], format="rgb24")
            container.mux(art.encode(picture))
            container.mux(art.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 44100
        for _ in range(20):
            container.mux(stream.encode(silence))
        container.mux(stream.encode())


def file(source: Source, name: str, text: str) -> None:
    """A file of these bytes; ``{victim}`` is the path of the victim."""
    source.path = source.path.with_suffix(f".{name}")
    data = text.encode().decode("unicode_escape").replace("{victim}", str(source.victim))
    source.path.write_bytes(data.encode("latin-1"))


def cut(source: Source, share: str) -> None:
    """Keep the first share of the bytes."""
    os.truncate(source.path, int(source.path.stat().st_size * float(share)))


def noise(source: Source, share: str) -> None:
    """Overwrite 200 bytes somewhere."""
    data = bytearray(source.path.read_bytes())
    start = int(len(data) * float(share))
    data[start : start + 200] = np.random.default_rng(0).bytes(200)
    source.path.write_bytes(data)


def pipe(source: Source, name: str) -> None:
    """A pipe instead of an image."""
    (source.path / name).unlink()
    os.mkfifo(source.path / name)


def inside(source: Source, name: str) -> None:
    """A folder instead of an image."""
    (source.path / name).unlink()
    (source.path / name).mkdir()


def without(source: Source, name: str) -> None:
    """Remove an image."""
    (source.path / name).unlink()


def _pictures(count: int) -> np.ndarray:
    return pictures(count, seed=1, height=SIZE_PX, width=SIZE_PX)


def _image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    data = io.BytesIO()
    grain = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(grain)
    if mode == "I;16":
        image = Image.fromarray(grain[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(data, kind, **options)
    return data.getvalue()


def _damaged(data: bytes) -> bytes:
    """Other bytes in the middle of the pixels."""
    middle = len(data) // 2
    return data[:middle] + b"\xff\xd9\x00\x13" * 20 + data[middle + 80 :]


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _png(*chunks: bytes, width: int = 4, height: int = 4, colours: int = 2) -> bytes:
    row = bytes(1 + 4 * (3 if colours == 2 else 1))
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(row * 4)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _image("JPEG", exif=exif)


def _animated(kind: str) -> bytes:
    data = io.BytesIO()
    first, *rest = [Image.fromarray(picture) for picture in _pictures(3)]
    first.save(data, kind, save_all=True, append_images=rest)
    return data.getvalue()


BOMB = zlib.compress(bytes(200 << 20))

IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "html": lambda: b"<html>404</html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "gif": lambda: _animated("GIF"),
    "cut-jpeg": lambda: _image("JPEG")[:1000],
    "damaged-jpeg": lambda: _damaged(_image("JPEG")),
    "damaged-cmyk": lambda: _damaged(_image("JPEG", "CMYK")),
    "cut-progressive": lambda: _image("JPEG", progressive=True)[:1500],
    "cmyk": lambda: _image("JPEG", "CMYK"),
    "grey": lambda: _image("JPEG", "L"),
    "turned": _turned,
    "cut-png": lambda: _image("PNG")[:1000],
    "damaged-png": lambda: _damaged(_image("PNG")),
    "ztxt-bomb": lambda: _png(_chunk(b"zTXt", b"k\0\0" + BOMB)),
    "iccp-bomb": lambda: _png(_chunk(b"iCCP", b"k\0\0" + BOMB)),
    "short-trns": lambda: _png(_chunk(b"tRNS", b"\0")),
    "short-ihdr": lambda: b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", b"\0\0\0\4"),
    "no-palette": lambda: _png(colours=3),
    "huge": lambda: _png(width=60_000, height=60_000),
    "thin": lambda: _png(width=1, height=40_000_000),
    "no-size": lambda: _png(width=0, height=4),
    "16-bit": lambda: _image("PNG", "I;16"),
    "palette": lambda: _image("PNG", "P"),
    "alpha": lambda: _image("PNG", "RGBA"),
    "animated-webp": lambda: _animated("WEBP"),
    "animated-png": lambda: _animated("PNG"),
    "cut-webp": lambda: _image("WEBP")[:500],
    "cut-bmp": lambda: _image("BMP")[:500],
}
