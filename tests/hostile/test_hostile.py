"""Every row of ``catalogue.md``, through the real command line.

Whatever a row's input is, its command ends within ten seconds with the documented exit code, says
what is wrong in plain text, and leaves every file as it was except those named in "changes".
"""

import json
import os
import shlex
import stat
import unicodedata
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from hostile import inputs, media
from hostile.catalogue import COMMANDS, MEDIA, ROWS, SHARED, MediaRow, Row
from hostile.servers import hostile_servers
from support import forked
from support.commands import python

LIMIT_SECONDS = 10.0
MEDIA_SECONDS = 60.0  # for all bad videos together
HASHED_BYTES = 1 << 22  # of larger files, only size and time are compared


@pytest.fixture(scope="session")
def forker() -> forked.Forker:
    return forked.forker()


@pytest.fixture(scope="session")
def originals(forker: forked.Forker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    forker.call("hostile.inputs:make_originals", str(folder))
    return folder


@pytest.fixture(scope="session")
def urls() -> Iterator[dict[str, str]]:
    with hostile_servers() as started:
        yield started


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_row(
    row: Row, forker: forked.Forker, originals: Path, urls: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/precious.txt").write_text("precious\n")
    prepare(row, inputs.Place(tmp_path, originals))
    before = snapshot(tmp_path)
    outcome = forker.run(row.arguments(urls), tmp_path, LIMIT_SECONDS, workers="fork")
    assert outcome.code == row.code, outcome.output
    assert row.says in outcome.output
    assert_harmless(outcome.output)
    after = snapshot(tmp_path)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert [n for n in sorted(changed) if not any(fnmatch(n, c) for c in row.changes)] == []


@pytest.fixture(scope="session")
def outcomes(
    forker: forked.Forker, originals: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[str, str]]:
    """Name of a media row -> (status, reason or flags), from one extraction of all of them."""
    place = inputs.Place(tmp_path_factory.mktemp("media"), originals)
    (place.here / "victim.txt").write_text("precious\n")
    inputs.take(place, "tree", "enc")
    ids = {row.name: f"{number:05d}" for number, row in enumerate(MEDIA, 100)}
    for row in MEDIA:
        path = place.here / "tree/Clip/original" / ids[row.name]
        media.make_source(row.input, path, place.here / "victim.txt")
        for fold in inputs.FOLDS:
            inputs.listed(place, f"{ids[row.name]},1", f"train(single-labeled)/set_{fold}.csv")
    outcome = forker.run(shlex.split(SHARED["extract"]), place.here, MEDIA_SECONDS)
    assert_harmless(outcome.output)
    assert outcome.code == 3, outcome.output
    return {name: _outcome(place.here, video) for name, video in ids.items()}


@pytest.mark.parametrize("row", MEDIA, ids=lambda row: row.name)
def test_media(row: MediaRow, outcomes: dict[str, tuple[str, str]]) -> None:
    status, text = outcomes[row.name]
    assert status in row.outcome, text
    assert row.says in text
    assert len(text) < 700
    assert_harmless(text)


def test_forked_command_is_the_real_one(
    forker: forked.Forker, originals: Path, tmp_path: Path
) -> None:
    inputs.take(inputs.Place(tmp_path, originals), "s.zarr", "runs")
    narrow = {"COLUMNS": "60"}
    for words in (["runs", "list"], ["store", "inspect", "none"], ["train", "--sedes"], ["--help"]):
        real = python("-m", "tgdfer", *words, cwd=tmp_path, env=narrow)
        own = forker.run(words, tmp_path, LIMIT_SECONDS, env=narrow)
        assert (real.returncode, real.stdout, real.stderr) == (own.code, own.stdout, own.stderr)


def test_catalogue_is_large_and_its_names_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert len(names) >= 150
    assert len(set(names)) == len(names)


def prepare(row: Row, place: inputs.Place) -> None:
    """Make a row's input."""
    for word, *arguments in row.input:
        getattr(inputs, word)(place, *arguments)


def assert_harmless(output: str) -> None:
    """No traceback, and nothing that a terminal would obey: control characters, bidi, bytes."""
    assert "Traceback" not in output
    raw = [c for c in output if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert raw == []


def _outcome(here: Path, video: str) -> tuple[str, str]:
    """What became of a video: its row in the store, or its line in the list of failures."""
    for line in (here / "s.zarr.failed.txt").read_text().splitlines():
        if line.startswith(f"{video}\t"):
            return "left out", line.partition("\t")[2]
    for rows in (here / "s.zarr/rows").glob("*.0"):
        for row in json.loads(rows.read_bytes()):
            if row["id"] == video:
                return "flagged" if row["flags"] else "read", ", ".join(row["flags"])
    raise AssertionError(f"{video} is neither in the store nor in the list of failures")


def snapshot(folder: Path) -> dict[str, object]:
    """Path -> content of everything below a folder; links and pipes are not followed."""
    found: dict[str, object] = {}
    for parent, directories, files in os.walk(os.fsencode(folder)):
        for name in directories + files:
            path = os.path.join(parent, name)
            about = os.lstat(path)
            shown: object = stat.filemode(about.st_mode)
            if stat.S_ISLNK(about.st_mode):
                shown = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                shown = about.st_size, about.st_mtime_ns
                if about.st_size <= HASHED_BYTES:
                    shown = Path(os.fsdecode(path)).read_bytes()
            found[os.fsdecode(os.path.relpath(path, os.fsencode(folder)))] = shown
    return found
