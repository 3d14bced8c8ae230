"""Features of videos and R runs of one method -> R trained networks with their test predictions.

The R runs (folds, seeds) share shapes and settings, so they train as one program: one network whose
parameters have a run axis, and one batch of R x B videos a step.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cache.store import Store
from pipeline.kernels.gather import gather
from pipeline.model.prompts import class_texts
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.model.tgdfer import TGDFER
from pipeline.report.metrics import confusion, uar, war
from pipeline.train.batches import epoch_batches
from pipeline.train.config import MethodConfig, OptimiserConfig, Run
from pipeline.train.selection import better, hold_out
from pipeline.train.sgd import StackedSGD

EVALUATION_VIDEOS = 256  # videos of each run in one evaluation batch; bounds memory only

Progress = Callable[[int], None]  # called with the number of epochs done


class Features(Protocol):
    """Where the batches get their features from."""

    @property
    def views(self) -> int:
        """View 0 is the test view, views 1 to views - 1 are augmented."""

    def __call__(self, video_RB: Tensor, view_RB: Tensor) -> Tensor:
        """Features of the given rows and views, float32 [R, B, T, D]."""

    def prepare(self, video_RB: Tensor, view_RB: Tensor) -> None:
        """Told what the next call will ask for, while this step computes."""

    def parameters(self) -> list[Tensor]:
        """What can be trained of the encoder; it has no run axis."""

    def encoder_files(self) -> dict[str, bytes]:
        """The encoder as it is now, in open_clip's ``local-dir`` format; empty if frozen."""


@dataclass(frozen=True)
class CachedFeatures:
    """A store's features in the memory of the device that trains."""

    features_NVTD: Tensor  # float16

    @property
    def views(self) -> int:
        return self.features_NVTD.shape[1]

    def __call__(self, video_RB: Tensor, view_RB: Tensor) -> Tensor:
        return gather(self.features_NVTD, video_RB, view_RB)

    def prepare(self, video_RB: Tensor, view_RB: Tensor) -> None:
        pass

    def parameters(self) -> list[Tensor]:
        return []

    def encoder_files(self) -> dict[str, bytes]:
        return {}


@dataclass(frozen=True)
class TrainingData:
    """Videos to train on, as a store describes them, and the source of their features."""

    store: Store
    features: Features
    labels_N: Tensor
    usable_N: NDArray[np.bool_]  # False for videos without features
    tower: TextTower

    @property
    def device(self) -> torch.device:
        """Where training happens."""
        return self.labels_N.device


@dataclass(frozen=True)
class Outcome:
    """What one run leaves behind."""

    run: Run
    epochs: list[dict[str, float]]
    train_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    epoch: int  # the one that is reported, counted from 1
    predicted: "Predicted"  # of the test videos after that epoch, in their order
    state: dict[str, Tensor]  # the run's own parameters after that epoch, without the run axis
    encoder_files: dict[str, bytes]  # the encoder after that epoch, if it was trained

    @property
    def diverged(self) -> bool:
        """Whether the network no longer gives numbers."""
        return not bool(np.isfinite(self.predicted.logits_NK).all())


def load_training_data(store: Store, device: torch.device) -> TrainingData:
    """Read the whole store to ``device`` once; nothing reads it again during training."""
    return TrainingData(
        store,
        CachedFeatures(torch.from_numpy(store.load_features()).to(device)),
        torch.from_numpy(store.labels).to(device),
        np.array([video_id not in store.missing for video_id in store.ids]),
        load_text_tower(store.text_tower_path, store.text_config).to(device),
    )


def build_model(data: TrainingData, method: MethodConfig, seeds: Sequence[int]) -> TGDFER:
    """The network of R runs, run r drawn from ``seeds[r]``."""
    store = data.store
    return TGDFER(
        [torch.Generator().manual_seed(seed) for seed in seeds],
        data.tower,
        class_texts(store.classes),
        store.frames,
        store.dim,
        method.temporal,
        method.prompts,
        method.label,
    ).to(data.device)


