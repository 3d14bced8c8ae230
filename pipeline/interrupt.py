"""A signal to stop -> the current piece of work is finished; a second one stops at once."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class StoppedError(Exception):
    """A signal stopped the work; what was done so far is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.signal = number


@dataclass
class Stop:
    """The signal that asked the work to stop, if any."""

    signal: int | None = None


@contextmanager
def stop_on_signal(
    doing: str,
    tell: Callable[[], None] = lambda: None,
    after: str = "Run the same command again to resume.",
) -> Iterator[Stop]:
    """On the first SIGINT, SIGTERM or SIGHUP, set ``signal``, call ``tell``, say what is finished.

    ``after`` says what to do then. A second one has its usual effect; so has the first under nohup.
    Outside the main thread, signals are not caught.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def note(number: int, _frame: object) -> None:
        stop.signal = number
        _restore(before)
        if number == signal.SIGHUP:  # writing to a closed terminal is an error
            for stream in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        tell()
        _say(f"finishing {doing}; press Ctrl-C again to stop at once. {after}")

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        _restore(before)


def explain_interrupt() -> None:
    """From now on, Ctrl-C outside ``stop_on_signal`` says how to resume before it ends the work."""

    def explain(_number: int, _frame: object) -> None:
        _say("interrupted; what was finished is kept. Run the same command again to resume.")
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, explain)


def end_with(parent: int) -> None:
    """Let the kernel kill this process when process ``parent``, which started it, ends, however.

    That also works inside a long computation, but only on Linux, and it is really the end of the
    thread that started this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def _restore(handlers: "dict[signal.Signals, signal._HANDLER]") -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _say(text: str) -> None:
    # The handler may interrupt a print, and Python's own streams are not re-entrant.
    start = "\n" if sys.stderr.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{start}{text}\n".encode())
