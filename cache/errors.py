"""The failures that a command reports in one sentence instead of a traceback."""


class RefusedError(ValueError):
    """Wrong use, or work refused before it began (exit code 2).

    The message says what was given, what was expected, where, and what to do.
    """


class DamagedError(RefusedError):
    """A store is not as it was written; verify lists the damage, repair redoes it."""


class StorageError(OSError):
    """The disk failed: full, read-only, gone, or an input/output error (exit code 5)."""
