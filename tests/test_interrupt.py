"""Work that is asked to stop."""

import signal
import threading

import pytest

from pipeline.interrupt import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
