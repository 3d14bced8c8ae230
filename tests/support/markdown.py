"""Markdown tables, in which columns are aligned, as tests compare them."""

import re


def tight(text: str) -> str:
    """The same lines with one space where there are several."""
    return re.sub(" +", " ", text)


def prose(text: str) -> str:
    """All of it as one line."""
    return " ".join(text.split())


def cells_of(text: str) -> dict[str, list[str]]:
    """The cells of each row by its first one, heads too, where a table goes on below."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| -"):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found.setdefault(name, []).extend(cells)
    return found
