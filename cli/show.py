"""Any text -> text that is safe to print: no control, no bidirectional, no broken characters."""

import unicodedata

# Controls, invisible formatting (bidirectional overrides), halves of characters, line ends.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def show(text: object) -> str:
    r"""Escape what a terminal would obey instead of printing.

    Names of files come from elsewhere and may hold escape sequences.  Print the result with rich's
    markup off (``rich.text.Text``, ``markup=False``): a name such as ``[/b]`` is no markup.

    >>> show("a\x1b]52;c;x\x07b"), show("[/b] \u202egpj.exe")
    ('a\\x1b]52;c;x\\x07b', '[/b] \\u202egpj.exe')
    """
    return "".join(
        _escape(letter) if unicodedata.category(letter) in _HIDDEN else letter
        for letter in str(text)
    )


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
