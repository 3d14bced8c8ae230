"""Data sets on disk as users have them, with tiny real images and videos."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from support.sources import pictures, write_video


def write(path: Path, text: str | bytes) -> Path:
    """A file, with the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def add_frames(folder: Path, count: int = 3, suffix: str = ".jpg") -> None:
    """A folder of images 1 to ``count``, unpadded, as several data sets number them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(_frames(folder, count), 1):
        Image.fromarray(frame).save(folder / f"{number}{suffix}")


def add_video(path: Path) -> None:
    """A video of four frames, in the format that its suffix names."""
    codecs = {".flv": "flv", ".webm": "libvpx", ".wmv": "wmv2", ".gif": "gif", ".m1v": "mpeg1video"}
    codecs |= dict.fromkeys((".ts", ".mpg", ".vob", ".m2v"), "mpeg2video")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, _frames(path, 4), codecs.get(path.suffix, "mpeg4"))


def _frames(path: Path, count: int) -> np.ndarray:
    """Other pixels for every path."""
    return pictures(count, seed=zlib.crc32(str(path).encode()), height=16, width=16)
