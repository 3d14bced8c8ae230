"""Trained networks on other stores: classes matched, unknown labels counted, no training videos."""

from pathlib import Path

import numpy as np
import pytest

import tgdfer
from cache.errors import RefusedError
from pipeline.predict.elsewhere import (
    by_data,
    evaluate_elsewhere,
    evaluation_report,
    map_classes,
    read_map,
)
from pipeline.train.record import Record
from pipeline.train.trained import read_checkpoint
from support.commands import tgdfer as command
from support.stores import CLASSES, random_store
from support.tiny import LocalStore

SETTINGS = ["optimiser.epochs=2", "temporal.head_size=8"]
SIX = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")  # without neutral
ELEVEN = (*CLASSES, "contempt", "anxiety", "helplessness", "disappointment")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=35)


@pytest.fixture(scope="module")
def records(store: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    runs = tmp_path_factory.mktemp("runs")
    return tgdfer.train(store, tgdfer.load_method("paper", SETTINGS), ["1", "2"], runs=runs)


def test_classes_are_matched_by_name_or_by_a_map() -> None:
    six = map_classes(CLASSES, SIX)
    assert six.shared == SIX
    assert six.shared_K.tolist() == [0, 1, -1, 2, 3, 4, 5]
    eleven = map_classes(CLASSES, ELEVEN)
    assert eleven.shared == CLASSES
    assert eleven.shared_L.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1]
    added = map_classes(
        ELEVEN,
        ("good", "bad", "odd"),
        {"happiness": ("happiness", "good"), "fear": ("bad", "odd"), "anger": ("bad",)},
    )
    assert added.shared == ("good", "bad")
    assert added.shared_K.tolist() == [0, -1, -1, 1, -1, -1, 1, -1, -1, -1, -1]
    assert added.shared_L.tolist() == [0, 1, -1]


def test_maps_that_name_no_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="share 1 of 2 or more"):
        map_classes(CLASSES, ("happiness", "odd"))
    wrong = {
        "fear = 1": "expected lines such as",
        "fear": "not valid TOML",
        'joy = "fear"': "joy is no class of a network; expected one of happiness, sadness",
        'fear = ["fear", "joy"]': "joy is no label; expected one of happiness, sadness, anger",
    }
    for text, message in wrong.items():
        (tmp_path / "map.toml").write_text(text)
        with pytest.raises(RefusedError, match=message):
            read_map(tmp_path / "map.toml", CLASSES, SIX)


def test_on_its_own_store_a_network_predicts_its_test_fold_as_it_was_recorded(
    store: LocalStore, records: list[Record]
) -> None:
    checkpoints = [read_checkpoint(record.folder) for record in records]
    found = evaluate_elsewhere(checkpoints, store)
    assert found.own_folds
    assert found.videos == 14
    assert found.unsupported == {}
    recorded = np.concatenate([record.predictions()[2] for record in records])
    assert found.predicted.tolist() == recorded.tolist()
    assert found.labels.tolist() == np.concatenate([r.predictions()[1] for r in records]).tolist()


def test_labels_that_the_network_does_not_know_are_counted_and_left_out(
    records: list[Record], tmp_path: Path
) -> None:
    other = random_store(tmp_path / "o.zarr", videos=22, classes=ELEVEN, missing=(0,))
    (checkpoint, _) = [read_checkpoint(record.folder) for record in records]
    found = evaluate_elsewhere([checkpoint], other)
    assert found.unsupported == {name: 2 for name in ELEVEN[7:]}
    assert (found.videos, len(found.labels)) == (13, 13)
    assert found.elsewhere == 0
    rows = [row for row in range(1, 22) if other.labels[row] < 7]
    network = checkpoint.load(other.text_weights, other.text_config)
    said = network.predict(other.load_features([0])[rows, 0])
    assert found.predicted.tolist() == said.labels_N.tolist()


def test_only_labels_of_the_store_are_predicted(records: list[Record], tmp_path: Path) -> None:
    other = random_store(tmp_path / "o.zarr", videos=24, classes=SIX)
    (checkpoint, _) = [read_checkpoint(record.folder) for record in records]
    found = evaluate_elsewhere([checkpoint], other)
    network = checkpoint.load(other.text_weights, other.text_config)
    logits_NK = network.predict(other.load_features([0])[:, 0]).logits_NK
    assert found.elsewhere == (logits_NK.argmax(1) == CLASSES.index("neutral")).mean()
    kept = [k for k, name in enumerate(CLASSES) if name != "neutral"]
    assert found.predicted.tolist() == logits_NK[:, kept].argmax(1).tolist()


def test_features_of_another_encoder_are_refused(records: list[Record], tmp_path: Path) -> None:
    other = random_store(tmp_path / "o.zarr", videos=14, dim=8)
    with pytest.raises(RefusedError, match=r"(?s)trained on other features.*encoder\.dim"):
        evaluate_elsewhere([read_checkpoint(records[0].folder)], other)


def test_command_makes_a_matrix(store: LocalStore, records: list[Record], tmp_path: Path) -> None:
    others = {"happiness": "joy", "fear": "anxiety"}
    own = tuple(others.get(name, name) for name in ELEVEN if name != "anxiety")
    random_store(tmp_path / "o.zarr", videos=22, classes=own)
    lines = [f'{name} = ["{name}", "{others.get(name, name)}"]' for name in CLASSES]
    (tmp_path / "map.toml").write_text("\n".join(lines))
    runs = [word for record in records for word in ("--run", record.folder)]
    words = ("evaluate", *runs, "--store", store.path, "--store", "o.zarr", "--device", "cpu")
    done = command(*words, "--map", "map.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "reports/evaluation.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| test | 2 |")]
    assert row.count(" / ") == 2
    assert row.count("own test folds") == 1
    assert "contempt 2, helplessness 2" in text
    assert "| label | predictions | recall % | joy | sadness |" in text


def test_report_has_recalls_and_confusion(store: LocalStore, records: list[Record]) -> None:
    checkpoints = [read_checkpoint(record.folder) for record in records]
    assert [len(group) for group in by_data(checkpoints)] == [2]
    found = evaluate_elsewhere(checkpoints, store)
    text = evaluation_report([[found]], [store])
    for label, name in enumerate(CLASSES):
        own = found.predicted[found.labels == label]
        cells = [str(np.sum(own == other)) for other in range(7)]
        recall = f"{100 * np.mean(own == label):.1f}"
        assert f"| {' | '.join([name, str(len(own)), recall, *cells])} |" in text
