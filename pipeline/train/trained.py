"""The folder of a finished run -> its network, ready to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import DamagedError, RefusedError
from cache.files import sha256
from cache.identity import flatten, side_by_side
from cache.store import Store
from pipeline.config import Run
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.predictions import Predictions, predict
from pipeline.model.text_tower import load_text_tower
from pipeline.model.tgdfer import TGDFER
from pipeline.train.records import Record, read_record
from pipeline.weights import digest_weights, read_config

CHECKPOINT = "checkpoint.safetensors"
ENCODER_WEIGHTS = "open_clip_model.safetensors"
ENCODER_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class TrainedRun:
    """The network of one finished run."""

    run: Run
    classes: tuple[str, ...]
    model: TGDFER  # a stack of one run

    def predict(self, features_NTD: NDArray[Any]) -> Predictions:
        """Predictions for N videos of T frames, from the encoder's features.

        Raises RefusedError for an array of another shape.
        """
        frames, size = self.model.frames, self.model.size
        if features_NTD.ndim != 3 or features_NTD.shape[1:] != (frames, size):
            raise RefusedError(
                f"features of shape {features_NTD.shape}, expected (videos, {frames}, {size}): "
                "videos, frames per video, features per frame"
            )
        device = self.model.temperature_R.device
        all_NTD = torch.from_numpy(np.asarray(features_NTD, np.float32)).to(device)
        (said,) = predict(self.model, lambda row_RB, _: all_NTD[row_RB], [np.arange(len(all_NTD))])
        return said


def load_run(
    folder: Path | str, store: Store, device: str = "cpu", other_code: bool = False
) -> TrainedRun:
    """The network in ``folder``, with the text tower of ``store``.

    The store may differ from the one that the run was trained on, as long as its encoder, frames
    and classes are the same. Raises RefusedError if they are not, if there is no finished run, or
    if it was trained by other code (unless ``other_code``), whose predictions this code need not
    repeat; DamagedError if the checkpoint is damaged.
    """
    record = read_record(Path(folder))
    if record is None or record.result is None or not record.ok:
        raise RefusedError(f"{folder}: no finished run here; list the runs with: tgdfer runs")
    changed = record.changed_code()
    if changed and not other_code:
        raise RefusedError(
            f"{folder} was trained by other code ({', '.join(changed)}), so its network may "
            "predict something else now; train it again, or pass other_code=True"
        )
    _refuse_other_encoder(record, store)
    run = record.run
    model = TGDFER(
        [torch.Generator().manual_seed(run.seed)],
        load_text_tower(store.text_weights, store.text_config),
        class_texts(store.classes),
        store.frames,
        [run.method],
    ).to(device)
    parameters = _read_checkpoint(record)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter[0] = parameters[name]
    return TrainedRun(run, store.classes, model)


def _refuse_other_encoder(record: Record, store: Store) -> None:
    trained = flatten(record.metadata["store"]) | {"classes": record.metadata["classes"]}
    given = flatten(store.identity.model_dump(mode="json")) | {"classes": list(store.classes)}
    names = [name for name in given if name.startswith(("encoder.", "preprocessing."))]
    tuned = record.folder / "encoder"
    if tuned.is_dir():  # the encoder was trained too, so it is no longer the one it began with
        config = read_config(tuned / ENCODER_CONFIG)["model_cfg"]
        known = digest_weights(tuned / ENCODER_WEIGHTS, config, given["encoder.weights_sha256"])
        trained["encoder.weights_sha256"] = known
        names = ["encoder.weights_sha256"]
    rows = [
        (name, str(trained.get(name)), str(given[name]))
        for name in (*names, "frames", "classes")
        if trained.get(name) != given[name]
    ]
    if rows:
        head = ("field", "trained on", str(store.path))
        remedy = f"\nextract a store with encoder local-dir:{tuned}" if tuned.is_dir() else ""
        raise RefusedError(
            f"{record.folder} was trained on other features:\n{side_by_side(rows, head)}{remedy}"
        )


def _read_checkpoint(record: Record) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    data = (record.folder / CHECKPOINT).read_bytes()
    assert record.result is not None
    if sha256(data) != record.result["sha256"][CHECKPOINT]:
        raise DamagedError(
            f"{record.folder / CHECKPOINT} is damaged (its sha256 differs); train the run again"
        )
    return dict(load(data))
