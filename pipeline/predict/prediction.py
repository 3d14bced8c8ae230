"""Features of windows of videos and M networks -> the predictions of their ensemble."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cache.errors import RefusedError
from cache.identity import WHOLE_FRAMES, FrozenModel
from pipeline.evaluate.influence import Array, Influence, influence_by
from pipeline.evaluate.predictions import Predictions
from pipeline.predict.windows import Windows
from pipeline.train.trained import TrainedRun

_OF_LOGITS = ("logit", "margin", "attention_value")


class Moment(FrozenModel):
    """A frame that a window shows; its influence is None where no network used it."""

    frame: int  # index in the video
    seconds: float
    influence: float | None  # mean over networks, for the predicted class


class WindowPrediction(FrozenModel):
    """What was predicted for the seconds from ``start`` to ``end``."""

    start: float
    end: float
    label: str
    probabilities: dict[str, float]
    doubt: float | None
    logits: dict[str, tuple[float, ...]]  # of each network, in the order of the classes
    frames: tuple[Moment, ...]


class VideoPrediction(FrozenModel):
    """What was predicted for a video: the mean of its windows, or why there is nothing.

    Of an ``unfinished`` one, the command was stopped before.
    ``frames`` and ``seconds`` are those of the video, or of the part with the person.
    ``doubt`` is 0 if all networks say the same, 1 if each is sure of another class, None for one.
    """

    name: str
    status: Literal["ok", "failed", "unfinished"]
    reason: str = ""
    faces: str | None = None  # "whole" frames, or how one person was cut out of them
    label: str | None = None
    probabilities: dict[str, float] = Field(default_factory=dict)
    doubt: float | None = None
    frames: int = 0
    seconds: float = 0.0
    flags: tuple[str, ...] = ()
    windows: tuple[WindowPrediction, ...] = ()


def probabilities(logits_MNK: Array) -> Array:
    """Softmax over classes, [M, N, K]."""
    shifted = np.exp(logits_MNK - logits_MNK.max(-1, keepdims=True))
    normal: Array = shifted / shifted.sum(-1, keepdims=True)
    return normal


def disagreement(p_MNK: Array) -> Array:
    """How much M networks disagree, [N], from 0 to 1.

    The entropy of their mean minus the mean of their entropies (the generalised Jensen-Shannon
    divergence), divided by its largest possible value, log(min(M, K)).
    """
    networks, _, classes = p_MNK.shape
    divergence = _entropy(p_MNK.mean(0)) - _entropy(p_MNK).mean(0)
    share: Array = np.clip(divergence / np.log(min(networks, classes)), 0, 1)
    return share


def _entropy(p: Array) -> Array:
    logs = np.log(np.where(p > 0, p, 1))
    total: Array = -(p * logs).sum(-1)
    return total


def predict_windows(
    networks: Mapping[str, TrainedRun],
    videos: Sequence[tuple[Windows, NDArray[np.float16]]],
    kind: Influence = "logit",
) -> list[tuple[WindowPrediction, ...]]:
    """What the mean probability of named networks says of the windows of each video.

    A video has N windows and their features [N, T, D]; all videos are predicted in one call.
    ``kind`` is the measure of influence, as in ``influence_by``, of cosines instead of logits.
    """
    said = ask(networks, np.concatenate([features_NTD for _, features_NTD in videos]), kind)
    predicted, first = [], 0
    for windows, features_NTD in videos:
        count = len(features_NTD)
        predicted.append(tuple(said.window(windows, n, first + n) for n in range(count)))
        first += count
    return predicted


@dataclass(frozen=True)
class Said:
    """What the networks said of N windows."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    logits_MNK: Array
    p_NK: Array
    doubt_N: Array | None
    influence_NT: Array

    def window(self, windows: Windows, n: int, row: int) -> WindowPrediction:
        """Window n of a video, which is ``row`` of all."""
        logits_MK = self.logits_MNK[:, row].tolist()
        return WindowPrediction(
            start=round(float(windows.start_N[n]), 6),
            end=round(float(windows.end_N[n]), 6),
            label=self.classes[int(self.p_NK[row].argmax())],
            probabilities=_named(self.classes, self.p_NK[row]),
            doubt=None if self.doubt_N is None else float(self.doubt_N[row]),
            logits={name: tuple(own) for name, own in zip(self.names, logits_MK, strict=True)},
            frames=_moments(windows, n, self.influence_NT[row]),
        )


