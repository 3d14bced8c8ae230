"""Finished runs or a bundle, and their encoder -> predictions for videos."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.identity import WHOLE_FRAMES, Identity, flatten, side_by_side
from pipeline.device import device_kind
from pipeline.encoders.clip import LOCAL_DIR, Encoder, EncoderFiles, Precision, find_encoder
from pipeline.evaluate.influence import Influence
from pipeline.extract.planning import cropping_of, parse_precision, suited_batch
from pipeline.interrupt import Stop
from pipeline.predict.bundle import read_bundle
from pipeline.predict.features import (
    AUTO,
    Encoded,
    OnFrames,
    ReadSettings,
    encode_sources,
    read_pictures,
)
from pipeline.predict.prediction import (
    VideoPrediction,
    best_window,
    failed,
    predict_video,
    predict_windows,
    refuse_unmeasured,
)
from pipeline.predict.sources import Source, find_sources
from pipeline.predict.windows import Sliding
from pipeline.train.trained import Checkpoint, TrainedRun, read_checkpoint
from pipeline.video.detector import check_detector
from pipeline.video.sampling import EVALUATION_RULE

_TOGETHER = 32  # windows that the networks predict in one call
_BATCH_FRAMES_MAX = 4096

Row = tuple[VideoPrediction, Encoded]  # of a source, or of a person in it


@dataclass(frozen=True)
class Predictor:
    """Trained networks with their encoder; several are an ensemble."""

    networks: dict[str, TrainedRun]
    encoder: Encoder
    data: Identity  # of the features that the networks were trained on

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that can be predicted."""
        return next(iter(self.networks.values())).classes

    def predict(
        self,
        inputs: Sequence[Path | str] | Path | str,
        window: float | None = None,
        stride: float | None = None,
        fps: float = 25.0,
        faces: str = AUTO,
        influence: Influence = "logit",
    ) -> list[VideoPrediction]:
        """Predictions for videos, folders of images, folders of these or lists, in their order.

        With ``window``, a sliding window of so many seconds, one every ``stride`` seconds (half of
        ``window`` if not given). ``fps`` is the rate of folders of images. ``faces`` is one of
        FACES; each person who is cut out of a video has a prediction. ``influence`` is the measure
        of how much a frame speaks for the label: logit, margin, probability, attention or
        attention_value (see ``influence_by``).
        """
        given = [inputs] if isinstance(inputs, str | Path) else inputs
        sources = find_sources(given)
        settings = self.settings(Sliding.of(window, stride), fps, faces=faces)
        stream = self.stream(sources, settings, influence)
        found = {number: [video for video, _ in rows] for number, rows in stream}
        return [video for number in sorted(found) for video in found[number]]

    def settings(
        self,
        sliding: Sliding | None = None,
        fps: float = 25.0,
        decode_seconds: float = 3600.0,
        workers: int | None = None,
        faces: str = AUTO,
    ) -> ReadSettings:
        """How to read videos so that their features are those that the networks know.

        ``auto`` faces are cropped as in training if they were cropped there. Raises RefusedError if
        the face detector is needed and not installed.
        """
        if faces == AUTO:
            faces = cropping_of(self.data.faces) or AUTO
        if faces != WHOLE_FRAMES:
            check_detector()
        kind, frames = self.encoder.device.type, self.data.frames
        batch = self.data.batch_frames if self.data.device == kind else None
        if not batch or batch > _BATCH_FRAMES_MAX:
            batch = suited_batch(frames, kind)
        return ReadSettings(frames, batch, sliding, fps, decode_seconds, workers, faces)

    def stream(
        self,
        sources: Sequence[Source],
        settings: ReadSettings,
        influence: Influence = "logit",
        on_frames: OnFrames = lambda done, total, note: None,
        stop: Stop | None = None,
    ) -> Iterator[tuple[int, list[Row]]]:
        """(number, its rows) of each source as soon as it is done, in any order.

        After a signal, ``stop``, only what has been read is predicted. Raises RefusedError for a
        measure of influence that a network does not have.
        """
        refuse_unmeasured(self.networks, influence)
        encoded = encode_sources(sources, self.encoder, settings, on_frames, stop)
        while group := list(_group(encoded)):
            yield from self._predict(group, influence)

    def pictures(self, rows: Sequence[Row]) -> list[NDArray[np.uint8]]:
        """The frames of each row's best window as the encoder saw them, [T, H, W, 3].

        The rows are those of one source. Where there are several windows it is decoded once more;
        raises BadVideoError if that is no longer possible.
        """
        known = [encoded.pictures_TCHW for _, encoded in rows]
        wanted = [
            (encoded, np.array([moment.frame for moment in best_window(video).frames], np.int32))
            for (video, encoded), pictures_TCHW in zip(rows, known, strict=True)
            if pictures_TCHW is None
        ]
        read = iter(read_pictures(wanted, self.encoder) if wanted else ())
        every = [next(read) if pictures_TCHW is None else pictures_TCHW for pictures_TCHW in known]
        return [pictures_TCHW.permute(0, 2, 3, 1).contiguous().numpy() for pictures_TCHW in every]

    def _predict(
        self, group: list[tuple[int, list[Encoded]]], influence: Influence
    ) -> Iterator[tuple[int, list[Row]]]:
        read = [(own.windows, own.features_NTD) for _, rows in group for own in rows]
        whole = [(w, f) for w, f in read if w is not None and f is not None]
        predicted = iter(predict_windows(self.networks, whole, influence) if whole else ())

        def say(own: Encoded) -> VideoPrediction:
            if own.windows is None:
                return failed(own.source.name, own.reason)
            faces = WHOLE_FRAMES if own.crop is None else own.crop.cropping
            said = next(predicted)
            return predict_video(own.source.name, own.flags, own.windows, said, faces)

        for number, rows in group:
            yield number, [(say(own), own) for own in rows]


