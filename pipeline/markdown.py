"""Cells -> Markdown tables that fit the width of a terminal, and can be read there as they are."""

import textwrap
from collections.abc import Sequence

from pipeline.show import show

WIDTH = 100  # columns of a terminal


def table(
    head: Sequence[object], rows: Sequence[Sequence[object]], width: int = WIDTH
) -> list[str]:
    r"""Lines of an aligned table, or of several, one below the other, each with the first column.

    Only a line with a single cell that is too long is longer than ``width``.

    >>> print("\n".join(table(["", "UAR", "WAR"], [["a|b", "60.17", "71.62"]], width=16)))
    |      | UAR   |
    | ---- | ----- |
    | a\|b | 60.17 |
    <BLANKLINE>
    |      | WAR   |
    | ---- | ----- |
    | a\|b | 71.62 |
    """
    lines = [[show(cell).replace("|", r"\|") for cell in row] for row in (head, *rows)]
    widths = [max(1, *map(len, column)) for column in zip(*lines, strict=True)]
    parts = []
    for chosen in groups([own + len(" | ") for own in widths], width - len("|")):
        rule = ["-" * widths[n] for n in chosen]
        cells = [[line[n].ljust(widths[n]) for n in chosen] for line in lines]
        parts.append("\n".join(f"| {' | '.join(own)} |" for own in (cells[0], rule, *cells[1:])))
    return "\n\n".join(parts).split("\n")


def groups(widths: Sequence[float], limit: float) -> list[list[int]]:
    """Numbers of columns that fit beside each other, the first column in every group.

    >>> groups([4, 3, 3, 9], 10)
    [[0, 1, 2], [0, 3]]
    """
    found, left = [[0]], limit - widths[0]
    for n, own in enumerate(widths[1:], 1):
        if own > left and len(found[-1]) > 1:
            found.append([0])
            left = limit - widths[0]
        found[-1].append(n)
        left -= own
    return found


def item(text: str, width: int = WIDTH) -> str:
    """A list item, wrapped between words.

    >>> print(item("encoder: mini, frozen", width=16))
    - encoder: mini,
      frozen
    """
    return _wrapped(f"- {show(text)}", width, "  ")


def paragraph(text: str, width: int = WIDTH) -> str:
    """A paragraph, wrapped between words."""
    return _wrapped(show(text), width, "")


def _wrapped(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
    )
