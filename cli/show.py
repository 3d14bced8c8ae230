"""Text -> output that every terminal can print."""

import codecs
import io
import shlex
import sys
from collections.abc import Sequence

from pipeline.show import escape, show

__all__ = ["columns", "count", "next_step", "print_what_the_terminal_can", "show"]

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


def next_step(*words: object) -> None:
    """Print the command that usually comes next to stderr, ready to copy."""
    sys.stdout.flush()  # where both go to one file, this is the last line
    print(f"next: {' '.join(shlex.quote(show(word)) for word in words)}", file=sys.stderr)


def print_what_the_terminal_can() -> None:
    """Replace characters that stdout and stderr cannot encode, instead of failing."""
    codecs.register_error("tgdfer", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="tgdfer")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter) or escape(letter) for letter in letters), error.end
