"""Finished tables -> files in a folder, each complete or absent."""

import errno
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cache.errors import StorageError
from cache.files import make_directories, write_files

_SCRATCH = re.compile(r"[0-9a-f]{32}")  # as write_files names what is not complete
_NEIGHBOURS = 8


def write_reports(contents: Mapping[str, str], out: Path) -> list[Path]:
    """Write each named text to ``out``; returns the paths.

    Several processes may do so at once. What a killed one left in ``out/.tmp`` is removed.
    """
    scratch = out / ".tmp"
    files = {out / name: text.encode() for name, text in contents.items()}
    for attempt in range(_NEIGHBOURS):
        make_directories(scratch)
        try:
            write_files(files, scratch)
            break
        except StorageError as error:
            # Another process, which has finished its tables, may just have removed the folder.
            if error.errno != errno.ENOENT or attempt + 1 == _NEIGHBOURS:
                raise
    with suppress(OSError):
        for litter in scratch.iterdir():
            if _SCRATCH.fullmatch(litter.name):
                litter.unlink(missing_ok=True)
        scratch.rmdir()
    return list(files)
