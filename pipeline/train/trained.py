"""The folder of a finished run -> its network, ready to predict."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import DamagedError, RefusedError
from cache.identity import flatten, side_by_side
from cache.store import Store
from pipeline.config import Run
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.influence import Array
from pipeline.evaluate.predictions import EVALUATION_VIDEOS, Predictions, predict
from pipeline.model.text_tower import load_text_tower
from pipeline.model.tgdfer import TGDFER
from pipeline.train.record import Record, read_record
from pipeline.weights import digest_weights, read_config

TRAIN_AGAIN = "train the run again with: tgdfer train --retrain-damaged"
CHECKPOINT = "checkpoint.safetensors"
ENCODER_WEIGHTS = "encoder/open_clip_model.safetensors"
ENCODER_CONFIG = "encoder/open_clip_config.json"


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

    def leave_one_out(self, features_NTD: NDArray[Any], predicted_N: NDArray[np.int64]) -> Array:
        """How much log p of the predicted class falls without each used frame, [N, T].

        A frame is left out by putting the mean of the video's other used frames in its place.
        Raises RefusedError if only one frame is used.
        """
        self.run.method.input.refuse_leaving_out_the_only_frame(self.model.frames)
        parts = [
            slice(start, start + EVALUATION_VIDEOS)
            for start in range(0, len(predicted_N), EVALUATION_VIDEOS)
        ]
        falls = [self._falls(features_NTD[part], predicted_N[part]) for part in parts]
        return np.concatenate(falls)

    def _falls(self, features_NTD: NDArray[Any], predicted_N: NDArray[np.int64]) -> Array:
        chosen, whole = self.run.method.input.chosen(self.model.frames), self._log_p(features_NTD)
        rows, fall = np.arange(len(predicted_N)), []
        for frame in chosen:
            others = [other for other in chosen if other != frame]
            without_NTD = np.array(features_NTD, np.float32)
            without_NTD[:, frame] = without_NTD[:, others].mean(1)
            fall.append((whole - self._log_p(without_NTD))[rows, predicted_N])
        return np.stack(fall, 1)

    def _log_p(self, features_NTD: NDArray[Any]) -> Array:
        logits_NK = self.predict(features_NTD).logits_NK.astype(np.float64)
        return logits_NK - np.logaddexp.reduce(logits_NK, axis=1, keepdims=True)


def load_run(
    folder: Path | str, store: Store, device: str = "cpu", other_code: bool = False
) -> TrainedRun:
    """The network in ``folder``, with the text tower of ``store``.

    The store may differ from the one that the run was trained on, as long as its encoder, frames
    and classes are the same. Raises RefusedError if they are not, if there is no finished run, or
    if it was trained by other code (unless ``other_code``), whose predictions this code need not
    repeat; DamagedError if a file of the run is damaged.
    """
    record = read_record(Path(os.path.abspath(folder)))  # so that . has a name
    if record is not None and record.damage:
        raise DamagedError(f"{record.damage}; {TRAIN_AGAIN}")
    if record is None or not record.ok:
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
        class_texts(store.classes, store.texts),
        store.frames,
        [run.method],
    ).to(device)
    own = model.kept()
    parameters = _read_checkpoint(record, {name: kept.shape[1:] for name, kept in own.items()})
    with torch.no_grad():
        for name, kept in own.items():
            kept[0] = parameters[name]
    return TrainedRun(run, store.classes, model)


def _refuse_other_encoder(record: Record, store: Store) -> None:
    trained = flatten(record.metadata["store"]) | {"classes": record.metadata["classes"]}
    given = flatten(store.identity.model_dump(mode="json")) | {"classes": list(store.classes)}
    names = [name for name in given if name.startswith(("encoder.", "preprocessing."))]
    tuned = record.folder / "encoder"
    retrained = ENCODER_WEIGHTS in (record.result or {})["sha256"]
    if retrained:  # so it is no longer the one it began with
        record.read(ENCODER_WEIGHTS)  # which verifies them
        record.read(ENCODER_CONFIG)
        config = read_config(record.folder / ENCODER_CONFIG).get("model_cfg", {})
        known = given["encoder.weights_sha256"]
        known = digest_weights(record.folder / ENCODER_WEIGHTS, config, known)
        trained["encoder.weights_sha256"] = known
        names = ["encoder.weights_sha256"]
    rows = [
        (name, str(trained.get(name)), str(given[name]))
        for name in (*names, "frames", "classes")
        if trained.get(name) != given[name]
    ]
    if rows:
        head = ("field", "trained on", str(store.path))
        remedy = f"\nextract a store with encoder local-dir:{tuned}" if retrained else ""
        raise RefusedError(
            f"{record.folder} was trained on other features:\n{side_by_side(rows, head)}{remedy}"
        )


def _read_checkpoint(record: Record, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = record.read(CHECKPOINT)
    try:
        parameters: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise DamagedError(
            f"{record.folder / CHECKPOINT} is damaged: {error}; {TRAIN_AGAIN}"
        ) from error
    if {name: p.shape for name, p in parameters.items()} != shapes:
        raise DamagedError(
            f"{record.folder / CHECKPOINT} is the network of another method; {TRAIN_AGAIN}"
        )
    return parameters