def train_stack(
    data: TrainingData, runs: Sequence[Run], progress: Progress = lambda epochs: None
) -> list[Outcome]:
    """Train ``runs``, which differ by fold and seed only, as one program.

    Raises ValueError for runs of different methods.
    """
    method = runs[0].method
    if any(run.method != method for run in runs):
        raise ValueError("runs of one stack must share their method")
    if method.optimiser.lr_encoder and len(runs) > 1:
        raise ValueError("a trained encoder belongs to one run")
    splits = [_split(data, run) for run in runs]
    model = build_model(data, method, [run.seed for run in runs])
    optimiser = _optimiser(model, data.features, method.optimiser)
    generators = [_data_order(run) for run in runs]
    outcomes = [_Recorder(data, run, split) for run, split in zip(runs, splits, strict=True)]
    for epoch in range(method.optimiser.epochs):
        factor = method.optimiser.gamma ** sum(m <= epoch for m in method.optimiser.milestones)
        train = [split.train for split in splits]
        loss_R = _train_epoch(data, model, optimiser, train, generators, method, factor)
        predictions = predict(data, model, [split.evaluated for split in splits])
        for r, recorder in enumerate(outcomes):
            recorder.add(float(loss_R[r]), predictions[r], model, r)
        progress(epoch + 1)
    return [recorder.outcome() for recorder in outcomes]


