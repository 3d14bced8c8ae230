"""Text from outside -> text that is safe to print, and to put into a table."""

import unicodedata
from collections.abc import Sequence

# Control characters, invisible formatting (bidirectional overrides), surrogates, line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def show(text: object) -> str:
    r"""Escape what a terminal would obey instead of printing.

    File names are not ours and may contain escape sequences.  Print the result with rich's markup
    off (``rich.text.Text``, ``markup=False``): a name such as ``[/b]`` is not markup.

    >>> show("a\x1b]52;c;x\x07b"), show("[/b] \u202egpj.exe")
    ('a\\x1b]52;c;x\\x07b', '[/b] \\u202egpj.exe')
    """
    return "".join(
        escape(letter) if unicodedata.category(letter) in _HIDDEN else letter
        for letter in str(text)
    )


def markdown_line(cells: Sequence[object]) -> str:
    r"""One line of a Markdown table.

    >>> markdown_line(["a|b", "c\nd"])
    '| a\\|b | c\\nd |'
    """
    return "| " + " | ".join(show(cell).replace("|", r"\|") for cell in cells) + " |"


def escape(letter: str) -> str:
    """A letter as Python's escape sequence."""
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
