"""Mutated images and videos -> the outcome of decoding them, in a process that may die of it.

    python -m support.fuzz SEED COUNT FOLDER

prints the number of each case before it is decoded, and at the end the outcomes as JSON.  Case i of
a seed is the same whatever came before it: ``mutated(seed, i, seeds())``.
"""

import io
import json
import signal
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.video.frames import read_frames
from pipeline.video.images import MAX_PIXELS, BadVideoError, decode_image
from support.sources import pictures, write_video

HANGS_SECONDS = 20  # of the clock: other processes may be using all cores
IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "progressive.jpeg": ("JPEG", "RGB", {"progressive": True}),
    "grey.jpeg": ("JPEG", "L", {"quality": 90}),
    "cmyk.jpeg": ("JPEG", "CMYK", {}),
    "exif.jpeg": (
        "JPEG",
        "RGB",
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0"},
    ),
    "png": ("PNG", "RGB", {}),
    "palette.png": ("PNG", "P", {"transparency": 0}),
    "alpha.png": ("PNG", "RGBA", {"dpi": (72, 72)}),
    "16.png": ("PNG", "I;16", {}),
    "webp": ("WEBP", "RGB", {}),
    "lossless.webp": ("WEBP", "RGBA", {"lossless": True}),
    "bmp": ("BMP", "RGB", {}),
    "palette.bmp": ("BMP", "P", {}),
}
VIDEOS = {
    "mp4": "mpeg4",
    "h264.mp4": "libx264",
    "mov": "mjpeg",
    "avi": "mpeg4",
    "mkv": "libx264",
    "webm": "libvpx",
    "vp9.webm": "libvpx-vp9",
    "gif": "gif",
    "flv": "flv",
    "ts": "mpeg2video",
    "mpg": "mpeg1video",
    "wmv": "wmv2",
    "ogv": "libvpx",
}


def seeds(folder: Path) -> dict[str, bytes]:
    """The sound files, by their ends: small, so that a mutation hits what matters."""
    sound = {}
    for name, (kind, mode, options) in IMAGES.items():
        image = Image.fromarray(pictures(1, height=24, width=32)[0])
        image = Image.new("I;16", (9, 7), 4096) if mode == "I;16" else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        sound[name] = buffer.getvalue()
    for name, codec in VIDEOS.items():
        path = write_video(folder / f"sound.{name}", pictures(6, height=32, width=32), codec)
        sound[name] = path.read_bytes()
    return sound


def mutated(seed: int, case: int, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """(name of the sound file, its bytes after one to three mutations)."""
    rng = np.random.default_rng([seed, case])
    group = list(VIDEOS if case % 5 == 0 else IMAGES)
    name = group[rng.integers(len(group))]
    data = bytearray(sound[name])
    for _ in range(rng.integers(1, 4)):
        mutate = MUTATIONS[rng.integers(len(MUTATIONS))]
        data = mutate(data or bytearray(1), rng, sound)
    if name.endswith("png") and rng.random() < 0.8:
        data = with_checksums(data)
    return name, bytes(data)


def flip_bits(data: bytearray, rng: np.random.Generator, _: dict[str, bytes]) -> bytearray:
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))
    return data


def cut(data: bytearray, rng: np.random.Generator, _: dict[str, bytes]) -> bytearray:
    return data[: rng.integers(len(data))]


def change_number(data: bytearray, rng: np.random.Generator, _: dict[str, bytes]) -> bytearray:
    """One of the numbers at the front, where headers are, or anywhere, becomes an extreme one."""
    size = int(rng.choice([1, 2, 4, 8]))
    at = rng.integers(min(len(data), int(rng.choice([64, 512, len(data)]))))
    value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF])).to_bytes(1, "big")
    number = value + bytes([int(rng.choice([0, 0xFF]))]) * (size - 1)
    data[at : at + size] = number[:: int(rng.choice([1, -1]))]
    return data


def move_piece(data: bytearray, rng: np.random.Generator, sound: dict[str, bytes]) -> bytearray:
    """A piece of this or another file replaces, precedes or follows something."""
    names = list(sound)
    other = data if rng.random() < 0.5 else sound[names[rng.integers(len(names))]]
    start, at = rng.integers(len(other)), rng.integers(len(data))
    piece = other[start : start + rng.integers(1, 200)]
    data[at : at + rng.integers(0, 2) * len(piece)] = piece
    return data


def drop_piece(data: bytearray, rng: np.random.Generator, _: dict[str, bytes]) -> bytearray:
    at = rng.integers(len(data))
    del data[at : at + rng.integers(1, 100)]
    return data


def change_segment(data: bytearray, rng: np.random.Generator, _: dict[str, bytes]) -> bytearray:
    """A whole segment of a JPEG, or chunk of a PNG, is dropped, doubled, emptied or renamed."""
    edges = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xBF < data[at + 1] < 0xFF]
    if data[:4] == b"\x89PNG":
        edges, at = [], 8
        while at < len(data):
            edges.append(at)
            at += 12 + int.from_bytes(data[at : at + 4], "big")
    if len(edges) < 2:
        return flip_bits(data, rng, {})
    which = rng.integers(len(edges) - 1)
    start, stop = edges[which], edges[which + 1]
    action = rng.integers(4)
    if action == 0:
        del data[start:stop]
    elif action == 1:
        data[start:start] = data[start:stop]
    elif action == 2:
        data[start + 4 : stop] = bytes(max(0, stop - start - 4))
    else:
        data[start + 4 : start + 8] = rng.choice(PNG_NAMES)
    return data


def with_checksums(png: bytearray) -> bytearray:
    """The PNG with the checksum of each chunk corrected, so that a decoder reads on."""
    at = 8
    while at < len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        if end + 4 <= len(png):
            png[end : end + 4] = zlib.crc32(png[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return png


PNG_NAMES = [b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT"]
MUTATIONS = [flip_bits, cut, change_number, move_piece, drop_piece, change_segment]


def outcome(name: str, data: bytes, folder: Path) -> str:
    """``frames``, or ``refused``; raises whatever else the decoding raises."""

    def take(_: int, rgb: np.ndarray) -> None:
        assert rgb.dtype == np.uint8
        assert rgb.ndim == 3
        assert rgb.shape[2] == 3
        assert 0 < rgb.size <= 3 * MAX_PIXELS

    try:
        if name in IMAGES:
            take(0, decode_image(data)[0])
        else:
            path = folder / "v"
            path.write_bytes(data)
            read_frames(path, lambda frames: range(min(frames, 100)), take)
    except BadVideoError as error:
        reason = str(error)
    else:
        return "frames"
    assert reason
    assert str(folder) not in reason
    return "refused"


def main(seed: int, count: int, folder: Path) -> None:
    sound = seeds(folder)
    found = {name: Counter[str]() for name in sound}
    for case in range(count):
        print(case, flush=True)
        signal.setitimer(signal.ITIMER_REAL, HANGS_SECONDS)
        name, data = mutated(seed, case, sound)
        found[name][outcome(name, data, folder)] += 1
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"peak_kib": peak, "outcomes": found}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