@dataclass(frozen=True)
class _Split:
    """Rows of the store that one run trains on, validates on (maybe none) and is tested on."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def evaluated(self) -> NDArray[np.int64]:
        return np.concatenate([self.test, self.val])


class _Recorder:
    """Gathers the epochs of one run and keeps what the selection rule will report."""

    def __init__(self, data: TrainingData, run: Run, split: _Split) -> None:
        self.data, self.run, self.split = data, run, split
        self.epochs: list[dict[str, float]] = []
        self.best = -1

    def add(self, loss: float, predicted: "Predicted", model: TGDFER, run: int) -> None:
        tests = len(self.split.test)
        row = {"epoch": len(self.epochs) + 1, "train_loss": loss}
        row |= self._metrics("test", self.split.test, predicted.logits_NK[:tests])
        if len(self.split.val):
            row |= self._metrics("val", self.split.val, predicted.logits_NK[tests:])
        self.epochs.append(row)
        best = self.epochs[self.best] if self.best >= 0 else None
        method = self.run.method
        ended = len(self.epochs) == method.optimiser.epochs
        if method.selection.rule == "last" and not ended:
            return
        if better(method.selection, row, best):
            self.best = len(self.epochs) - 1
            self.predicted = predicted.first(tests)
            self.state = state_of_run(model, run)
            self.encoder_files = self.data.features.encoder_files()

    def outcome(self) -> Outcome:
        return Outcome(
            run=self.run,
            epochs=self.epochs,
            train_rows=self.split.train,
            test_rows=self.split.test,
            epoch=self.best + 1,
            predicted=self.predicted,
            state=self.state,
            encoder_files=self.encoder_files,
        )

    def _metrics(
        self, part: str, rows: NDArray[np.int64], logits_NK: NDArray[np.float32]
    ) -> dict[str, float]:
        store = self.data.store
        counts = confusion(store.labels[rows], logits_NK.argmax(1), len(store.classes))
        return {f"{part}_uar": float(uar(counts)), f"{part}_war": float(war(counts))}


@dataclass(frozen=True)
class Predicted:
    """What a network says of N videos; attention is NaN where there is no visual prompt."""

    logits_NK: NDArray[np.float32]
    frame_logits_NTK: NDArray[np.float32]
    attention_NTK: NDArray[np.float32]

    def first(self, count: int) -> "Predicted":
        """The first ``count`` videos."""
        return Predicted(
            self.logits_NK[:count], self.frame_logits_NTK[:count], self.attention_NTK[:count]
        )


def predict(
    data: TrainingData, model: TGDFER, rows: Sequence[NDArray[np.int64]]
) -> list[Predicted]:
    """What every run says of its own ``rows``, from the test view."""
    longest = max(len(own) for own in rows)
    padded_RN = np.stack([np.resize(own, longest) for own in rows])
    parts = []
    with torch.no_grad():
        for start in range(0, longest, EVALUATION_VIDEOS):
            index_RB = torch.from_numpy(padded_RN[:, start : start + EVALUATION_VIDEOS])
            index_RB = index_RB.to(data.device)
            out = model(data.features(index_RB, torch.zeros_like(index_RB)))
            attention_RBTK = out.attention_RBTK
            if attention_RBTK is None:
                attention_RBTK = torch.full_like(out.frame_logits_RBTK, float("nan"))
            parts.append((out.logits_RBK, out.frame_logits_RBTK, attention_RBTK))
    arrays = [torch.cat(same, dim=1).cpu().numpy() for same in zip(*parts, strict=True)]
    return [Predicted(*(array[r, : len(own)] for array in arrays)) for r, own in enumerate(rows)]


def state_of_run(model: TGDFER, run: int) -> dict[str, Tensor]:
    """The learned parameters of one run of a stack, without the run axis."""
    return {
        name: parameter.detach()[run].clone().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _train_epoch(
    data: TrainingData,
    model: TGDFER,
    optimiser: StackedSGD,
    train: Sequence[NDArray[np.int64]],
    generators: Sequence[np.random.Generator],
    method: MethodConfig,
    factor: float,
) -> Tensor:
    config = method.optimiser
    views = 1 + config.views if config.views else data.features.views
    batches = epoch_batches(train, config.batch, views if config.augment else 1, generators)
    video_SRB = torch.from_numpy(batches.video_SRB).to(data.device)
    view_SRB = torch.from_numpy(batches.view_SRB).to(data.device)
    weight_SRB = torch.from_numpy(batches.weight_SRB).to(data.device)
    total_R = torch.zeros(len(train), device=data.device)
    size = config.micro_batch or config.batch
    parts = [
        (step, slice(start, start + size))
        for step in range(len(video_SRB))
        for start in range(0, config.batch, size)
    ]
    for (step, part), following in zip(parts, [*parts[1:], None], strict=True):
        features_RBTD = data.features(video_SRB[step][:, part], view_SRB[step][:, part])
        if following:
            after, its = following
            data.features.prepare(video_SRB[after][:, its], view_SRB[after][:, its])
        labels_RB = data.labels_N[video_SRB[step][:, part]]
        loss_RB = _cross_entropy(model(features_RBTD).logits_RBK, labels_RB, config.label_smoothing)
        loss_R = (loss_RB * weight_SRB[step][:, part]).sum(1)
        # Runs are independent, so the gradient of the sum is each run's own gradient.
        count_R = weight_SRB[step].sum(1)
        (loss_R / count_R.clamp(min=1)).sum().backward()
        total_R += loss_R.detach()
        if following is None or following[0] != step:
            optimiser.step(count_R > 0, factor)
    return (total_R / weight_SRB.sum((0, 2))).cpu()


def _cross_entropy(logits_RBK: Tensor, labels_RB: Tensor, smoothing: float) -> Tensor:
    flat = F.cross_entropy(
        logits_RBK.flatten(0, 1), labels_RB.flatten(), reduction="none", label_smoothing=smoothing
    )
    return flat.view_as(labels_RB)


def _split(data: TrainingData, run: Run) -> _Split:
    store, selection = data.store, run.method.selection
    train, test = next((train, test) for name, train, test in store.folds if name == run.fold)
    train, test = train[data.usable_N[train]], test[data.usable_N[test]]
    if selection.rule != "best_on_val":
        return _Split(train, train[:0], test)
    share = selection.validation_share
    left, held = hold_out(train, store.labels, store.subjects, share, run.seed)
    return _Split(left, held, test)


def _optimiser(model: TGDFER, features: Features, config: OptimiserConfig) -> StackedSGD:
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    prompts = ("fine.", "coarse.")
    lrs = [config.lr_prompts if name.startswith(prompts) else config.lr for name, _ in learned]
    parameters: list[Tensor] = [p for _, p in learned]
    if config.lr_encoder:
        parameters += features.parameters()
        lrs += [config.lr_encoder] * len(features.parameters())
    return StackedSGD(parameters, lrs, config.momentum, config.weight_decay)


def _data_order(run: Run) -> np.random.Generator:
    return np.random.default_rng([run.seed, zlib.crc32(run.fold.encode())])
