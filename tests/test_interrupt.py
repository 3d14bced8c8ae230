"""Work that is asked to stop."""

import signal
import subprocess
import sys
import threading

import pytest

from pipeline.interrupt import stop_on_signal
from support.commands import environment


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_says_what_is_finished_and_how_to_resume(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with stop_on_signal("the current block") as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
    said = capfd.readouterr().err
    assert "finishing the current block; press Ctrl-C again to stop at once" in said
    assert "Run the same command again to resume." in said


def test_second_signal_stops_at_once() -> None:
    with stop_on_signal("the epoch") as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGTERM


def test_signals_act_as_before_once_the_work_is_done() -> None:
    with stop_on_signal("the epoch") as stop:
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stop.signal is None


def test_signals_are_not_caught_outside_the_main_thread() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stop_on_signal("the epoch"):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_signal_of_a_closed_terminal_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal("the epoch") as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interrupt_while_the_command_is_being_imported_is_no_traceback() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tgdfer", "--version"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith(" typer.core\n"):  # half of the modules are imported
            break
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
