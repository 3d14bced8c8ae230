"""How far a command says it is."""

import os
import pty
import subprocess
import sys

import pytest

from cli.bar import counting
from support.commands import environment


def test_without_a_terminal_there_is_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with counting("extract", "videos") as on_count:
        on_count(1, 9, "too soon for a line")
        monkeypatch.setattr("cli.bar.SECONDS_BETWEEN_LINES", 0.0)
        on_count(2, 9, "3 failed")
        on_count(3, 9, "")
    said = ["extract: 2 of 9 videos, 3 failed", "extract: 3 of 9 videos"]
    assert capsys.readouterr().err.splitlines() == said


def test_on_a_terminal_there_is_a_bar() -> None:
    code = (
        "from cli.bar import counting\n"
        "with counting('extract', 'videos') as on_count: on_count(4, 9, '[/b]')"
    )
    ours, theirs = pty.openpty()
    environ = environment(TERM="xterm")
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environ, check=True)
    shown = os.read(ours, 10_000).decode()
    assert "\x1b[" in shown
    for part in ("extract", "━", "4/9", "videos", "[/b]"):
        assert part in shown
