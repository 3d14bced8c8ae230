"""The folder of a finished run -> its network, ready to predict."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import DamagedError, RefusedError
from cache.identity import Identity, flatten, refused, side_by_side
from cache.store import Store
from pipeline.config import Run
from pipeline.datasets.texts import ClassTexts, class_texts
from pipeline.evaluate.influence import Array
from pipeline.evaluate.predictions import EVALUATION_VIDEOS, Predictions, predict
from pipeline.model.heads.choose import build_network
from pipeline.model.network import Network, NetworkSpec
from pipeline.model.text_tower import find_text_tower
from pipeline.train.record import ENCODERS, TRAIN_AGAIN, check_finished
from pipeline.weights import digest_weights, read_config

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainedRun:
    """The network of one finished run."""

    run: Run
    classes: tuple[str, ...]
    model: Network  # a stack of one run

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
        device = self.model.device
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


@dataclass(frozen=True)
class Checkpoint:
    """What a trained network is made of, except for its encoder; verified, but not built yet."""

    name: str
    where: Path  # what errors name
    run: Run
    classes: tuple[str, ...]
    texts: ClassTexts
    data: Identity  # of the features that it was trained on
    parameters: dict[str, torch.Tensor]
    encoder: str | None = None  # one of ENCODERS, if the run itself trained its encoder
    remedy: str = TRAIN_AGAIN
    trained_on: str = ""  # the name of the data set

    def load(
        self, text_weights: bytes, text_config: dict[str, Any], device: str = "cpu"
    ) -> TrainedRun:
        """The network, on ``device``, with the text tower of its encoder, if that has one.

        Raises DamagedError if the parameters are those of another method.
        """
        spec = NetworkSpec(
            [torch.Generator().manual_seed(self.run.seed)],
            find_text_tower(text_weights, text_config),
            self.texts,
            self.data.frames,
            [self.run.method],
        )
        model = build_network(spec).to(device)
        own = model.kept()
        shapes = {name: kept.shape[1:] for name, kept in own.items()}
        if {name: given.shape for name, given in self.parameters.items()} != shapes:
            raise DamagedError(f"{self.where} is the network of another method; {self.remedy}")
        with torch.no_grad():
            for name, kept in own.items():
                kept[0] = self.parameters[name]
        return TrainedRun(self.run, self.classes, model)

    def weights_sha256(self, like: str) -> str:
        """The digest of the encoder's weights, in the form of ``like``."""
        if self.encoder is None:
            return self.data.encoder.weights_sha256
        config = read_config(self.where / ENCODERS[self.encoder]).get("model_cfg", {})
        return digest_weights(self.where / self.encoder, config, like)

    @property
    def encoder_options(self) -> tuple[str | None, str | None]:
        """``--encoder`` and ``--pretrained`` of the encoder that the run itself trained, if any."""
        if self.encoder is None:
            return None, None
        folder = (self.where / self.encoder).parent
        if "open_clip" in self.encoder:
            return f"local-dir:{folder}", None
        return self.data.encoder.name, str(folder)


def read_checkpoint(folder: Path | str, other_code: bool = False) -> Checkpoint:
    """The network that a finished run left in ``folder``.

    Raises RefusedError if there is no finished run, or if it was trained by other code (unless
    ``other_code``), whose predictions this code need not repeat; DamagedError if one of its files
    is damaged.
    """
    record = check_finished(Path(folder))
    changed = record.changed_code()
    if changed and not other_code:
        raise RefusedError(
            f"{folder} was trained by other code ({', '.join(changed)}), so its network may "
            "predict something else now; train it again, or pass other_code=True (--other-code)"
        )
    path, classes = record.folder / CHECKPOINT, tuple(record.metadata.get("classes", ()))
    with refused(f"{record.folder / 'run.json'} is damaged", DamagedError, TRAIN_AGAIN):
        data = Identity.model_validate(record.metadata["store"])
    sums = (record.result or {})["sha256"]
    trained = next((weights for weights in ENCODERS if weights in sums), None)
    if trained is not None:  # so it is no longer the one it began with
        record.read(trained)  # which verifies them
        record.read(ENCODERS[trained])
    return Checkpoint(
        record.folder.name,
        record.folder,
        record.run,
        classes,
        class_texts(classes, record.metadata.get("texts")),
        data,
        _parse_checkpoint(path, record.read(CHECKPOINT)),
        trained,
        trained_on=record.metadata.get("data", ""),
    )


def load_run(
    folder: Path | str, store: Store, device: str = "cpu", other_code: bool = False
) -> TrainedRun:
    """The network in ``folder``, with the text tower of ``store``.

    The store may differ from the one that the run was trained on, as long as its encoder, frames
    and classes are the same. Raises RefusedError if they are not, and what ``read_checkpoint``
    raises.
    """
    checkpoint = read_checkpoint(folder, other_code)
    refuse_other_features(checkpoint, store)
    return checkpoint.load(store.text_weights, store.text_config, device)


def refuse_other_features(
    checkpoint: Checkpoint, store: Store, other_classes: bool = False
) -> None:
    """Raise RefusedError if a store was made by another encoder, or from another number of frames.

    Its classes must be the same as well, unless ``other_classes``.
    """
    trained = flatten(checkpoint.data.model_dump(mode="json"))
    given = flatten(store.identity.model_dump(mode="json"))
    trained["classes"], given["classes"] = list(checkpoint.classes), list(store.classes)
    names = [name for name in given if name.startswith(("encoder.", "preprocessing."))]
    if checkpoint.encoder is not None:
        names = ["encoder.weights_sha256"]
        trained[names[0]] = checkpoint.weights_sha256(given[names[0]])
    rows = [
        (name, str(trained.get(name)), str(given[name]))
        for name in (*names, "frames", *([] if other_classes else ["classes"]))
        if trained.get(name) != given[name]
    ]
    if rows:
        head = ("field", "trained on", str(store.path))
        name, weights = checkpoint.encoder_options
        own = f" and --pretrained {weights}" if weights else ""
        remedy = f"\nextract a store with encoder {name}{own}" if name else ""
        raise RefusedError(
            f"{checkpoint.where} was trained on other features:\n{side_by_side(rows, head)}{remedy}"
        )


def _parse_checkpoint(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        parameters: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {error}; {TRAIN_AGAIN}") from error
    return parameters
