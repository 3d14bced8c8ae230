"""What a terminal would obey is never printed, and what nobody reads stops no work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import ROOT, environment, python, tgdfer

# Colours, the clipboard (OSC 52), the C1 form of ESC [, bidi override, carriage return, markup.
HOSTILE = "a\x1b[31m\x1b]52;c;x\x07\x9b31m\u202e\r[/b]"
ESCAPED = r"a\x1b[31m\x1b]52;c;x\x07\x9b31m\u202e\r[/b]"


def obeyed(printed: str) -> set[str]:
    """Characters in some output that a terminal would not simply show."""
    return {c for c in printed if not c.isprintable() and c != "\n"}


@pytest.mark.parametrize(
    "words",
    [
        ["store", "inspect", HOSTILE],
        ["store", "diff", HOSTILE, HOSTILE],
        ["store", HOSTILE],
        [HOSTILE],
        ["train", f"--{HOSTILE}"],
        ["train", "--config", HOSTILE],
        ["train", "--device", HOSTILE],
        ["extract", "--encoder", HOSTILE],
        ["extract", "--dataset", "dfew", "--encoder", "mini", "--root", HOSTILE],
        ["config", "show", "--set", f"prompts.context={HOSTILE}"],
        ["config", "show", "--set", f"{HOSTILE}=1"],
        ["config", "show", "--set", f"store.encoder={HOSTILE}"],
        ["config", "show", "--toml", "--set", f"store.encoder={HOSTILE}"],
        ["runs", "list", "--runs", HOSTILE],
        ["ablate", HOSTILE],
    ],
)
def test_no_command_prints_what_a_terminal_obeys(tmp_path: Path, words: list[str]) -> None:
    check_escaped(tgdfer(*words, cwd=tmp_path))


@pytest.mark.parametrize("words", [[HOSTILE], ["runs", "list", "--runs", HOSTILE]])
def test_nor_does_it_where_only_ascii_can_be_printed(tmp_path: Path, words: list[str]) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    check_escaped(python("-m", "tgdfer", *words, cwd=tmp_path, env=ascii_only))


def check_escaped(done: "subprocess.CompletedProcess[str]") -> None:
    assert obeyed(done.stdout + done.stderr) == set()
    assert "Traceback" not in done.stderr
    assert r"\x1b[31m" in done.stdout + done.stderr or "u001b[31m" in done.stdout


def test_everything_printed_is_escaped_even_by_others() -> None:
    script = (
        "import sys, warnings\n"
        "from cli.show import escape_output\n"
        "escape_output()\n"
        f"name = {HOSTILE!r}\n"
        "print(name, 'two\\nlines')\n"
        "warnings.warn(name)\n"
        "raise KeyError(name)\n"
    )
    done = python("-c", script)
    assert done.stdout == f"{ESCAPED} two\nlines\n"
    assert done.stderr.count(ESCAPED) == 2
    assert obeyed(done.stdout + done.stderr) == set()


def test_a_line_break_in_a_name_forges_no_message(tmp_path: Path) -> None:
    done = tgdfer("store", "inspect", "a\nerror: all is well", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no store at a\n  error: all is well; make one")
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: no store at a"
    ]


def test_names_that_are_not_utf_8_are_refused_like_any_other(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.toml")
    (tmp_path / odd).write_text("[nonsense]\n")
    done = tgdfer("config", "show", odd, cwd=tmp_path)
    assert (done.returncode, r"error: \udcff.toml: unknown setting" in done.stderr) == (2, True)
    done = tgdfer("train", "--store", odd, "--runs", odd, cwd=tmp_path)
    assert (done.returncode, r"\udcff.toml is not a feature store" in done.stderr) == (2, True)


def test_toml_of_a_hostile_setting_can_be_read_back(tmp_path: Path) -> None:
    setting = f"store.encoder={HOSTILE}"
    file = tmp_path / "mine.toml"
    file.write_text(tgdfer("config", "show", "--toml", "--set", setting, cwd=tmp_path).stdout)
    done = python(
        "-c",
        "from pipeline.config import load_method\n"
        f"assert load_method({str(file)!r}).store.encoder == {HOSTILE!r}",
    )
    assert done.returncode == 0, done.stderr


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command line in bash, in which ``tgdfer`` is ours."""
    script = f'tgdfer() {{ "{sys.executable}" -m tgdfer "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", script], env=environment(), capture_output=True, text=True, cwd=cwd
    )


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("tgdfer config show | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("tgdfer config show | head -1; exit ${PIPESTATUS[1]}", 0, ""),
        (
            "tgdfer config show > /dev/full",
            5,
            "error: cannot write to standard output: No space left on device\n",
        ),
        ("tgdfer config show >&-", 0, "next: tgdfer train --config paper\n"),
        ("tgdfer config show 2>&-", 0, ""),
        ("tgdfer config show > out 2> /dev/full", 0, ""),
        ("tgdfer store inspect none 2> /dev/full", 2, ""),
        ("tgdfer config show <&- >&- 2>&-", 0, ""),
    ],
)
def test_closed_and_full_outputs_are_no_crash(
    tmp_path: Path, command: str, code: int, said: str
) -> None:
    done = shell(command, tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if said:
        assert done.stderr.endswith(said)


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    script = (
        "import os; from cli.show import escape_output\n"
        "escape_output()\n"
        "file = open('data', 'w')\n"
        "os.write(2, b'a signal was caught')\n"
        "assert file.fileno() > 2\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = shell(f"PYTHONPATH={ROOT} {sys.executable} script.py <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "data").read_text() == ""
