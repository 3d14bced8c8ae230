"""Text -> output that every terminal can print, and that is safe to print.

Two layers: ``show`` makes one line of a name that is not ours, and whatever else is printed passes
through an ``Escaping`` stream, so that no print, warning or traceback can be forgotten.
"""

import codecs
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from pipeline.show import escape, show

__all__ = [
    "ClosedOutputError",
    "Escaping",
    "columns",
    "command",
    "count",
    "duration",
    "escape_output",
    "next_step",
    "show",
]

# For terminals that print only ASCII.
_PLAIN = {"±": "+-", "–": "-", "−": "-", "—": "-", "…": "...", "×": "x", "→": "->", "§": "section "}


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells -> aligned lines; nothing is cut or wrapped, however narrow the terminal.

    >>> print(columns([("fold", "UAR %"), ("1", "82.86")]))
    fold  UAR %
    1     82.86
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def count(number: int, noun: str) -> str:
    """A number and what it counts.

    >>> count(1, "run"), count(0, "run")
    ('1 run', '0 runs')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """About how long something takes.

    >>> duration(75), duration(5400), duration(180_000)
    ('75 s', '90 min', '50 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"


def command(*words: object) -> str:
    """Words as a command line, ready to copy.

    >>> command("tgdfer", "train", "--store", "my store.zarr")
    "tgdfer train --store 'my store.zarr'"
    """
    return " ".join(shlex.quote(show(word)) for word in words)


def next_step(*words: object) -> None:
    """Print the command that usually comes next to stderr."""
    sys.stdout.flush()  # where both go to one file, this is the last line
    print(f"next: {command(*words)}", file=sys.stderr)


class ClosedOutputError(Exception):
    """Nobody reads standard output any more (EPIPE), or it goes where nothing can be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.errno = error.errno


class Escaping:
    """A stream on which nothing but line breaks is obeyed by the terminal.

    A failed write to stdout raises ClosedOutputError; one to stderr is ignored, since there is no
    better place to say so.
    """

    # Every character is accepted: what the terminal lacks is replaced further down.
    encoding = "utf-8"

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self.stream = stream  # on which a progress bar may draw
        self._needed = needed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Print ``text``, which may have several lines."""
        self._attempt(self.stream.write, "\n".join(map(show, text.split("\n"))))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Print several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Wait until everything is written."""
        self._attempt(self.stream.flush)

    def _attempt(self, act: Callable[..., object], *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            if self._needed:
                raise ClosedOutputError(error) from error


def escape_output() -> None:
    """From now on, everything printed is escaped, and a character that cannot be encoded replaced.

    A closed standard stream goes to /dev/null: else the next file to be opened would get its
    number, and what a signal handler or a library prints.
    """
    for number in range(3):
        with suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    codecs.register_error("tgdfer", _replace)
    sys.stdout, sys.stderr = _escaping(sys.stdout, True), _escaping(sys.stderr, False)


def _escaping(stream: Any, needed: bool) -> Any:
    if isinstance(stream, Escaping):
        return stream
    if stream is None:  # it was closed when Python started
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="tgdfer")
    return Escaping(stream, needed)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter) or escape(letter) for letter in letters), error.end
