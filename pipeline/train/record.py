"""The folder of a run -> its record, of which nothing is believed before it was verified.

A folder's name is the digest of the identity in ``run.json``. ``result.json`` holds the sha256 of
every other file, and scores that must be those of the verified predictions. Whoever can write the
folder can forge all of it together; anything less is found, and the run counts as damaged.
"""

import csv
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError, model_validator

from cache.errors import DamagedError, RefusedError
from cache.files import canonical_json, sha256
from cache.identity import flatten
from cache.outside import open_outside
from cache.store import LIVE, Store
from pipeline.config import Run, SelectionConfig
from pipeline.evaluate.metrics import confusion, recalls, uar, war
from pipeline.train.code import code_files
from pipeline.train.split import scored_rows

ARRAYS = ("attention.npy", "frame_logits.npy")
# What a finished run always leaves, besides result.json.
FINISHED = ("checkpoint.safetensors", *ARRAYS, "predictions.csv", "metrics.csv", "run.json")
# Weights and configuration of an encoder that it trained: of a CLIP, or of another model.
ENCODERS = {
    "encoder/open_clip_model.safetensors": "encoder/open_clip_config.json",
    "encoder/model.safetensors": "encoder/model.json",
}
# Every file that a run may leave, in the order of removal.
FILES = ("result.json", "resume.safetensors", *chain(*ENCODERS.items()), *FINISHED)
TRAIN_AGAIN = "train the run again with: tgdfer train --retrain-damaged"
# Settings that came later; with these values they are not in the identity of a run.
LATER = {
    "head.kind": "tgdfer",
    "optimiser.focal_gamma": 2.0,
    "optimiser.intensity": 0.1,
    "optimiser.mixup": 0.0,
}
DIGITS = 16  # of a folder's name
FOLDERS = "[0-9a-f]" * DIGITS  # as a pattern
# What reading refuses, so that a file without end does not fill the memory.
JSON_BYTES_MAX, TABLE_BYTES_MAX, NETWORK_BYTES_MAX = 1 << 24, 1 << 30, 1 << 34

Status = Literal["done", "diverged", "unfinished", "damaged"]


class _Identity(BaseModel):
    method: dict[str, Any]
    precision: str
    fold: str
    seed: int
    store: str
    device: str
    code: str


class _Metadata(BaseModel):
    """What is used of run.json; runs of early versions lack the fields that have a default."""

    run: dict[str, Any]
    identity: _Identity
    store: dict[str, Any]
    versions: dict[str, str]
    classes: list[str] = []
    texts: list[tuple[str, str]] | None = None  # of the classes, if they are the data set's own
    data: str = ""
    code: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.texts is not None and len(self.texts) != len(self.classes):
            raise ValueError(f"{len(self.texts)} texts of {len(self.classes)} classes")
        return self


class _Result(BaseModel):
    """What is used of result.json."""

    status: Literal["done", "diverged"]
    sha256: dict[str, str]
    uar: float | None = None
    war: float | None = None
    recalls: dict[str, float | None] = {}


@dataclass(frozen=True)
class _Tested:
    """What a run said of its N test videos."""

    ids: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    logits_NK: NDArray[np.float64]
    classes: list[str]


