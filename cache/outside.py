"""A file that somebody else wrote -> its text or JSON, or one sentence on what is wrong with it.

Lists, ground truth and settings are read here and nowhere else: a device or a FIFO is not waited
for, no more than a limit is read, and other encodings are not guessed.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from cache.errors import RefusedError

MIB = 1 << 20


def read_outside(path: Path, what: str, bytes_max: int) -> bytes:
    """The bytes of a regular file; ``what`` says in errors what was expected, "a TOML file".

    Raises RefusedError if there is none, if it cannot be read, is no regular file, or is larger.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(bytes_max + 1) if regular else b""
    except OSError as error:
        why = error.strerror
    except ValueError as error:  # a NUL in the name
        why = str(error)
    else:
        if regular and len(data) <= bytes_max:
            return data
        why = f"more than {bytes_max} bytes" if regular else "a device, FIFO or socket"
    raise RefusedError(f"{path}: cannot be read ({why}); expected {what}")


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


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a FIFO would wait for its writer.
    return os.open(path, flags | os.O_NONBLOCK)
