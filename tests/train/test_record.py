"""Nothing of a record is believed before it was verified."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.errors import DamagedError
from cache.files import sha256
from cache.store import Store
from pipeline.config import Run, load_method
from pipeline.report.runs import read_runs, varying_settings
from pipeline.train.record import FILES, read_record
from pipeline.train.records import Records, remove_record
from support.records import edit_json, forge, to_link, write_record
from support.stores import random_store

RUN = Run(method=load_method(), fold="1", seed=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=35, frames=4, dim=8)


@pytest.fixture
def records(store: Store, tmp_path: Path) -> Records:
    return Records(tmp_path / "runs", store)


def finish(records: Records, run: Run = RUN) -> Path:
    return write_record(records, run, np.zeros(7, int))


def cut(folder: Path, name: str, size: int = 40) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


def swap_predictions(folder: Path) -> None:
    """All right, with every sha256 and the scores that follow from it."""
    head, *lines = (folder / "predictions.csv").read_text().splitlines()
    lines = [line.replace(",1.0,", ",0.9,") for line in reversed(lines)]
    forge(folder, "predictions.csv", "\n".join([head, *lines, ""]).encode())


def forge_identity(folder: Path) -> None:
    about = json.loads((folder / "run.json").read_text())
    about["run"]["seed"] = 7
    forge(folder, "run.json", json.dumps(about).encode())


def forget_a_file(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    del result["sha256"]["metrics.csv"]
    (folder / "result.json").write_text(json.dumps(result))


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def empty_array(shape: tuple[int, ...]) -> bytes:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    text = str(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "predictions cut": (lambda f: cut(f, "predictions.csv"), r"predictions\.csv is damaged: its"),
    "logits cut": (lambda f: cut(f, "frame_logits.npy"), r"frame_logits\.npy is damaged: its sha"),
    "metrics cut": (lambda f: cut(f, "metrics.csv"), r"metrics\.csv is damaged: its sha"),
    "metrics binary": (
        lambda f: forge(f, "metrics.csv", b"\xff\x00" * 50),
        r"metrics\.csv is damaged: not the epochs as this program writes them",
    ),
    "metrics ragged": (
        lambda f: forge(f, "metrics.csv", b"epoch,train_loss\n1,0.5\n2\n"),
        r"metrics\.csv is damaged: not the epochs",
    ),
    "metrics a word": (
        lambda f: forge(f, "metrics.csv", b"epoch,train_loss\n1,low\n"),
        r"metrics\.csv is damaged: not the epochs",
    ),
    "settings cut": (lambda f: cut(f, "run.json"), r"run\.json is damaged: JSON: .*EOF"),
    "result cut": (lambda f: cut(f, "result.json"), r"result\.json is damaged: JSON: .*EOF"),
    "result empty": (lambda f: cut(f, "result.json", 0), r"result\.json is damaged: JSON"),
    "result a list": (lambda f: (f / "result.json").write_text("[]"), "damaged: JSON: Input sho"),
    "result deep": (
        lambda f: (f / "result.json").write_text('{"a":' * 99_999),
        r"damaged: JSON: .*recursion",
    ),
    "result not text": (lambda f: (f / "result.json").write_bytes(b"\xff\xfe"), "damaged: JSON"),
    "status absent": (
        lambda f: (f / "result.json").write_text('{"sha256": {}}'),
        "damaged: status: Field required",
    ),
    "status other": (lambda f: edit_json(f / "result.json", status="ok"), "damaged: status: "),
    "status diverged": (
        lambda f: edit_json(f / "result.json", status="diverged"),
        r"result\.json was changed: diverged, but the logits are finite",
    ),
    "sha256 text": (lambda f: edit_json(f / "result.json", sha256="0"), "damaged: sha256: "),
    "no sha256 of a file": (forget_a_file, r"damaged: sha256 of metrics\.csv"),
    "sha256 of a file elsewhere": (
        lambda f: edit_json(f / "result.json", sha256={"../x": "0" * 64}),
        r"damaged: sha256 of \.\./x",
    ),
    "score forged": (
        lambda f: edit_json(f / "result.json", war=0.99),
        r"result\.json was changed: its scores are not those of the predictions",
    ),
    "score text": (lambda f: edit_json(f / "result.json", uar="1"), "damaged: uar: "),
    "recall forged": (
        lambda f: edit_json(f / "result.json", recalls={"fear": 1.0}),
        r"its scores are not those",
    ),
    "predictions of other videos": (swap_predictions, r"predictions\.csv is damaged: not the test"),
    "predictions empty": (
        lambda f: forge(f, "predictions.csv", b"id,label,predicted\n"),
        r"not predictions as this program writes them",
    ),
    "predictions binary": (
        lambda f: forge(f, "predictions.csv", b"\xff\x00" * 50),
        r"not predictions as this program writes them",
    ),
    "predictions out of range": (
        lambda f: forge(
            f,
            "predictions.csv",
            (f / "predictions.csv").read_bytes().replace(b",0,1.0", b",9,1.0"),
        ),
        r"not predictions as this program writes them",
    ),
    "logits of another shape": (
        lambda f: forge(f, "frame_logits.npy", empty_array((10**6, 10**6, 7))),
        r"float32 \[7, 4, 7\] expected, \[videos, frames, classes\], found float32 \[1000000, ",
    ),
    "logits too short": (
        lambda f: forge(f, "frame_logits.npy", empty_array((7, 4, 7))),
        r"frame_logits\.npy is damaged: not an array of \[7, 4, 7\]",
    ),
    "logits deep": (
        lambda f: forge(f, "frame_logits.npy", b"\x93NUMPY\x01\x00" + b"\x20\x4e" + b"(" * 20_000),
        r"frame_logits\.npy is damaged: not an array",
    ),
    "settings of another run": (
        lambda f: edit_json(f / "run.json", identity={"seed": 5}),
        r"run\.json is that of another run, or was changed",
    ),
    "settings forged": (forge_identity, r"its settings are not those of its identity"),
    "code forged": (
        lambda f: edit_json(f / "run.json", code={"model/bag.py": "0" * 64}),
        r"run\.json was changed: its code is not that of its identity",
    ),
    "run no run": (lambda f: edit_json(f / "run.json", run=[]), r"run\.json is damaged: run: "),
    "settings missing": (
        lambda f: (f / "run.json").unlink(),
        r"run\.json: cannot be read \(No such",
    ),
    "checkpoint missing": (
        lambda f: (f / "checkpoint.safetensors").unlink(),
        r"checkpoint\.safetensors is missing",
    ),
    "predictions a link": (
        lambda f: to_link(f / "predictions.csv"),
        r"predictions\.csv is not a file but a link",
    ),
    "result a fifo": (lambda f: as_fifo(f / "result.json"), r"result\.json is not a file"),
    "checkpoint a folder": (
        lambda f: as_folder(f / "checkpoint.safetensors"),
        r"checkpoint\.safetensors is not a file",
    ),
    "encoder a link": (
        lambda f: (f / "encoder").symlink_to(f.parent),
        r"encoder is not a folder but a link",
    ),
    "folder a link": (to_link, r"is not a folder but a link"),
    "result without end": (
        lambda f: os.truncate(f / "result.json", 1 << 40),
        r"result\.json: cannot be read \(1099511627776 bytes, more than",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_run_is_named_and_neither_finished_nor_pending(records: Records, name: str) -> None:
    folder = finish(records)
    before = records.find(RUN)
    assert before is not None
    assert (before.status, before.damage) == ("done", "")
    damage, message = DAMAGES[name]
    damage(folder)
    record = records.find(RUN)
    assert record is not None
    assert (record.status, record.ok, record.result) == ("damaged", False, None)
    (found,) = records.damaged([RUN, RUN])
    with pytest.raises(DamagedError, match=message):
        raise DamagedError(found.damage)
    assert records.root.name in found.damage
    assert len(found.damage) < 600
    assert "\n" not in found.damage
    assert records.pending([RUN]) == []
    if name not in ("predictions of other videos",):  # which only the store can tell
        (row,) = read_runs(records.root).to_dict("records")
        assert (row["status"], np.isnan(row["war"])) == ("damaged", True)
        assert row["damage"] == found.damage


def test_damaged_runs_are_removed_only_when_asked_and_never_through_a_link(
    records: Records,
) -> None:
    for name, (damage, _) in DAMAGES.items():
        folder = finish(records)
        outside = folder.parent / "victim"
        outside.mkdir(exist_ok=True)
        (outside / "result.json").write_text("{}")
        damage(folder)
        found, left = records.settle_damaged([RUN], retrain=False)
        assert len(found) == len(left) == 1
        _, left = records.settle_damaged([RUN], retrain=True)
        kept = name in ("checkpoint a folder", "encoder a link", "folder a link")
        assert len(left) == kept, name
        assert records.pending([RUN]) == ([] if kept else [RUN])
        assert (outside / "result.json").read_text() == "{}"
        elsewhere = records.root.parent / f"elsewhere-{folder.name}"
        if name == "folder a link":
            assert {path.name for path in elsewhere.iterdir()} >= {"result.json", "run.json"}
            folder.unlink()
        if folder.exists():
            (folder / "encoder").unlink(missing_ok=True)
            if (folder / "checkpoint.safetensors").is_dir():
                (folder / "checkpoint.safetensors").rmdir()
    assert set(FILES) > {"result.json", "run.json"}


def test_unfinished_run_with_broken_settings_is_damaged_and_foreign_folders_are_nothing(
    records: Records,
) -> None:
    folder = finish(records)
    (folder / "result.json").unlink()
    assert records.pending([RUN]) == [RUN]
    (folder / "run.json").write_text("{")
    assert records.pending([RUN]) == []
    assert len(records.damaged([RUN])) == 1
    (records.root / "my other results").mkdir()
    (records.root / "0123456789abcdef").mkdir()
    assert read_record(records.root / "0123456789abcdef") is None
    assert len(read_runs(records.root)) == 1


def test_damaged_rows_do_not_make_settings_look_varied(records: Records) -> None:
    cut(finish(records), "run.json")
    finish(records, RUN.model_copy(update={"seed": 1}))
    rows = [
        {str(name): value for name, value in row.items()}
        for row in read_runs(records.root).to_dict("records")
    ]
    assert varying_settings(rows) == []


def test_record_of_an_earlier_version_is_still_read(records: Records) -> None:
    folder = finish(records)
    about = json.loads((folder / "run.json").read_text())
    for name in ("code", "classes", "data"):
        del about[name]
    about["run"]["method"]["temporal"]["dilation"] = 2  # a setting that no longer exists
    forge(folder, "run.json", json.dumps(about).encode())
    record = read_record(folder)
    assert record is not None
    assert record.ok
    assert record.changed_code()
    with pytest.raises(DamagedError, match=r"settings that this version does not have"):
        _ = record.run


def test_removing_a_record_that_another_process_trains_does_nothing(records: Records) -> None:
    folder = finish(records)
    with records.claim([RUN]):
        record = read_record(folder)
        assert record is not None
        assert remove_record(record) == "it is in training"
    assert sha256((folder / "run.json").read_bytes())
    assert records.find(RUN) is not None


def test_damaged_network_is_found_when_it_is_looked_for(records: Records) -> None:
    folder = finish(records)
    cut(folder, "checkpoint.safetensors")
    assert records.damaged([RUN]) == []  # tables do not read networks
    (found,) = records.damaged([RUN], networks=True)
    assert "checkpoint.safetensors is damaged" in found.damage
    assert records.settle_damaged([RUN], retrain=True)[1] == []
    assert records.pending([RUN]) == [RUN]


def test_sweeping_removes_what_a_kill_left_and_nothing_that_is_not_ours(
    records: Records, tmp_path: Path
) -> None:
    folder, other = finish(records), tmp_path / "other"
    kept = [records.root / ".tmp/draft.tex", records.root / ".locks/mine"]
    for place in (other, records.root / "my-own-folder-16", records.root / "0123456789abcdef"):
        kept += [place / "resume.safetensors", place / "result.json"]
    (records.root / "fedcba9876543210").symlink_to(other)
    litter = [records.root / ".tmp" / ("a1" * 16), records.root / ".locks" / folder.name]
    litter += [folder / "resume.safetensors"]
    for path in (*kept, *litter):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    records.sweep()
    assert [path for path in litter if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
