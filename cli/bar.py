"""How far a long piece of work is: a bar on a terminal, elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0

OnCount = Callable[[int, int, str], None]  # (done, in all, what else there is to say)


@contextmanager
def counting(title: str, unit: str) -> Iterator[OnCount]:
    """Yields what is called with each new count; all of it is shown on stderr."""
    if not sys.stderr.isatty():
        yield _plain_lines(title, unit)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, *times, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, more: str) -> None:
            bar.update(task, completed=done, total=total, description=more)

        yield update


def _plain_lines(title: str, unit: str) -> OnCount:
    said = time.monotonic()

    def say(done: int, total: int, more: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            text = f"{title}: {done} of {total} {unit}"
            print(f"{text}, {more}" if more else text, file=sys.stderr)

    return say
