"""One way to show progress: a bar on a terminal, lines elsewhere."""

import os
import pty
import re
import sys
from pathlib import Path

from support.commands import environment, python

WORK = """
import time
from cli.progress import progress
with progress("training 60 runs of [b]", 40, "epochs", line_seconds=0.0) as shown:
    for epoch in range(20):
        shown.advance(2, note="0.5 videos/s")
        time.sleep(0.01)
"""


def on_terminal(script: str, **more: str) -> str:
    """What a script prints on a terminal of its own."""
    pid, handle = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", script], environment(more))
    printed = b""
    try:
        while data := os.read(handle, 1 << 16):
            printed += data
    except OSError:  # Linux says so where the other end is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, printed
    return printed.decode()


def test_lines_without_a_terminal_say_how_far_and_how_long(tmp_path: Path) -> None:
    done = python("-c", WORK, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    assert len(lines) == 20
    pattern = r"training 60 runs of \[b\]: 20 of 40 epochs, 0.5 videos/s, about \d s left"
    assert re.fullmatch(pattern, lines[9])


def test_lines_are_printed_rarely(tmp_path: Path) -> None:
    assert python("-c", WORK.replace(", line_seconds=0.0", ""), cwd=tmp_path).stderr == ""


def test_total_may_become_known_later(tmp_path: Path) -> None:
    script = (
        "from cli.progress import progress\n"
        "with progress('extract', None, 'videos', line_seconds=0.0) as shown:\n"
        "    shown.update(3)\n"
        "    shown.update(4, 8)\n"
    )
    first, second = python("-c", script, cwd=tmp_path).stderr.splitlines()
    assert first == "extract: 3 videos"
    assert second.startswith("extract: 4 of 8 videos, about ")


def test_time_before_the_work_is_no_part_of_its_rate(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "from cli.progress import progress\n"
        "with progress('extract', None, 'videos', line_seconds=0.0) as shown:\n"
        "    time.sleep(1)\n"
        "    shown.update(0, 100)\n"
        "    shown.update(2, 100)\n"
    )
    *_, last = python("-c", script, cwd=tmp_path).stderr.splitlines()
    found = re.fullmatch(r"extract: 2 of 100 videos, about (\d+) s left", last)
    assert found
    assert int(found[1]) < 49


RESUMED = """
import time
from cli.progress import progress
with progress("searching", 2000, "epochs", line_seconds=0.0) as shown:
    for rung in range(2):
        shown.skip(900)
        for epoch in range(10):
            time.sleep(0.02)
            shown.advance()
"""


def test_time_left_is_that_of_the_work_of_this_command(tmp_path: Path) -> None:
    first, *_, last = python("-c", RESUMED, cwd=tmp_path).stderr.splitlines()
    assert first == "searching: 900 of 2000 epochs"
    found = re.fullmatch(r"searching: 1820 of 2000 epochs, about (\d+) s left", last)
    assert found
    assert int(found[1]) >= 180 * 0.02
    printed = on_terminal(RESUMED, TERM="xterm", COLUMNS="50", NO_COLOR="1")
    left = re.findall(r"1820/2000.* (\d:\d\d:\d\d)", printed)
    assert left
    assert left[-1] >= "0:00:03"


def test_bar_fits_a_narrow_terminal() -> None:
    printed = on_terminal(WORK, TERM="xterm", COLUMNS="50", NO_COLOR="1")
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed).rstrip().splitlines()[-1].split("\r")[-1]
    assert "40/40" in last
    assert len(last) <= 50


def test_bar_is_ascii_where_the_terminal_is() -> None:
    printed = on_terminal(WORK, TERM="xterm", COLUMNS="80", PYTHONIOENCODING="ascii")
    assert "40/40" in printed
    assert printed.isascii()


def test_dumb_terminal_gets_lines() -> None:
    printed = on_terminal(WORK, TERM="dumb")
    assert "20 of 40 epochs" in printed
    assert "\x1b" not in printed


def test_what_is_printed_beside_a_bar_is_escaped() -> None:
    printing = "import sys; print('\\x1b[31m \\x9b \\u202e', file=sys.stderr)"
    start = "from cli.show import escape_output\nescape_output()"
    script = start + WORK.replace("        time.sleep", f"        {printing}\n        time.sleep")
    printed = on_terminal(script, TERM="xterm", COLUMNS="80", NO_COLOR="1")
    assert printed.count(r"\x1b[31m \x9b \u202e") == 20
    assert "40/40" in printed
    assert not [hidden for hidden in ("\x1b[31m", "\x9b", "\u202e") if hidden in printed]
