"""Finished tables -> files in a folder, each complete or absent."""

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cache.errors import RefusedError, StorageError
from cache.files import make_directories, sweep, write_files
from pipeline.resources import check_writable

_NEIGHBOURS = 8


def check_reports(out: Path, *names: str) -> None:
    """Refuse a folder to which these files cannot be written; errors as in ``check_writable``."""
    for place in (out, out / ".tmp"):
        check_writable(place, "--out")
    for name in names:
        if (out / name).is_dir():
            raise RefusedError(f"--out {out}: {name} is a folder there; choose another --out")


def write_reports(contents: Mapping[str, str | bytes], out: Path) -> list[Path]:
    """Write each named text or picture to ``out``; returns the paths.

    Several processes may do so at once. What a killed one left in ``out/.tmp`` is removed.
    """
    scratch = out / ".tmp"
    files = {
        out / name: own.encode() if isinstance(own, str) else own for name, own in contents.items()
    }
    for attempt in range(_NEIGHBOURS):
        make_directories(scratch, *{path.parent for path in files})
        try:
            write_files(files, scratch)
            break
        except StorageError as error:
            # Another process, which has finished its tables, may just have removed the folder.
            if error.errno != errno.ENOENT or attempt + 1 == _NEIGHBOURS:
                raise
    with suppress(OSError):
        sweep(scratch)
        scratch.rmdir()
    return list(files)
