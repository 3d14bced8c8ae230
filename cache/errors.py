"""The two failures that a command reports in one sentence instead of a traceback."""


class RefusedError(ValueError):
    """Wrong use, or work refused before it began (exit code 2).

    The message says what came, what was expected, where, and what to do.
    """


class StorageError(OSError):
    """The disk failed while work was kept: full, read-only, or an I/O error (exit code 5)."""
