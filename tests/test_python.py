"""``import tgdfer`` as a notebook uses it; the examples of docs/python.md in one process."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import tgdfer
from cache.errors import DamagedError, RefusedError
from cache.store import Store
from pipeline.config import runs_of
from pipeline.train.code import code_files
from pipeline.train.features import load_training_data
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from pipeline.train.stack import train_stack
from support.commands import ROOT, python
from support.records import forge
from support.stores import random_store

DOCUMENT = (ROOT / "docs/python.md").read_text(encoding="utf-8")
SETTINGS = ["optimiser.epochs=1", "temporal.head_size=8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=21)


def test_examples_of_the_document_run_in_one_notebook(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(examples) == 9
    done = python("-W", "error::UserWarning", "-c", "\n".join(examples), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(70, 2, 16, 64)" in done.stdout
    assert "(3, 7) (3, 16, 7)" in done.stdout


def test_every_public_name_has_an_example() -> None:
    for name in tgdfer.__all__:
        assert ">>> " in getattr(tgdfer, name).__doc__, name
        assert f"tgdfer.{name}(" in DOCUMENT, name


def test_import_is_quick() -> None:
    code = "import sys, tgdfer; print({'torch', 'zarr', 'numpy', 'pydantic'} & set(sys.modules))"
    assert python("-c", code).stdout.strip() == "set()"


def test_a_search_returns_its_trials_and_the_best_of_them_ready_to_train(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=50)  # enough of each class to hold some out
    space = tmp_path / "space.toml"
    space.write_text("[optimiser]\nlr = {low = 0.001, high = 0.1, log = true}\n")
    base = tgdfer.load_method("paper", [*SETTINGS, "selection.rule=best_on_test"])
    search = partial(tgdfer.tune, store, base, space, "3:1:1,2:2:2", fold=2, runs=tmp_path / "runs")
    best, trials = search()
    assert [len(trial.scores) for trial in trials] == [2, 2, 1]
    assert trials[0].scores[1] == max(trial.scores[1] for trial in trials[:2])
    assert best.optimiser.lr == trials[0].method.optimiser.lr
    assert (best.optimiser.epochs, best.selection.rule) == (2, "best_on_test")
    frame = tgdfer.read_runs(tmp_path / "runs")
    assert len(frame) == 3 * 1 + 2 * 2
    assert set(frame.fold) == {"2"}
    assert set(frame["selection.tested_on"]) == {"held_out"}
    made = {folder: (Path(folder) / "result.json").stat().st_mtime_ns for folder in frame.folder}
    assert search() == (best, trials)
    assert all((Path(f) / "result.json").stat().st_mtime_ns == time for f, time in made.items())
    with pytest.raises(RefusedError, match="has no fold 9"):
        tgdfer.tune(store, base, space, fold=9, runs=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_loaded_run_predicts_what_its_record_holds(store: Store, tmp_path: Path) -> None:
    for settings in (
        [],
        ["label.visual_prompt=none"],
        ["prompts.coarse_learnable=true"],
        ["input.scale=whiten"],
    ):
        method = tgdfer.load_method("paper", [*SETTINGS, *settings])
        (record,) = tgdfer.train(store, method, folds=["2"], runs=tmp_path)
        ids, _, predicted = record.predictions()
        rows = [store.ids.index(video) for video in ids]
        said = tgdfer.load_run(record.folder, store).predict(store.load_features()[rows, 0])
        assert said.labels_N.tolist() == predicted.tolist()
        np.testing.assert_allclose(said.frame_logits_NTK, record.frame_logits(), atol=1e-4)
        np.testing.assert_allclose(said.attention_NTK, record.attention(), atol=1e-5)


def test_run_of_other_features_changed_or_unfinished_is_refused(
    store: Store, tmp_path: Path
) -> None:
    (record,) = tgdfer.train(store, tgdfer.load_method("paper", SETTINGS), ["1"], runs=tmp_path)
    other = random_store(tmp_path / "other.zarr", videos=14, dim=8)
    with pytest.raises(RefusedError, match=r"(?s)trained on other features.*encoder\.dim +16 +8"):
        tgdfer.load_run(record.folder, other)
    with pytest.raises(RefusedError, match=r"\(3, 16\), expected \(videos, 16, 16\)"):
        tgdfer.load_run(record.folder, store).predict(np.zeros((3, 16)))
    checkpoint = record.folder / "checkpoint.safetensors"
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"checkpoint\.safetensors is damaged: its sha256"):
        tgdfer.load_run(record.folder, store)
    forge(record.folder, "checkpoint.safetensors", data[:-8])
    with pytest.raises(DamagedError, match=r"(?s)checkpoint\.safetensors is damaged: .*again with"):
        tgdfer.load_run(record.folder, store)
    forge(record.folder, "checkpoint.safetensors", save({"weight": torch.zeros(3)}))
    with pytest.raises(DamagedError, match=r"is the network of another method; train the run"):
        tgdfer.load_run(record.folder, store)
    (record.folder / "predictions.csv").write_text("")
    with pytest.raises(DamagedError, match=r"predictions\.csv is damaged.*--retrain-damaged"):
        tgdfer.load_run(record.folder, store)
    with pytest.raises(RefusedError, match=r"no finished run here"):
        tgdfer.load_run(tmp_path, store)


def test_damaged_run_is_refused_before_training_and_trained_again_when_asked(
    store: Store, tmp_path: Path
) -> None:
    method = tgdfer.load_method("paper", SETTINGS)
    (record,) = tgdfer.train(store, method, ["1"], runs=tmp_path)
    whole = (record.folder / "predictions.csv").read_bytes()
    (record.folder / "predictions.csv").write_bytes(whole[:99])
    with pytest.raises(DamagedError, match=r"predictions\.csv is damaged.*retrain_damaged=True"):
        tgdfer.train(store, method, ["1", "2"], runs=tmp_path)
    assert len(list(tmp_path.glob("?" * 16))) == 1
    (again,) = tgdfer.train(store, method, ["1"], runs=tmp_path, retrain_damaged=True)
    assert (again.folder / "predictions.csv").read_bytes() == whole


def test_run_of_other_code_is_refused_unless_asked_for(store: Store, tmp_path: Path) -> None:
    (run,) = runs_of(tgdfer.load_method("paper", SETTINGS), ["1"], [0])
    edited = code_files() | {"model/temporal.py": "0" * 64}
    records = Records(tmp_path, store, code_files=edited)
    train_runs([run], records, "cpu", workers=0)
    with pytest.raises(RefusedError, match=r"other code \(model/temporal\.py\)"):
        tgdfer.load_run(records.folder(run), str(store.path))
    assert tgdfer.load_run(records.folder(run), str(store.path), other_code=True).run == run


def test_run_that_trained_its_encoder_needs_a_store_of_that_encoder(
    store: Store, tmp_path: Path
) -> None:
    (run,) = runs_of(tgdfer.load_method("paper", SETTINGS), ["1"], [0])
    (outcome,) = train_stack(load_training_data(store, torch.device("cpu")), [run])
    config = b'{"model_cfg": {}}'
    files = {"open_clip_model.safetensors": b"tuned", "open_clip_config.json": config}
    tuned = replace(outcome, selected=replace(outcome.selected, encoder_files=files))
    folder = Records(tmp_path, store).write(tuned, seconds=1)
    with pytest.raises(RefusedError, match=r"(?s)weights_sha256.*encoder local-dir:.*/encoder"):
        tgdfer.load_run(folder, store)


def test_script_without_a_main_guard_can_render_faces(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import tgdfer\nprint(len(tgdfer.read_dataset('faces', limit=3).videos))\n")
    done = python(script, cwd=tmp_path, env={"TGDFER_CACHE": str(tmp_path / "cache")})
    assert done.stdout == "3\n", done.stderr


def test_what_a_data_set_cannot_be_is_refused() -> None:
    for options in ({"limit": 0}, {"annotation": "lists"}, {"name": "fer2013"}):
        with pytest.raises(RefusedError, match=r"expected 1 or more|available: faces, dfew"):
            tgdfer.read_dataset(**options)  # type: ignore[arg-type]


def test_runs_are_rows_of_a_data_frame(store: Store, tmp_path: Path) -> None:
    methods = [tgdfer.load_method("paper", [*SETTINGS, f"temporal.window={w}"]) for w in (2, 4)]
    tgdfer.train(store, methods, folds=["1", "2"], runs=tmp_path)
    frame = tgdfer.read_runs(tmp_path)
    assert sorted(frame["temporal.window"]) == [2, 2, 4, 4]
    assert set(frame.fold) == {"1", "2"}
    assert set(frame.code) == {"this"}
    assert frame.war.between(0, 1).all()
    nothing = tgdfer.read_runs(tmp_path / "none")
    assert nothing.empty
    assert {"fold", "war", "temporal.window"} <= set(nothing.columns)
