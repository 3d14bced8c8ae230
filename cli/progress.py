"""The progress of some work: a bar on a terminal, elsewhere a line now and then."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, TextIO, cast

from cli.show import Escaping, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 10.0
WIDE = 80  # columns; a narrower terminal has no room for the unit and the note


class Progress:
    """Yielded by ``progress``: advance it by what was done, or update it to what is done so far."""

    def __init__(self, title: str, total: int | None, unit: str, line_seconds: float) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self._earlier = 0
        self._line_seconds = line_seconds
        self._started = self._said = time.monotonic()
        self._begun = False

    def advance(self, done: int = 1, note: str = "") -> None:
        """``done`` more units are done."""
        self.update(self.done + done, note=note)

    def skip(self, done: int) -> None:
        """``done`` more units were done by an earlier command, so they say nothing of the rate."""
        self._earlier += done
        self.advance(done)

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """``done`` units of ``total``, if known by now, are done; ``note`` follows the figures."""
        self.done, self.total = done, total or self.total
        if not self._begun and done == self._earlier:
            self._started = time.monotonic()  # what came before was no such work
        self._begun = True
        self.draw(note)

    def draw(self, note: str) -> None:
        """Print a line, unless the last one is recent."""
        now = time.monotonic()
        if now - self._said >= self._line_seconds:
            self._said = now
            of = f" of {self.total}" if self.total else ""
            parts = (f"{self.done}{of} {self.unit}", note, self._left(now))
            print(f"{self.title}: {', '.join(filter(None, parts))}", file=sys.stderr)

    def _left(self, now: float) -> str:
        done = self.done - self._earlier
        if not done or not self.total:
            return ""
        seconds = (now - self._started) * (self.total - self.done) / done
        return f"about {duration(seconds)} left"


class _OnTerminal(Progress):
    def __init__(self, bar: "Bar", title: str, total: int | None, unit: str) -> None:
        super().__init__(title, total, unit, 0)
        self._bar, self._task = bar, bar.add_task(title, total=total, note="")

    def skip(self, done: int) -> None:
        super().skip(done)
        self._bar.reset(self._task, completed=self.done)  # forgets the rate so far

    def draw(self, note: str) -> None:
        self._bar.update(self._task, completed=self.done, total=self.total, note=note)


@contextmanager
def progress(
    title: str, total: int | None, unit: str, line_seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[Progress]:
    """Show the progress of the work inside on stderr; ``total`` is None while it is unknown."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Progress(title, total, unit, line_seconds)
        return
    # While the bar is drawn, rich passes on what is printed, and obeys escape sequences in it.
    with _bar(unit) as bar, redirect_stderr(_escaping()):
        yield _OnTerminal(bar, title, total, unit)


def _escaping() -> TextIO:
    return cast(TextIO, Escaping(sys.stderr, needed=False))


def _bar(unit: str) -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # The bar consists of the control characters that the stream would escape.
    console = Console(file=getattr(sys.stderr, "stream", sys.stderr))
    start = [BarColumn(bar_width=None), MofNCompleteColumn()]
    end = [TimeRemainingColumn()]
    if console.width < WIDE:
        title = TextColumn("{task.description:.22}", markup=False)
        return Bar(title, *start, *end, console=console, expand=True)
    title = TextColumn("{task.description}", markup=False)
    more = [TextColumn(unit, markup=False), TextColumn("{task.fields[note]}", markup=False)]
    return Bar(title, *start, *more, *end, console=console, expand=True)
