"""A file that somebody else wrote -> its text or JSON, or one sentence on what is wrong with it.

Lists, settings, weights and records are opened here: a device or a FIFO is not waited for, no more
than a limit is read, and other encodings are not guessed.
"""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from cache.errors import RefusedError

MIB = 1 << 20


def open_outside(
    path: Path,
    what: str,
    bytes_max: int,
    error: type[RefusedError] = RefusedError,
    links: bool = True,
) -> BufferedReader:
    """Open a regular file for reading; ``what`` says what was expected, "a TOML file".

    Raises ``error`` if there is none, if it cannot be opened, is larger, or is a link although
    ``links`` are not followed.
    """
    # Opening a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags)
    except OSError as failure:
        why = "a link" if failure.errno == errno.ELOOP and not links else failure.strerror
    except ValueError as failure:  # a NUL in the name
        why = str(failure)
    else:
        found = os.fstat(handle)
        regular = stat.S_ISREG(found.st_mode)
        if regular and found.st_size <= bytes_max:
            return open(handle, "rb")
        os.close(handle)
        other = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, FIFO or socket"
        why = f"{found.st_size} bytes, more than {bytes_max} bytes" if regular else other
    raise error(f"{path}: cannot be read ({why}); expected {what}")


def read_outside(path: Path, what: str, bytes_max: int) -> bytes:
    """The bytes of a regular file; errors as in ``open_outside``."""
    with open_outside(path, what, bytes_max) as file:
        return file.read(bytes_max)


def read_text(path: Path, what: str, bytes_max: int) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; errors as in ``read_outside``.

    Raises RefusedError with the line for any other encoding, and for NUL.
    """
    data = read_outside(path, what, bytes_max)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        bad = error.start
    else:
        if "\0" not in text:
            return text.removeprefix("\ufeff")
        bad = data.index(b"\0")
    line = data.count(b"\n", 0, bad) + 1
    raise RefusedError(f"{path}:{line}: byte {data[bad]:#04x} is no text; save the file as UTF-8")


def parse_json(data: bytes | str, where: object) -> dict[str, Any]:
    """A JSON object; ``where`` says in errors which.

    Raises RefusedError for anything else: broken, nested too deeply, a list, numbers too long.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise RefusedError(f"{where} is not valid JSON: {why}") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{where} holds a {type(found).__name__}, expected a JSON object")
    return found