def load_predictor(
    runs: Sequence[Path | str],
    encoder: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    other_code: bool = False,
) -> Predictor:
    """The networks of finished runs, given as their folders, or of bundles, with their encoder.

    ``encoder`` and ``pretrained`` name it as in extraction, where the runs' own name of it does not
    say where it is. ``precision`` is that of the features that the runs were trained on, where the
    kind of device is the same. Raises RefusedError for another encoder, or for runs of different
    encoders or classes.
    """
    paths = [Path(run) for run in runs]
    bundles = {path: read_bundle(path) for path in paths if path.is_file()}
    if not paths:
        raise RefusedError("no trained network given; name the folder of a run, or a bundle")
    checkpoints = [own for path in paths for own in read_trained(path, other_code)]
    with TemporaryDirectory() as scratch:
        for bundle in bundles.values():
            if encoder is None and bundle.unpack_encoder(Path(scratch)):
                encoder = f"{LOCAL_DIR}{scratch}"
        files = find_own_encoder(checkpoints[0], encoder, pretrained)
        predictor = assemble(checkpoints, files, device, precision)
    for bundle in bundles.values():
        bundle.check(predictor.networks)
    return predictor


def read_trained(path: Path, other_code: bool = False) -> list[Checkpoint]:
    """The networks of a bundle, or the one of a finished run; errors as in ``load_predictor``."""
    return (
        read_bundle(path).checkpoints() if path.is_file() else [read_checkpoint(path, other_code)]
    )


def assemble(
    checkpoints: Sequence[Checkpoint], files: EncoderFiles, device: str, precision: Precision
) -> Predictor:
    """Networks and their encoder, loaded; raises RefusedError if they do not belong together."""
    refuse_mixed(checkpoints)
    first = checkpoints[0]
    if files.segment > 1:
        raise RefusedError(
            f"{first.where}: encoder {files.name} makes one feature of {files.segment} frames, "
            "which predictions from videos do not support; extract a store, and use tgdfer evaluate"
        )
    loaded = Encoder(files, device, _precision(first.data, precision, device))
    if loaded.identity.text_sha256 != first.data.encoder.text_sha256:
        raise RefusedError(f"{first.where}: the encoder's text tower is another than in training")
    config = json.loads(loaded.text_config)
    networks = {
        own.name: own.load(loaded.text_weights, config, str(loaded.device)) for own in checkpoints
    }
    return Predictor(networks, loaded, first.data)


def find_own_encoder(
    checkpoint: Checkpoint, name: str | None = None, pretrained: str | None = None
) -> EncoderFiles:
    """The encoder whose features a network was trained on.

    Raises RefusedError if the one at hand is another, or if its name does not say where it is.
    """
    known = checkpoint.data.encoder
    if name is None and checkpoint.encoder is not None:
        name, pretrained = checkpoint.encoder_options
    elif name is None and known.name.startswith(LOCAL_DIR):
        raise RefusedError(
            f"{checkpoint.where} was trained on features of the encoder {known.name}; say where "
            "it is with --encoder local-dir:FOLDER"
        )
    files = find_encoder(name or known.name, pretrained).hashed_like(known)
    _refuse_other_encoder(checkpoint, files)
    return files


def refuse_mixed(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse networks that do not belong into one ensemble."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        rows = _differences(_needs(first), _needs(other))
        if rows:
            head = ("field", str(first.where), str(other.where))
            raise RefusedError(f"the networks differ:\n{side_by_side(rows, head)}")
    names = [own.name for own in checkpoints]
    if len(set(names)) < len(names):
        raise RefusedError(f"a run is given twice: {', '.join(names)}")


def _refuse_other_encoder(checkpoint: Checkpoint, files: EncoderFiles) -> None:
    known, given = _needs(checkpoint), flatten(files.preprocessing.model_dump(mode="json"))
    identity = files.identity
    given |= {name: getattr(identity, name) for name in ("weights_sha256", "activation", "dim")}
    given["evaluation_frames"] = EVALUATION_RULE
    rows = _differences({name: known[name] for name in given}, given)
    if rows:
        head = ("field", "trained with", f"encoder {files.name}")
        raise RefusedError(
            f"{checkpoint.where} was trained with another encoder:\n{side_by_side(rows, head)}\n"
            "name the encoder with --encoder, and its weights with --pretrained"
        )


def _needs(checkpoint: Checkpoint) -> dict[str, object]:
    """What the features of a network must be made by."""
    data = checkpoint.data
    needs = flatten(data.preprocessing.model_dump(mode="json"))
    needs |= {name: getattr(data.encoder, name) for name in ("activation", "dim")}
    needs["weights_sha256"] = checkpoint.weights_sha256(data.encoder.weights_sha256)
    needs |= {name: getattr(data, name) for name in ("frames", "evaluation_frames")}
    needs["faces"] = cropping_of(data.faces)
    return needs | {"classes": list(checkpoint.classes)}


def _differences(one: dict[str, object], other: dict[str, object]) -> list[tuple[str, str, str]]:
    return [(name, str(one[name]), str(other[name])) for name in one if one[name] != other[name]]


def _precision(data: Identity, asked: Precision, device: str) -> Precision:
    known = data.precision if device_kind(device) == data.device else None
    return parse_precision(known) if asked == "auto" and known else asked


def _group(
    encoded: Iterator[tuple[int, list[Encoded]]],
) -> Iterator[tuple[int, list[Encoded]]]:
    """Sources until they have enough windows to be predicted together."""
    windows = 0
    for number, rows in encoded:
        yield number, rows
        windows += sum(1 if own.windows is None else len(own.windows.start_N) for own in rows)
        if windows >= _TOGETHER:
            return
