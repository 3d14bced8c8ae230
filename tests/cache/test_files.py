"""Durable writes, journals and locks, against real files and real processes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import StorageError
from cache.files import (
    append_record,
    canonical_json,
    locked,
    make_directories,
    read_records,
    write_files,
)


def test_files_are_written_completely_and_leave_no_litter(tmp_path: Path) -> None:
    scratch = tmp_path / ".tmp"
    scratch.mkdir()
    write_files({tmp_path / "a": b"1" * 100, tmp_path / "b": b""}, scratch)
    assert (tmp_path / "a").read_bytes() == b"1" * 100
    assert (tmp_path / "b").read_bytes() == b""
    assert list(scratch.iterdir()) == []


def test_directory_left_by_a_killed_process_before_its_name_was_durable_is_synced(
    tmp_path: Path, synced: list[Path]
) -> None:
    (tmp_path / "made").mkdir()
    make_directories(tmp_path / "made/a/b", tmp_path / "made")
    assert synced == [tmp_path, tmp_path / "made", tmp_path / "made/a", tmp_path]


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only")]
)
def test_failing_disk_is_named_with_its_remedy_and_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=remedy) as failure:
        write_files({tmp_path / "a": b"new"}, tmp_path)
    assert str(tmp_path) in str(failure.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_journal_skips_torn_and_changed_lines(tmp_path: Path) -> None:
    journal = tmp_path / "w.jsonl"
    for block in range(4):
        append_record(journal, {"block": block, "name": "ä\n"})
    lines = journal.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b":1", b":7")
    journal.write_bytes(b"\n".join(lines)[:-6])
    assert [record["block"] for record in read_records(journal)] == [0, 2]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(turned)


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cache.files import locked\n"
        "with locked(Path(sys.argv[1]), wait=False) as got:\n"
        "    print(got, flush=True); time.sleep(60)"
    )
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with locked(lock, wait=False) as got:
        assert not got
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(lock, wait=False) as got:
        assert got
