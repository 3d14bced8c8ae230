"""``tgdfer tune``: a whole small search, killed and resumed, and what it refuses."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from pipeline.config import load_method
from support.commands import tgdfer
from support.forked import forker
from support.stores import random_store

SPACE = "[optimiser]\nlr = {low = 0.001, high = 0.1, log = true}\n[label]\ntop_k = [1, 2, 3]\n"
SMALL = ["--space", "space.toml", "--rungs", "3:1:1,1:2:2", "--store", "s.zarr", "--workers", "2"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    random_store(tmp_path / "s.zarr", videos=60)
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path


def test_search_killed_and_resumed_finds_the_same_and_its_winner_can_be_trained(
    place: Path,
) -> None:
    done = tgdfer("tune", *SMALL, "--out", "whole", "--runs", "whole-runs", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "no test video was looked at" in done.stdout
    assert (
        "next: tgdfer compare --store s.zarr --config paper --config whole/tuned.toml"
        in done.stderr
    )
    killed = forker().start(["tune", *SMALL], place, workers="fork")
    deadline = time.monotonic() + 120
    while len(list(place.glob("runs/*/result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(60).code == -signal.SIGKILL
    again = tgdfer("tune", *SMALL, cwd=place)
    assert again.returncode == 0, again.stderr
    for name in ("tune.json", "tune.md", "tuned.toml"):
        resumed, whole = ((place / out / name).read_text() for out in ("reports", "whole"))
        assert without_seconds(resumed) == without_seconds(whole)
    found = json.loads((place / "reports/tune.json").read_text())
    assert (found["run_epochs"], len(found["trials"])) == (3 * 1 + 2 * 2, 3)
    best = found["trials"][0]
    assert best["number"] == found["winner"]
    tuned = load_method(place / "reports/tuned.toml")
    assert tuned.optimiser.epochs == 2
    assert tuned.selection == load_method().selection
    assert tuned.optimiser.lr == best["changes"].get("optimiser.lr", load_method().optimiser.lr)


def without_seconds(text: str) -> str:
    return re.sub(r'"seconds": [\d.]+|\d+ s of training', "", text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rungs", "2:1:1,3:1:1"], "expected TRIALS:EPOCHS:HOLDOUTS"),
        (["--space", "none.toml"], "none.toml"),
        (["--fold", "9"], "has no fold 9"),
        (["--set", "optimiser.lr_encoder=1e-5"], "use --no-cached"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    place: Path, options: list[str], said: str
) -> None:
    done = tgdfer("tune", *SMALL, *options, cwd=place)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (place / "runs").exists() or not list((place / "runs").glob("?" * 16))
