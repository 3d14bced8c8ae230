"""``catalogue.md`` -> rows. One line of a table there is one hostile input."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CATALOGUE = Path(__file__).with_name("catalogue.md")


@dataclass(frozen=True)
class Row:
    """One hostile input, and what must happen."""

    kind: str  # the heading of its table
    name: str
    input: tuple[tuple[str, ...], ...]  # words of inputs.py, in order
    command: str
    code: int
    says: str
    changes: tuple[str, ...]  # patterns; every other file stays as it is

    def arguments(self, urls: Mapping[str, str]) -> list[str]:
        """The command's words after ``tgdfer``; ``{name}`` is a shared command or a server.

        ``{TEXT*N}`` is a text N times.
        """
        names = SHARED | dict(urls)
        command = re.sub(r"\{(\w+)\}", lambda found: names[found[1]], self.command)
        command = re.sub(r"\{(.+?)\*(\d+)\}", lambda f: f[1] * int(f[2]), command)
        return [_decode(word) for word in shlex.split(command)]


@dataclass(frozen=True)
class MediaRow:
    """One hostile video, all of which are extracted together, and what must become of it."""

    name: str
    input: tuple[tuple[str, ...], ...]  # words of media.py, in order
    outcome: str  # left out, flagged or read
    says: str  # in the reason or the flags


def read_rows() -> Iterator[Row | MediaRow]:
    """The rows of all tables."""
    kind = ""
    for line in CATALOGUE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = line[3:]
        cells = [cell.strip().strip("`") for cell in line.strip("| ").split(" | ")]
        if line.startswith("| ") and cells[0] != "what" and not cells[0].startswith("---"):
            yield _row(kind, cells)


def _row(kind: str, cells: list[str]) -> Row | MediaRow:
    name, made, *rest = cells
    steps = tuple(tuple(shlex.split(step)) for step in made.split(" ; ") if step)
    if kind == "Media":
        return MediaRow(name, steps, rest[0], " ".join(rest[1:]))
    command, code, says, *changes = rest
    return Row(kind, name, steps, command, int(code), says, tuple(" ".join(changes).split()))


def _decode(word: str) -> str:
    return re.sub(
        r"\\(?:x..|u....|n)", lambda found: found[0].encode().decode("unicode_escape"), word
    )


SHARED = dict(re.findall(r"^- \{(\w+)\}: (.*)$", CATALOGUE.read_text("utf-8"), re.MULTILINE))
ROWS = list(read_rows())
COMMANDS = [row for row in ROWS if isinstance(row, Row)]
MEDIA = [row for row in ROWS if isinstance(row, MediaRow)]
