"""Text -> output that every terminal can print, and that is safe to print."""

import codecs
import io
import shlex
import sys
import unicodedata
from collections.abc import Sequence

# Control characters, invisible formatting (bidirectional overrides), surrogates, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}

# For terminals that print only ASCII.
_PLAIN = {"±": "+-", "–": "-", "−": "-", "—": "-", "…": "...", "×": "x", "→": "->", "§": "section "}


def show(text: object) -> str:
    r"""Escape what a terminal would obey instead of printing.

    File names are not ours and may contain escape sequences.  Print the result with rich's markup
    off (``rich.text.Text``, ``markup=False``): a name such as ``[/b]`` is not markup.

    >>> show("a\x1b]52;c;x\x07b"), show("[/b] \u202egpj.exe")
    ('a\\x1b]52;c;x\\x07b', '[/b] \\u202egpj.exe')
    """
    return "".join(
        _escape(letter) if unicodedata.category(letter) in _HIDDEN else letter
        for letter in str(text)
    )


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
    return "".join(_PLAIN.get(letter) or _escape(letter) for letter in letters), error.end


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