@dataclass(frozen=True)
class Record:
    """What a run left in its folder, finished or not."""

    folder: Path
    metadata: dict[str, Any]  # content of run.json; {} if it is damaged
    finished: bool  # whether there is a result, which may be damaged
    broken: str = ""  # damage found without opening the result
    store: Store | None = None  # the videos that it must have been tested on, if known

    @property
    def status(self) -> Status:
        """What can be done with it."""
        if self.damage:
            return "damaged"
        return self.result["status"] if self.result else "unfinished"

    @property
    def ok(self) -> bool:
        """Whether the run finished and did not diverge."""
        return self.status == "done"

    @property
    def damage(self) -> str:
        """Which file is not as the run left it, and why; empty if all are as they were."""
        return self._verified[2]

    @property
    def result(self) -> dict[str, Any] | None:
        """Content of result.json; None while unfinished, and if the run is damaged."""
        return self._verified[0]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the numbers depend on, with dotted names."""
        return flatten(self.metadata.get("identity", {}))

    @property
    def run(self) -> Run:
        """The configuration, fold and seed; raises RefusedError if this version has no such."""
        return _run(self.folder, self.metadata)

    def changed_code(self) -> list[str]:
        """The files of the code that computed it which are not as they are now."""
        return _changed_code(self.metadata)

    def predictions(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """(ids, labels, predicted classes) of the test videos."""
        tested = self._tested()
        return tested.ids, tested.labels, tested.predicted

    def logits(self) -> NDArray[np.float64]:
        """Logits of the test videos, [N, K], in the order of predictions."""
        return self._tested().logits_NK

    def epochs(self) -> dict[str, NDArray[np.float64]]:
        """Every epoch's number, loss and scores in [0, 1], [epoch], by the columns of metrics.csv.

        Scores are ``test_uar`` and ``test_war``, or ``held_out_…`` in their place, and ``val_…``
        where videos were held out to select by.
        """
        return _parse_epochs(self.folder / "metrics.csv", self.read("metrics.csv"))

    def frame_logits(self) -> NDArray[np.float32]:
        """What the network says of the frames of the test videos, in the order of predictions.

        [N, T, K]; of TG-DFER, cos(x_t, label_k) / tau.
        """
        return self._array("frame_logits.npy")

    def attention(self) -> NDArray[np.float32]:
        """Frame weights of the visual prompts, [N, T, K]; NaN where the method has none."""
        return self._array("attention.npy")

    def read(self, name: str) -> bytes:
        """A file of a finished run, as the run left it; raises DamagedError if it was changed."""
        if self.result is None:
            raise RefusedError(self.damage or f"{self.folder} is unfinished: it has no {name}")
        return _read(self.folder, name, self.result["sha256"])

    def with_network(self) -> "Record":
        """The record, damaged also if its network is; reads all of it."""
        try:
            for name in self.result["sha256"] if self.result else ():
                self.read(name)
        except DamagedError as error:
            return replace(self, broken=str(error))
        return self

    def _tested(self) -> _Tested:
        _, tested, damage = self._verified
        if tested is None:
            raise RefusedError(damage or f"{self.folder} is unfinished: it has no predictions")
        return tested

    def _array(self, name: str) -> NDArray[np.float32]:
        _, tested, _ = self._verified
        return _parse_array(self.folder / name, self.read(name), _shape(self.metadata, tested))

    @cached_property
    def _verified(self) -> tuple[dict[str, Any] | None, _Tested | None, str]:
        """(result, predictions, damage); the network itself is only verified when it is read."""
        if self.broken or not self.finished:
            return None, None, self.broken
        try:
            result = _read_json(self.folder / "result.json", _Result)
            _check_names(self.folder, result)
            sums = result["sha256"]
            small = {name: _read(self.folder, name, sums) for name in FINISHED[1:]}
            tested = _parse_predictions(self.folder / "predictions.csv", small["predictions.csv"])
            _parse_epochs(self.folder / "metrics.csv", small["metrics.csv"])
            for name in ARRAYS:
                _parse_array(self.folder / name, small[name], _shape(self.metadata, tested))
            _check_result(self.folder, result, tested)
            _check_videos(self.folder, self.metadata, tested, self.store)
        except DamagedError as error:
            return None, None, str(error)
        return result, tested, ""


def read_record(folder: Path, store: Store | None = None) -> Record | None:
    """The record in a run's folder; None if there is none.

    With a ``store``, the run must have been tested on that store's videos of its fold.
    """
    finished = os.path.lexists(folder / "result.json")
    try:
        if not _kinds_of_files(folder) & {"run.json", "result.json"}:
            return None
        metadata = _read_metadata(folder)
    except DamagedError as error:
        return Record(folder, {}, finished, str(error), store)
    return Record(folder, metadata, finished, "", store)


def check_finished(folder: Path) -> Record:
    """The record of a finished run; raises RefusedError if there is none, DamagedError if it is."""
    record = read_record(Path(os.path.abspath(folder)))  # so that . has a name
    if record is not None and record.damage:
        raise DamagedError(f"{record.damage}; {TRAIN_AGAIN}")
    if record is None or not record.ok:
        raise RefusedError(f"{folder}: no finished run here; list the runs with: tgdfer runs")
    return record


def read_records(root: Path) -> Iterator[Record]:
    """Every record below ``root``, for any store, device and code."""
    for folder in sorted(root.glob("?" * DIGITS)):
        if re.fullmatch("[0-9a-f]*", folder.name):
            record = read_record(folder)
            if record is not None:
                yield record


def name_of(identity: dict[str, Any]) -> str:
    """The name of the folder of a run."""
    return sha256(canonical_json(identity))[:DIGITS]


def identity_of(run: Run, store: str, device: str, code: str) -> dict[str, Any]:
    """Everything the numbers of ``run`` depend on; ``store`` and ``code`` are digests."""
    optimiser = run.method.optimiser
    # The store's digest says more than what was required of it.
    settings = run.method.model_dump(
        mode="json", exclude={"store": True, "optimiser": {"milestones", "precision"}}
    )
    settings["optimiser"]["decays"] = list(optimiser.decays())
    for name, value in LATER.items():  # so that a run keeps the name that it had before
        table, setting = name.split(".")
        if settings[table][setting] == value:
            del settings[table][setting]
    if "kind" not in settings["head"]:  # TG-DFER reads no other
        del settings["head"]
    return {
        "method": settings,
        "precision": optimiser.resolved_precision(device),
        "fold": run.fold,
        "seed": run.seed,
        "store": store,
        "device": device,
        "code": code,
    }


def scores(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: list[str]
) -> dict[str, Any]:
    """UAR, WAR and recalls as result.json holds them; None for a class without a test video."""
    counts = confusion(labels, predicted, len(classes))
    shown = [None if np.isnan(recall) else recall for recall in recalls(counts).tolist()]
    by_class = dict(zip(classes, shown, strict=True))
    return {"uar": float(uar(counts)), "war": float(war(counts)), "recalls": by_class}


def _kinds_of_files(folder: Path) -> set[str]:
    """The files of a run that are there; raises DamagedError for anything that is not a file."""
    found = set()
    for name in ("", "encoder", *FILES):
        try:
            mode = (folder / name).lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DamagedError(f"{folder / name} cannot be read: {error.strerror}") from error
        is_right = stat.S_ISDIR if name in ("", "encoder") else stat.S_ISREG
        if not is_right(mode):
            kind = "folder" if is_right is stat.S_ISDIR else "file"
            link = " but a link" if stat.S_ISLNK(mode) else ""
            raise DamagedError(f"{folder / name} is not a {kind}{link}")
        found.add(name)
    return found


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    metadata = _read_json(path, _Metadata)
    identity, code = metadata["identity"], metadata.get("code")
    try:
        name, digest = name_of(identity), sha256(canonical_json(code))
    except ValueError:  # NaN, or what is no text
        name = digest = ""
    if name != folder.name:
        raise DamagedError(f"{path} is that of another run, or was changed")
    if code is not None:
        if digest != identity["code"]:
            raise DamagedError(f"{path} was changed: its code is not that of its identity")
        run = None if _changed_code(metadata) else _run(folder, metadata)
        given = (identity[name] for name in ("store", "device", "code"))
        if run is not None and identity_of(run, *given) != identity:
            raise DamagedError(f"{path} was changed: its settings are not those of its identity")
    return metadata


def _run(folder: Path, metadata: dict[str, Any]) -> Run:
    try:
        return Run.model_validate(metadata["run"])
    except (ValidationError, KeyError) as error:
        raise DamagedError(
            f"{folder / 'run.json'} holds settings that this version does not have"
        ) from error


def _changed_code(metadata: dict[str, Any]) -> list[str]:
    live = str(metadata.get("identity", {}).get("store", "")).startswith(LIVE)
    now, then = code_files(live=live), metadata.get("code", {})
    return sorted(f for f in now.keys() | then.keys() if now.get(f) != then.get(f))


def _open(path: Path, bytes_max: int) -> BinaryIO:
    return open_outside(path, "a run's file", bytes_max, DamagedError, links=False)


def _read_json(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    with _open(path, JSON_BYTES_MAX) as file:
        data = file.read()
    try:
        model.model_validate_json(data, strict=True)
        content: dict[str, Any] = json.loads(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{path} is damaged: {where or 'JSON'}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: not JSON as this program writes it") from error
    return content


def _check_names(folder: Path, result: dict[str, Any]) -> None:
    names = set(result["sha256"])
    encoder = {name for pair in ENCODERS.items() if names & set(pair) for name in pair}
    if strange := names.difference(FILES[2:]) or (encoder | set(FINISHED)) - names:
        raise DamagedError(f"{folder / 'result.json'} is damaged: sha256 of {min(strange)}")
    for name in names:
        if not os.path.lexists(folder / name):
            raise DamagedError(f"{folder / name} is missing")


def _read(folder: Path, name: str, sums: dict[str, str]) -> bytes:
    limit = NETWORK_BYTES_MAX if name.endswith(".safetensors") else TABLE_BYTES_MAX
    with _open(folder / name, limit) as file:
        data = file.read()
    if sha256(data) != sums[name]:
        raise DamagedError(f"{folder / name} is damaged: its sha256 is not the recorded one")
    return data


def _parse_predictions(path: Path, data: bytes) -> _Tested:
    try:
        head, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        classes = [name.removeprefix("logit_") for name in head[3:] if name.startswith("logit_")]
        columns = [*zip(*rows, strict=True)]
        ids, labels, predicted = columns[:3]
        logits_KN = np.array(columns[3 : 3 + len(classes)], np.float64)
        tested = _Tested(
            list(ids),
            np.array([int(label) for label in labels], np.int64),
            np.array([int(label) for label in predicted], np.int64),
            logits_KN.T,
            classes,
        )
        whole = head[:3] == ["id", "label", "predicted"] and len(head) == len(columns)
        whole = whole and bool((tested.logits_NK.argmax(1) == tested.predicted).all())
        whole = whole and bool(np.isin(tested.labels, range(len(classes))).all())
    except (ValueError, OverflowError, csv.Error):
        whole = False
    if not whole:
        raise DamagedError(f"{path} is damaged: not predictions as this program writes them")
    return tested


def _parse_epochs(path: Path, data: bytes) -> dict[str, NDArray[np.float64]]:
    try:
        head, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        return dict(zip(head, np.array(rows, np.float64).T, strict=True))
    except (ValueError, csv.Error):
        raise DamagedError(
            f"{path} is damaged: not the epochs as this program writes them"
        ) from None


def _shape(metadata: dict[str, Any], tested: _Tested | None) -> tuple[Any, ...]:
    assert tested is not None
    given = metadata["identity"]["method"].get("input")
    chosen = given.get("frames") if isinstance(given, dict) else 0
    return len(tested.ids), chosen or metadata["store"].get("frames"), len(tested.classes)


def _parse_array(path: Path, data: bytes, shape: tuple[Any, ...]) -> NDArray[np.float32]:
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0(stream)
        if header != (shape, False, np.dtype(np.float32)):
            raise DamagedError(
                f"{path} is damaged: float32 {list(shape)} expected, "
                f"[videos, frames, classes], found {header[2]} {list(header[0])}"
            )
        return np.frombuffer(stream.read(), np.float32).reshape(shape)
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path} is damaged: not an array of {list(shape)}") from error


def _check_result(folder: Path, result: dict[str, Any], tested: _Tested) -> None:
    path, finite = folder / "result.json", np.isfinite(tested.logits_NK).all()
    if (result["status"] == "done") != finite:
        logits = "finite" if finite else "not finite"
        raise DamagedError(f"{path} was changed: {result['status']}, but the logits are {logits}")
    if finite:
        ours = scores(tested.labels, tested.predicted, tested.classes)
        if _rounded(ours) != _rounded({name: result.get(name) for name in ours}):
            raise DamagedError(f"{path} was changed: its scores are not those of the predictions")


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: v if v is None else round(v, 9) for name, v in flatten(values).items()}


def _check_videos(
    folder: Path, metadata: dict[str, Any], tested: _Tested, store: Store | None
) -> None:
    path = folder / "predictions.csv"
    if tested.classes != metadata.get("classes", tested.classes):
        raise DamagedError(f"{path} is damaged: its classes are not those of run.json")
    if store is None:
        return
    identity, ids = metadata["identity"], store.ids
    selection = SelectionConfig.model_validate(identity["method"].get("selection", {}))
    rows = scored_rows(store, identity["fold"], selection, identity["seed"])
    same = (
        tested.classes == list(store.classes)
        and metadata["store"].get("frames") == store.frames
        and tested.ids == [ids[row] for row in rows]
        and tested.labels.tolist() == store.labels[rows].tolist()
    )
    if not same:
        raise DamagedError(f"{path} is damaged: not the test videos of {store.path} and its labels")
