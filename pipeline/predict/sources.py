"""Paths that the user names -> the videos to predict: files, or folders of images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import RefusedError
from cache.outside import MIB, read_text
from pipeline.datasets.videos import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key

LIST_SUFFIX = ".txt"
_LIST_BYTES_MAX = 64 * MIB


@dataclass(frozen=True)
class Source:
    """A video file, or a folder of images; ``name`` is as short as the user's own words allow."""

    name: str
    path: Path


def find_sources(inputs: Sequence[Path | str]) -> list[Source]:
    """The videos that ``inputs`` name, in their order, each once.

    A folder that holds images is one video. Any other folder is searched for videos and for folders
    of images, in natural order; links to folders are not followed, hidden files are not looked at.
    A text file (.txt) lists paths, one a line, relative to itself. Raises RefusedError for a path
    that does not exist, for an image, and for a folder with no videos or with videos and images.
    """
    found: dict[str, Source] = {}
    for given in inputs:
        for path in _expand(Path(given)):
            source = Source(_printable(path), path)
            found.setdefault(os.path.abspath(path), source)
    if not found:
        raise RefusedError("no videos given; name videos, folders or a list of them (.txt)")
    return list(found.values())


def _expand(path: Path) -> Iterator[Path]:
    if path.suffix.lower() != LIST_SUFFIX or path.is_dir():
        yield from _named(path)
        return
    lines = read_text(path, "a list of videos", _LIST_BYTES_MAX).splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield from _named(path.parent / line.strip(), f"{path}:{number}: ")


def _named(path: Path, where: str = "") -> list[Path]:
    if not os.path.lexists(path):
        raise RefusedError(f"{where}no video at {path}; check the path")
    if path.is_dir():
        found = list(_inside(path))
        if not found:
            raise RefusedError(f"{where}{path} holds neither videos nor folders of images")
        return found
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise RefusedError(
            f"{where}{path} is an image; name a folder that holds the frames of one video, if only "
            "this one"
        )
    return [path]


def _inside(root: Path) -> Iterator[Path]:
    """The videos of a folder and of those in it; a folder that holds images is one."""
    pending = [root]
    while pending:
        folder = pending.pop()
        entries = _entries(folder)
        files = [Path(entry.path) for entry in entries if entry.is_file()]
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        images = any(path.suffix.lower() in IMAGE_SUFFIXES for path in files)
        if images and videos:
            raise RefusedError(
                f"{folder} holds both videos and images, so it is not clear what to predict; "
                "name the videos themselves"
            )
        if images:
            yield folder
            continue
        yield from videos
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        pending += [Path(entry.path) for entry in reversed(folders)]


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    """What a folder holds, in natural order, without what is hidden."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise RefusedError(f"{folder}: {error.strerror}; check the path") from error
    return sorted(entries, key=lambda entry: (natural_key(entry.name), entry.name))


def _printable(path: Path) -> str:
    """A name of a file need not be text."""
    return os.fsencode(path).decode(errors="backslashreplace")
