"""The same video under two ids, in training and in test."""

import subprocess
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.config import load_method, runs_of
from pipeline.train.grid import check_runs
from pipeline.train.leaks import describe_leaks, find_leaks
from support.commands import SMALL, tgdfer
from support.sources import pictures, write_folder
from support.stores import random_store

# Video n is tested in fold n % 5 + 1: 0 and 5 are in one fold, 1 and 2 in two.
SOURCES = (*"abbdea", *[""] * 8)


def test_same_bytes_in_training_and_test_are_found_by_fold(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=14, sources=SOURCES)
    leaks = find_leaks(store)
    assert leaks == {"2": [("00002", "00001")], "3": [("00001", "00002")]}
    assert next(describe_leaks(leaks)) == (
        "fold 2 is tested on videos that it trains on under other ids (1 in all: 00001 is 00002)"
    )
    runs = runs_of(load_method(), ["1", "2"], [0])
    check_runs(runs[:1], store)
    check_runs(runs, store, allow_duplicates=True)
    with pytest.raises(
        RefusedError, match=r"fold 2 is tested .*00001 is 00002.*--allow-duplicates"
    ):
        check_runs(runs, store)


def test_sources_that_are_unknown_or_of_failed_videos_are_no_duplicates(tmp_path: Path) -> None:
    assert find_leaks(random_store(tmp_path / "unknown.zarr", videos=14)) == {}
    failed = random_store(
        tmp_path / "s.zarr", videos=14, sources=("a",) * 14, missing=(*range(13),)
    )
    assert find_leaks(failed) == {}


def test_command_refuses_a_leak_unless_told_otherwise(tmp_path: Path) -> None:
    random_store(tmp_path / "s.zarr", videos=14, sources=SOURCES)

    def train(*options: object) -> subprocess.CompletedProcess[str]:
        return tgdfer("train", "--store", "s.zarr", *SMALL, *options, cwd=tmp_path)

    for more in ((), ("--profile", "t.json")):
        refused = train(*more)
        assert refused.returncode == 2
        assert "error: s.zarr: fold 2 is tested on videos that it trains on" in refused.stderr
    assert not (tmp_path / "runs").exists()
    done = train("--fold", 2, "--allow-duplicates")
    assert done.returncode == 0, done.stderr


def test_extraction_warns_of_a_leak(tmp_path: Path) -> None:
    lists = tmp_path / "DFEW/EmoLabel_DataSplit"
    lists.mkdir(parents=True)
    for i in range(1, 15):
        source = tmp_path / f"DFEW/Clip/clip_224x224/{i:05d}"
        write_folder(source, pictures(2, seed=min(i, 13), height=16, width=16), ".png")
    for part, ids in (("train", range(1, 14)), ("test", [14])):
        rows = "".join(f"{i},{1 + i % 7}\n" for i in ids)
        (lists / f"{part}_set_1.csv").write_text(rows)
    options = ["--root", "DFEW", "--encoder", "mini", "--views", 1]
    done = tgdfer("extract", "--dataset", "dfew", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    leak = "fold 1 is tested on videos that it trains on under other ids (1 in all: 00014 is 00013)"
    assert f"warning: {leak}; training refuses that fold\n" in done.stderr
    absent = (
        "dfew: fold 1 has no videos to test of sadness, neutral, anger, surprise, disgust, fear"
    )
    assert f"warning: {absent}\n" in done.stderr
