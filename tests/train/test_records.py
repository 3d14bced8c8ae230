"""What a run leaves on disk, and what counts as finished."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.files import sha256_file
from cache.identity import flatten
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.model.heads.choose import NETWORKS
from pipeline.report.tables import TableRow
from pipeline.train.features import load_training_data
from pipeline.train.grid import check_runs
from pipeline.train.record import LATER
from pipeline.train.records import Records, describe_others
from pipeline.train.selection import Outcome
from pipeline.train.stack import train_stack
from pipeline.train.trained import load_run
from support.stores import random_store

Trained = tuple[Store, Outcome]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    store = random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=21)
    method = load_method("paper", ["optimiser.epochs=2"])
    data = load_training_data(store, torch.device("cpu"))
    return store, train_stack(data, [Run(method=method, fold="3", seed=1)])[0]


def test_record_holds_configuration_metrics_predictions_checkpoint_and_origin(
    trained: Trained, tmp_path: Path
) -> None:
    store, outcome = trained
    folder = Records(tmp_path, store).write(outcome, seconds=1.5)
    about = json.loads((folder / "run.json").read_text())
    assert Run.model_validate(about["run"]) == outcome.run
    assert about["identity"]["store"] == store.digest
    assert about["store"]["encoder"]["name"] == "random"
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    metrics = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    predictions = list(csv.DictReader((folder / "predictions.csv").open()))
    test = next(test for name, _, test in store.folds if name == "3")
    assert [row["id"] for row in predictions] == [store.ids[row] for row in test]
    checkpoint = load_file(folder / "checkpoint.safetensors")
    assert all(
        torch.equal(checkpoint[name], value) for name, value in outcome.selected.parameters.items()
    )
    result = json.loads((folder / "result.json").read_text())
    digest = sha256_file(folder / "checkpoint.safetensors")
    assert result["sha256"]["checkpoint.safetensors"] == digest
    assert result["test_videos"] == len(test)
    assert result["war"] == float(metrics[-1]["test_war"])


def test_result_is_read_back_with_its_predictions(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    assert Records(tmp_path, store).find(outcome.run) is None
    Records(tmp_path, store).write(outcome, seconds=1.5)
    result = Records(tmp_path, store).find(outcome.run)
    assert result is not None
    assert result.ok
    _, labels, predicted = result.predictions()
    assert labels.tolist() == store.labels[outcome.split.test].tolist()
    np.testing.assert_array_equal(result.logits(), outcome.selected.predictions.logits_NK)
    assert predicted.tolist() == outcome.selected.predictions.logits_NK.argmax(1).tolist()
    epochs = [list(row.values()) for row in outcome.epochs]
    assert list(result.epochs()) == list(outcome.epochs[0])
    np.testing.assert_array_equal(np.transpose([*result.epochs().values()]), epochs)
    frames = result.frame_logits()
    assert frames.shape == (len(labels), store.frames, len(store.classes))
    with (result.folder / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))
    cosines = [float(first[f"influence_{frame}"]) for frame in range(store.frames)]
    np.testing.assert_allclose(np.array(cosines) / 0.01, frames[0, :, predicted[0]], atol=1e-3)
    np.testing.assert_allclose(result.attention().sum(1), 1, atol=1e-4)
    np.testing.assert_allclose(frames.mean(1), outcome.selected.predictions.logits_NK, atol=1e-4)


def test_record_of_some_frames_names_them_and_its_network_chooses_them_again(
    trained: Trained, tmp_path: Path
) -> None:
    store, _ = trained
    settings = ["optimiser.epochs=1", "input.frames=4", "temporal.window=2"]
    run = Run(method=load_method("paper", settings), fold="3", seed=1)
    (outcome,) = train_stack(load_training_data(store, torch.device("cpu")), [run])
    records = Records(tmp_path, store)
    records.write(outcome, seconds=1.5)
    record = records.find(run)
    assert record is not None
    assert record.ok, record.damage
    assert record.frame_logits().shape == (len(outcome.split.test), 4, len(store.classes))
    with (record.folder / "predictions.csv").open() as file:
        names = [name for name in next(csv.reader(file)) if name.startswith("influence_")]
    assert names == ["influence_2", "influence_6", "influence_10", "influence_14"]
    features_NTD = store.load_features([0])[outcome.split.test, 0]
    said = load_run(record.folder, store).predict(features_NTD)
    np.testing.assert_allclose(said.frame_logits_NTK, record.frame_logits(), atol=1e-4)


@pytest.mark.parametrize("head", [kind for kind in NETWORKS if kind != "tgdfer"])
def test_row_of_a_table_trains_any_head_whose_record_and_network_agree(
    trained: Trained, tmp_path: Path, head: str
) -> None:
    store, _ = trained
    base = load_method("paper", ["optimiser.epochs=1"])
    hidden = 8 if head == "s2d" else 0  # which 8 attention heads divide
    row = TableRow(head, (), {"head": {"kind": head, "hidden": hidden}})
    run = Run(method=row.method(base), fold="3", seed=1)
    settings = ["optimiser.epochs=1", f"head.kind={head}", f"head.hidden={hidden}"]
    assert run.method == load_method("paper", settings)
    check_runs([run], store)
    (outcome,) = train_stack(load_training_data(store, torch.device("cpu")), [run])
    records = Records(tmp_path, store)
    folder = records.write(outcome, seconds=1.5)
    record = records.find(run)
    assert record is not None
    assert record.ok, record.damage
    features_NTD = store.load_features([0])[outcome.split.test, 0]
    said = load_run(folder, store).predict(features_NTD)
    np.testing.assert_allclose(said.logits_NK, outcome.selected.predictions.logits_NK, atol=1e-5)
    np.testing.assert_allclose(said.frame_logits_NTK, record.frame_logits(), atol=1e-4)
    assert np.isnan(record.attention()).all()
    with (folder / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))
    influence_T = record.frame_logits()[0, :, int(first["predicted"])]
    shown_T = [float(first[f"influence_{frame}"]) for frame in range(store.frames)]
    scale = 0.01 if run.method.head.reads_texts else 1  # a cosine, or a logit
    np.testing.assert_allclose(shown_T, scale * influence_T, atol=1e-5)


def test_settings_that_came_later_leave_the_names_of_other_runs_as_they_were(
    trained: Trained, tmp_path: Path
) -> None:
    records = Records(tmp_path, trained[0])
    plain, idle, head, mixed = (
        Run(method=load_method("paper", settings), fold="3", seed=1)
        for settings in ([], ["head.layers=2"], ["head.kind=bilstm"], ["optimiser.mixup=1"])
    )
    folders = {records.folder(run) for run in (plain, idle, head, mixed)}
    assert records.folder(plain) == records.folder(idle)
    assert len(folders) == 3
    kept = flatten(records.identity(plain)["method"])
    assert not {*LATER} & kept.keys()
    paper = flatten(load_method().model_dump(mode="json"))
    assert LATER.items() <= paper.items()


def test_folder_without_result_is_an_unfinished_run(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    folder = Records(tmp_path, store).write(outcome, seconds=1.5)
    (folder / "result.json").unlink()
    assert Records(tmp_path, store).find(outcome.run) is None


def test_diverged_run_is_recorded_as_such(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    said = outcome.selected.predictions
    nothing = replace(said, logits_NK=said.logits_NK * float("nan"))
    broken = replace(outcome, selected=replace(outcome.selected, predictions=nothing))
    Records(tmp_path, store).write(broken, seconds=1.5)
    result = Records(tmp_path, store).find(outcome.run)
    assert result is not None
    assert not result.ok
    assert result.result is not None
    assert result.result["status"] == "diverged"


def test_identity_covers_all_that_the_numbers_depend_on(trained: Trained, tmp_path: Path) -> None:
    store, outcome = trained
    run, records = outcome.run, Records(tmp_path, store)

    def changed(*settings: str) -> Run:
        return Run(method=load_method("paper", ["optimiser.epochs=2", *settings]), fold="3", seed=1)

    others = [
        records.folder(run.model_copy(update={"seed": 2})),
        records.folder(run.model_copy(update={"fold": "2"})),
        records.folder(changed("temporal.window=8")),
        records.folder(changed("optimiser.precision=bf16")),
        records.folder(changed("optimiser.milestones=[]")),
        replace(records, store=replace(store, digest="0" * 64)).folder(run),
        replace(records, device="cuda").folder(run),
        replace(records, code_files={}).folder(run),
    ]
    assert len({records.folder(run), *others}) == 9
    # Other words for the same training, and what was asked of a store that has it.
    for same in ("optimiser.precision=fp32", "optimiser.milestones=[0.5, 0.9]", "store.frames=16"):
        assert records.folder(changed(same)) == records.folder(run)


def test_records_of_other_code_stores_and_devices_are_named_and_not_used(
    trained: Trained, tmp_path: Path
) -> None:
    store, outcome = trained
    records = Records(tmp_path, store)
    edited = records.code_files | {"model/temporal.py": "another digest"}
    replace(records, code_files=edited).write(outcome, seconds=1)
    replace(records, device="cuda", store=replace(store, digest="1")).write(outcome, seconds=1)
    assert records.find(outcome.run) is None
    assert records.pending([outcome.run]) == [outcome.run]
    assert describe_others(records.others([outcome.run])) == [
        "1 finished run with the same settings, other code (model/temporal.py)",
        "1 finished run with the same settings, other store, device, precision",
    ]
    assert records.others([outcome.run.model_copy(update={"seed": 5})]) == []
    records.write(outcome, seconds=1)
    assert records.pending([outcome.run]) == []
    assert len(records.others([outcome.run])) == 2
