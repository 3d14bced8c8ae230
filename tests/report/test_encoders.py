"""Table encoders: the same head on several stores of the same videos."""

from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import load_method, runs_of
from pipeline.report.ablation import collect_stores
from pipeline.report.tables import rows_of_stores
from pipeline.train.records import Records
from pipeline.train.split import scored_rows
from support.commands import tgdfer
from support.records import write_record
from support.stores import random_store

BASE = load_method("paper", ["optimiser.epochs=1"])


def write_runs(root: Path, store: Store, wrong: int) -> Records:
    """Records of runs that are wrong on the first videos of each fold."""
    records = Records(root, store)
    for run in runs_of(BASE, ["1", "2"], [0]):
        labels = store.labels[scored_rows(store, run.fold, run.method.selection, 0)]
        write_record(records, run, np.where(np.arange(len(labels)) < wrong, labels - 6, labels) % 7)
    return records


def test_rows_are_the_stores_and_differences_are_paired_by_video(tmp_path: Path) -> None:
    stores = [random_store(tmp_path / f"{dim}.zarr", dim=dim, frames=6, folds=2) for dim in (16, 8)]
    records = [
        write_runs(tmp_path / "runs", store, wrong)
        for store, wrong in zip(stores, (4, 10), strict=True)
    ]
    table = rows_of_stores(stores)
    first, second = collect_stores(table, BASE, ["1", "2"], [0], records)
    assert [line.row.cells[:2] for line in (first, second)] == [("16", "6"), ("8", "6")]
    assert (first.war.mean, second.war.mean) == (80, 50)
    assert first.row.name != second.row.name
    difference = second.differences["WAR"]
    assert difference is not None
    assert difference.value == pytest.approx(-0.3)
    assert first.complete
    assert second.complete


def test_stores_of_other_videos_or_folds_are_refused(tmp_path: Path) -> None:
    one = random_store(tmp_path / "one.zarr")
    for name, what in (("videos", {"videos": 41}), ("folds", {"folds": 4})):
        other = random_store(tmp_path / f"{name}.zarr", **what)
        with pytest.raises(RefusedError, match=f"differ in their {name}"):
            rows_of_stores([one, other])
    missing = random_store(tmp_path / "missing.zarr", missing=(3,))
    with pytest.raises(RefusedError, match="differ in their missing videos"):
        rows_of_stores([one, missing])


def test_command_says_what_the_table_needs(tmp_path: Path) -> None:
    random_store(tmp_path / "s.zarr")
    for words, said in (
        (["encoders"], "needs another store: --also STORE"),
        (["table3", "--also", "s.zarr"], "--also: read only by table encoders"),
    ):
        done = tgdfer("ablate", *words, "--store", "s.zarr", cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr.replace("\n", " ")
