"""Votes of annotators: from a list into the store, and from there into training and its records."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tgdfer as api
from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import Run, load_method, stack_key
from pipeline.encoders.clip import find_encoder
from pipeline.extract.planning import ExtractSettings, make_plan
from pipeline.train.features import load_training_data, targets_of
from pipeline.train.grid import check_runs
from pipeline.train.records import Records
from pipeline.train.stack import train_stack
from support.stores import random_store
from support.trees import add_frames, write

VOTES = ["3 1 0", "", "0;0;9.5", "1 1 2", "", "0 1 1"]


def own_list(root: Path) -> None:
    rows = ["path,label,fold,votes"]
    for n, votes in enumerate(VOTES):
        add_frames(root / f"clips/{n}")
        rows.append(f"clips/{n},{('bored', 'proud', 'shy')[n % 3]},{n // 3},{votes}")
    write(root / "list.csv", "\n".join(rows))


def run(fold: str, *settings: str) -> Run:
    method = load_method("paper", ["optimiser.epochs=1", "optimiser.batch=10", *settings])
    return Run(method=method, fold=fold, seed=0)


def test_votes_of_a_list_are_in_the_store_and_are_shares_in_training(tmp_path: Path) -> None:
    own_list(tmp_path / "own")
    videos = api.read_dataset("list", tmp_path / "own")
    plan, _ = make_plan(videos, find_encoder("mini"), ExtractSettings())
    store = Store(tmp_path, "none", plan, {"missing": {}, "files": {}})
    assert store.plan.schema_version == 3
    assert store.voted.tolist() == [True, False, True, True, False, True]
    assert store.votes[2].tolist() == [0, 0, 9.5]
    label_NK, share_NK = targets_of(store)
    np.testing.assert_array_equal(label_NK, np.eye(3)[[0, 1, 2] * 2])
    expected = [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0.25, 0.25, 0.5], [0, 1, 0], [0, 0.5, 0.5]]
    np.testing.assert_array_equal(share_NK, np.array(expected, np.float32))


def test_training_from_votes_is_refused_where_no_training_video_has_any(tmp_path: Path) -> None:
    votes = [(1.0, *[0.0] * 6) if n % 5 == 0 else None for n in range(20)]  # fold 1's test videos
    store = random_store(tmp_path / "s.zarr", videos=20, votes=votes)
    check_runs([run("2", "optimiser.target=votes"), run("1")], store)
    with pytest.raises(RefusedError, match=r"no training video of fold 1 .*; give them in the lis"):
        check_runs([run("1", "optimiser.target=votes")], store)


def test_runs_of_one_stack_learn_from_labels_and_from_votes_and_say_so(tmp_path: Path) -> None:
    # Whatever the label, the annotators saw the last class.
    votes = [(0.0,) * 6 + (4.0,) if n < 30 else None for n in range(40)]
    store = random_store(tmp_path / "s.zarr", videos=40, votes=votes)
    data = load_training_data(store, torch.device("cpu"))
    more = ["optimiser.epochs=8", "optimiser.lr=0.05"]
    runs = [run("1", *more, f"optimiser.target={target}") for target in ("hard", "votes")]
    assert len({stack_key(own.method) for own in runs}) == 1
    records = Records(tmp_path / "runs", store)
    said, results = [], []
    for outcome in train_stack(data, runs):
        said.append(outcome.selected.predictions.labels_N)
        results.append(json.loads((records.write(outcome, 1.0) / "result.json").read_text()))
    assert np.mean(said[0] == 6) < 0.4 < 0.6 < np.mean(said[1] == 6)
    assert "voted_videos" not in results[0]
    assert results[1]["voted_videos"] == sum(n < 30 for n in store.folds[0][1])
    assert len({records.folder(own) for own in runs}) == 2
