"""The bytes of an image -> RGB, or the one reason why it cannot be used.

Whatever a decoder raises about a source is such a reason, see ``decoder_errors``.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000  # Pillow only warns about more, and needs 2.8 GB for it
MAX_ASPECT = 100  # enlarged until its short side fits a view, a longer image would fill the memory
_REASON_LETTERS = 500
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM")  # of these formats
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_JPEG_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")  # markers that are followed by a length
_ARITHMETIC = (0xC9, 0xCA)
_PROGRESSIVE = (0xC2, 0xCA)
_SCAN = 0xDA
_BASELINE = 0xC0
# Segments with nothing for Pillow to tell: JFIF, tables, comment.
_SILENT = (0xE0, 0xDB, 0xC4, 0xDD, 0xFE)
_PNG_PALETTE = 3  # the colour type of pixels that are numbers of a palette

# Pillow's warnings of odd metadata name no file, so on a terminal they would help nobody.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadVideoError(ValueError):
    """A video that cannot be used; the message is the reason that the store records."""

    def __init__(self, reason: str) -> None:
        # The name of a file need not be text; the record of a store must be.
        super().__init__(reason.encode(errors="backslashreplace").decode()[:_REASON_LETTERS])


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Turn whatever a decoder, or the disk, raises about a source into BadVideoError.

    That includes MemoryError, which decoders raise for absurd sizes.  The body is a call of a
    decoder and nothing else: an error of our own ends the work, and is no property of a video.
    """
    try:
        yield
    except BadVideoError:
        raise
    except Exception as error:
        # The message without the path: reasons must not depend on where the data lies.
        text = getattr(error, "strerror", None) or error
        raise BadVideoError(f"{type(error).__name__}: {text}") from error


def check_size(width: int, height: int) -> None:
    """Raise BadVideoError for frames of a size that no view can be made of."""
    if not 0 < width * height <= MAX_PIXELS:
        raise BadVideoError(f"{width} x {height} pixels, expected 1 to {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadVideoError(
            f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other"
        )


def decode_image(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """(RGB uint8 [height, width, 3], what was repaired) of an encoded image."""
    if not data:
        raise BadVideoError("0 bytes")
    if (plain := _decode_plain_jpeg(data)) is not None:
        return plain, ()
    with decoder_errors(), _open(data) as image:
        check_size(image.width, image.height)
        # A file of several pictures is one frame here; "MPO" is Pillow's name for such a JPEG.
        several = ("first of several pictures",) if getattr(image, "is_animated", False) else ()
        if image.format in ("JPEG", "MPO"):
            rgb, flags = _jpeg_to_rgb(data, image)
        else:
            if image.format == "PNG":
                _check_png(data)
            image.load()
            rgb, flags = _to_rgb(image)
            flags += _unseen(data, image)
        return rgb, flags + several


def check_beginning(head: bytes) -> None:
    """Raise BadVideoError for first bytes with which no image begins; 16 of them tell."""
    if not head:
        raise BadVideoError("0 bytes")
    if not head.startswith(_BEGINNINGS):
        raise _no_image(head)


def _decode_plain_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels of a sound JPEG in colour without metadata; None of any other image.

    Nearly all frames are such images, of which Pillow would say nothing, in half the time again.
    """
    at, size = 2, (0, 0)
    if not data.startswith(b"\xff\xd8\xff") or b"\xff\xc9" in data:
        return None
    while (marker := int.from_bytes(data[at : at + 2], "big") - 0xFF00) != _SCAN:
        if marker == _BASELINE and size == (0, 0) and at + 10 <= len(data):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or components != 3:
                return None
            size = width, height
        elif marker not in _SILENT:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    try:
        check_size(*size)
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except (BadVideoError, ValueError, MemoryError):
        return None  # to be told why
    return pixels


def _unseen(data: bytes, image: Image.Image) -> tuple[str, ...]:
    """Flags for what Pillow converts without telling, in a mode that is RGB already."""
    deep = image.format == "PNG" and data[24] == 16 and not image.mode.startswith("I")
    keyed = image.mode == "RGB" and "transparency" in image.info
    return ("converted from 16 bits",) * deep + ("a transparent colour is shown",) * keyed


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise _no_image(data) from None


def _no_image(data: bytes) -> BadVideoError:
    return BadVideoError(f"not an image ({', '.join(_FORMATS)}): begins with {data[:16]!r}")


def _jpeg_to_rgb(data: bytes, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """The same pixels as Pillow's, but corrupt bytes, a mere warning of libjpeg, are refused."""
    colours = "CMYK" if image.mode == "CMYK" else "RGB"
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, strict=True)
    # Hardly any file needs the search of its segments.
    odd = image.info.get("progressive") or b"\xff\xc9" in data
    flags = _unnoticed_damage(data) if odd else ()
    if colours == "CMYK" or image.getexif().get(0x0112, 1) != 1:
        rgb, repaired = _to_rgb(image)
        return rgb, repaired + flags
    return pixels, flags + (("converted from L",) if image.mode == "L" else ())


def _unnoticed_damage(jpeg: bytes) -> tuple[str, ...]:
    """Flags for what even a strict decoder accepts."""
    unsent: dict[int, set[int]] = {}  # component -> coefficients not yet at full precision
    flags = []
    for marker, body in _segments(jpeg):
        if marker in _ARITHMETIC:
            flags.append("arithmetic-coded, which hides damage")
        if marker in _PROGRESSIVE:
            unsent = {component: set(range(64)) for component in body[6::3]}
        elif marker == _SCAN:
            if not unsent:
                break
            *components, first, last, precision = body[1::2][: body[0]] + body[-3:]
            if precision % 16 == 0:
                for component in components:
                    unsent[component] -= set(range(first, last + 1))
    if any(unsent.values()):
        flags.append("progressive without its last scans")
    return tuple(flags)


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of each segment of a sound JPEG, up to the end of its first picture."""
    at = 2
    while (found := _JPEG_SEGMENT.search(jpeg, at)) and b"\xff\xd9" not in jpeg[at : found.start()]:
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        yield jpeg[found.end() - 1], jpeg[found.end() + 2 : at]


def _check_png(data: bytes) -> None:
    """Refuse a PNG with a wrong checksum in its pixels, or without its palette: Pillow does not."""
    at, coloured = 8, data[25] != _PNG_PALETTE
    while at < len(data):
        end, kind = at + 8 + int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise BadVideoError(f"damaged or cut in PNG chunk {kind!r}")
        coloured |= kind == b"PLTE"
        if kind == b"IDAT" and not coloured:
            raise BadVideoError("a PNG of palette colours without a palette")
        if kind == b"IEND":
            return
        at = end + 4


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