def refuse_unmeasured(networks: Mapping[str, TrainedRun], kind: Influence) -> None:
    """Refuse a measure of influence that one of the networks does not have, or nobody knows."""
    if kind not in get_args(Influence):
        raise RefusedError(f"influence {kind}: expected one of {', '.join(get_args(Influence))}")
    for name, network in networks.items():
        if kind.startswith("attention") and network.run.method.visual_prompt == "none":
            raise RefusedError(
                f"influence {kind} is the weight of a frame in the visual prompt, and network "
                f"{name} has none; choose logit, margin or probability"
            )


def ask(
    networks: Mapping[str, TrainedRun], features_NTD: NDArray[Any], kind: Influence = "logit"
) -> Said:
    """What the ensemble of named networks says of N windows of T frames."""
    said = [network.predict(features_NTD) for network in networks.values()]
    logits_MNK = np.stack([own.logits_NK for own in said]).astype(np.float64)
    p_MNK = probabilities(logits_MNK)
    p_NK = p_MNK.mean(0)
    runs, frames = list(networks.values()), features_NTD.shape[1]
    return Said(
        tuple(networks),
        runs[0].classes,
        logits_MNK,
        p_NK,
        disagreement(p_MNK) if len(runs) > 1 else None,
        _mean_influence(runs, said, p_NK.argmax(1), frames, kind),
    )


def predict_video(
    name: str,
    flags: tuple[str, ...],
    windows: Windows,
    predicted: Sequence[WindowPrediction],
    faces: str = WHOLE_FRAMES,
) -> VideoPrediction:
    """The prediction for a whole video: the mean probability of its windows."""
    classes = list(predicted[0].probabilities)
    mean_K = np.mean([list(own.probabilities.values()) for own in predicted], axis=0)
    doubts = [own.doubt for own in predicted if own.doubt is not None]
    return VideoPrediction(
        name=name,
        status="ok",
        faces=faces,
        label=classes[int(mean_K.argmax())],
        probabilities=_named(classes, mean_K),
        doubt=float(np.mean(doubts)) if doubts else None,
        frames=windows.count,
        seconds=round(windows.duration, 6),
        flags=flags,
        windows=tuple(predicted),
    )


def failed(name: str, reason: str) -> VideoPrediction:
    """What is said of a video that cannot be read."""
    return VideoPrediction(name=name, status="failed", reason=reason)


def unfinished(name: str) -> VideoPrediction:
    """What is said of a video that a signal kept from being predicted."""
    reason = "not predicted yet, since the command was stopped; run it again to go on"
    return VideoPrediction(name=name, status="unfinished", reason=reason)


def best_window(video: VideoPrediction) -> WindowPrediction:
    """The window that speaks most for the label of the video."""
    assert video.label is not None
    label = video.label
    return max(video.windows, key=lambda window: window.probabilities[label])


def scaled(window: WindowPrediction) -> Array:
    """The influence of its frames, scaled to [0, 1] (min-max, eq. 12), [T]; NaN where unused."""
    raw_T = np.array([np.nan if m.influence is None else m.influence for m in window.frames])
    low, high = np.nanmin(raw_T), np.nanmax(raw_T)
    if high == low:
        return np.where(np.isnan(raw_T), np.nan, 0.5)
    return (raw_T - low) / (high - low)


def _mean_influence(
    networks: Sequence[TrainedRun],
    said: Sequence[Predictions],
    label_N: NDArray[np.int64],
    frames: int,
    kind: Influence,
) -> Array:
    """[N, T]; networks may use different frames."""
    total_NT, count_T = np.zeros((len(label_N), frames)), np.zeros(frames)
    for network, own in zip(networks, said, strict=True):
        method = network.run.method
        chosen = list(method.input.chosen(frames))
        own_NT = influence_by(kind, own.frame_logits_NTK, own.attention_NTK, label_N)
        # Cosines are divided by the temperature, which networks need not share.
        scale = method.influence_scale if kind in _OF_LOGITS else 1.0
        total_NT[:, chosen] += scale * own_NT
        count_T[chosen] += 1
    mean_NT: Array = np.divide(
        total_NT, count_T, out=np.full_like(total_NT, np.nan), where=count_T > 0
    )
    return mean_NT


def _moments(windows: Windows, n: int, influence_T: Array) -> tuple[Moment, ...]:
    return tuple(
        Moment(
            frame=frame,
            seconds=round(float(windows.times_F[frame]), 6),
            influence=None if np.isnan(value) else round(value, 6),
        )
        for frame, value in zip(windows.frame_NT[n].tolist(), influence_T.tolist(), strict=True)
    )


def _named(classes: Sequence[str], p_K: Array) -> dict[str, float]:
    return dict(zip(classes, p_K.tolist(), strict=True))
