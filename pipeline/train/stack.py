"""Features of videos and R runs -> R trained networks with their test predictions.

The R runs share all that shapes their programs; they may differ in fold, seed, learning rates,
schedule, loss and views. So they train as one program: one network whose parameters have a run
axis, and one batch of R x B videos a step.
"""

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.store import Store
from pipeline.config import OptimiserConfig, Run, stack_key
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.metrics import confusion, uar, war
from pipeline.kernels.gather import gather
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.model.tgdfer import TGDFER
from pipeline.profile import stage
from pipeline.train.batches import epoch_batches
from pipeline.train.selection import better, hold_out
from pipeline.train.sgd import StackedSGD
from pipeline.train.step import Batch, ReplayedStep, cross_entropy

EVALUATION_VIDEOS = 256  # videos of each run in one evaluation batch; bounds memory only

Progress = Callable[[int], None]  # called with the number of epochs done since the last call


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
    predicted: "Predictions"  # of the test videos after that epoch, in their order
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
        load_text_tower(store.text_weights, store.text_config).to(device),
    )


def build_model(data: TrainingData, runs: Sequence[Run]) -> TGDFER:
    """The network of R runs, each drawn from its own seed."""
    store, method = data.store, runs[0].method
    return TGDFER(
        [torch.Generator().manual_seed(run.seed) for run in runs],
        data.tower,
        class_texts(store.classes),
        store.frames,
        store.dim,
        method.temporal,
        method.prompts,
        method.label,
        [run.method.label.temperature for run in runs],
    ).to(data.device)


def train_stack(
    data: TrainingData,
    runs: Sequence[Run],
    progress: Progress = lambda epochs: None,
    begun: "Sequence[RunState]" = (),
    keep: "Callable[[Stack], None]" = lambda stack: None,
) -> list[Outcome]:
    """Train ``runs``, which may differ in all that changes no shape, as one program.

    Goes on from the states in ``begun``, if there are any; ``keep`` is called after every epoch.
    Raises ValueError for runs that cannot be stacked.
    """
    stack = Stack(data, runs)
    if begun:
        stack.restore(begun)
        progress(stack.epoch)
    while stack.epoch < runs[0].method.optimiser.epochs:
        stack.train_epoch()
        progress(1)
        keep(stack)
    return [record.outcome() for record in stack.records]


@dataclass(frozen=True)
class RunState:
    """One run of a stack between two epochs: all that its further training depends on."""

    epoch: int  # epochs done
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # JSON


class Stack:
    """R runs in training: their network, optimiser, data orders and records after some epochs."""

    def __init__(self, data: TrainingData, runs: Sequence[Run]) -> None:
        if len({stack_key(run.method) for run in runs}) > 1:
            raise ValueError("runs of one stack must share all that shapes their programs")
        if runs[0].method.optimiser.lr_encoder and len(runs) > 1:
            raise ValueError("a trained encoder belongs to one run")
        self.data, self.runs = data, runs
        self.epoch = 0
        self._config = runs[0].method.optimiser  # for what all runs share
        self.splits = [_split(data, run) for run in runs]
        self.records = [_Record(data, *pair) for pair in zip(runs, self.splits, strict=True)]
        self.model = build_model(data, runs)
        self._orders = [
            np.random.default_rng([run.seed, zlib.crc32(run.fold.encode())]) for run in runs
        ]
        self._smoothing_R = self._of_runs(lambda config: config.label_smoothing)
        self._optimiser = self._make_optimiser()
        graphed = data.device.type == "cuda" and isinstance(data.features, CachedFeatures)
        self._step = ReplayedStep(self.step) if graphed else self.step

    def train_epoch(self) -> None:
        """One epoch of every run, and its evaluation."""
        loss_R = self._train()
        predictions = predict(self.data, self.model, [split.evaluated for split in self.splits])
        self.epoch += 1
        for r, record in enumerate(self.records):
            record.add(float(loss_R[r]), predictions[r], partial(state_of_run, self.model, r))

    def state(self, run: int) -> RunState:
        """What one run needs to go on; without the encoder, should that be trained too."""
        record = self.records[run]
        tensors = {
            f"{kind}/{name}": tensor.detach()[run].clone().cpu()
            for kind, own in (("parameter", self._learned()), ("velocity", self._velocities()))
            for name, tensor in own.items()
        }
        order = self._orders[run].bit_generator.state
        facts = {"order": order, "epochs": list(record.epochs), "best": record.best}
        return RunState(self.epoch, tensors | record.best_tensors(), facts)

    def restore(self, states: Sequence[RunState]) -> None:
        """Go on where ``states``, one a run and all after the same epoch, stopped."""
        (self.epoch,) = {state.epoch for state in states}
        with torch.no_grad():
            for r, state in enumerate(states):
                for name, parameter in self._learned().items():
                    parameter[r] = state.tensors[f"parameter/{name}"]
                for name, velocity in self._velocities().items():
                    velocity[r] = state.tensors[f"velocity/{name}"]
                self._orders[r].bit_generator.state = state.facts["order"]
                self.records[r].restore(state)

    def steps(self) -> list[Batch]:
        """The batches of the coming epoch, drawn anew from every run's data order."""
        batches = epoch_batches(
            [split.train for split in self.splits],
            self._config.batch,
            [self._views(run.method.optimiser) for run in self.runs],
            self._orders,
        )
        arrays = (batches.video_SRB, batches.view_SRB, batches.weight_SRB)
        tensors = [torch.from_numpy(array).to(self.data.device) for array in arrays]
        return [Batch(*step) for step in zip(*tensors, strict=True)]

    def step(self, batch: Batch, factor_R: Tensor, following: Batch | None = None) -> Tensor:
        """One step of all runs, perhaps in parts; summed loss of every run's videos, [R].

        ``factor_R`` multiplies the learning rates. What the ``following`` step begins with is
        prepared meanwhile.
        """
        size = self._config.micro_batch or self._config.batch
        parts = [batch.part(start, start + size) for start in range(0, self._config.batch, size)]
        after = following and following.part(0, size)
        count_R = batch.weight_RB.sum(1)
        total_R = torch.zeros_like(count_R)
        grads: list[Tensor | None] = [None] * len(self._optimiser.parameters)
        for part, coming in zip(parts, [*parts[1:], after], strict=True):
            with stage("gather"):
                features_RBTD = self.data.features(part.video_RB, part.view_RB)
                if coming:
                    self.data.features.prepare(coming.video_RB, coming.view_RB)
            with stage("forward"), self._products():
                logits_RBK = self.model(features_RBTD).logits_RBK
                labels_RB = self.data.labels_N[part.video_RB]
                loss_RB = cross_entropy(logits_RBK, labels_RB, self._smoothing_R)
                loss_R = (loss_RB * part.weight_RB).sum(1)
                # Runs are independent, so the gradient of the sum is each run's own gradient.
                mean = (loss_R / count_R.clamp(min=1)).sum()
            with stage("backward"):
                own = torch.autograd.grad(mean, self._optimiser.parameters, allow_unused=True)
                grads = [b if a is None else a + b for a, b in zip(grads, own, strict=True)]
            total_R = total_R + loss_R.detach()
        with stage("update"):
            self._optimiser.step(grads, count_R > 0, factor_R)
        return total_R

    def factors(self) -> Tensor:
        """Where every run's schedule stands: the factor of its learning rates, [R]."""
        return self._of_runs(
            lambda own: own.gamma ** sum(last <= self.epoch for last in own.milestones)
        )

    def _train(self) -> Tensor:
        """The steps of an epoch; mean loss of every run's videos, [R] on the host."""
        steps, factor_R = self.steps(), self.factors()
        total_R, count_R = torch.zeros_like(factor_R), torch.zeros_like(factor_R)
        for batch, following in zip(steps, [*steps[1:], None], strict=True):
            total_R += self._step(batch, factor_R, following)
            count_R += batch.weight_RB.sum(1)
        return (total_R / count_R).cpu()

    def _products(self) -> AbstractContextManager[object]:
        """Matrix products in bfloat16 where that is asked for; parameters stay in float32."""
        kind, precision = self.data.device.type, self._config.precision
        lower = precision == "bf16" or (precision == "auto" and kind == "cuda")
        # Nothing is cached: every weight is used once, and a captured graph must cast it anew.
        return torch.autocast(kind, torch.bfloat16, enabled=lower, cache_enabled=False)

    def _views(self, config: OptimiserConfig) -> int:
        if not config.augment:
            return 1
        return 1 + config.views if config.views else self.data.features.views

    def _make_optimiser(self) -> StackedSGD:
        lr_R = self._of_runs(lambda config: config.lr)
        lr_prompts_R = self._of_runs(lambda config: config.lr_prompts)
        parameters = list(self._learned().values())
        prompts = ("fine.", "coarse.")
        lrs_R = [lr_prompts_R if name.startswith(prompts) else lr_R for name in self._learned()]
        if self._config.lr_encoder:
            encoder = self.data.features.parameters()
            parameters += encoder
            lrs_R += [self._of_runs(lambda config: config.lr_encoder)] * len(encoder)
        return StackedSGD(
            parameters,
            lrs_R,
            self._of_runs(lambda config: config.momentum),
            self._of_runs(lambda config: config.weight_decay),
        )

    def _learned(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _velocities(self) -> dict[str, Tensor]:
        # The encoder's parameters, if there are any, come last.
        return dict(zip(self._learned(), self._optimiser.velocities, strict=False))

    def _of_runs(self, value: Callable[[OptimiserConfig], float]) -> Tensor:
        values = [value(run.method.optimiser) for run in self.runs]
        return torch.tensor(values, device=self.data.device)


@dataclass(frozen=True)
class _Split:
    """Rows of the store that one run trains on, validates on (maybe none) and is tested on."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]

    @property
    def evaluated(self) -> NDArray[np.int64]:
        return np.concatenate([self.test, self.val])


class _Record:
    """Gathers the epochs of one run and keeps what the selection rule will report."""

    def __init__(self, data: TrainingData, run: Run, split: _Split) -> None:
        self.data, self.run, self.split = data, run, split
        self.epochs: list[dict[str, float]] = []
        self.best = -1
        self.predicted: Predictions | None = None
        self.state: dict[str, Tensor] = {}
        self.encoder_files: dict[str, bytes] = {}

    def add(self, loss: float, predicted: "Predictions", state: Callable[[], Any]) -> None:
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
            self.state = state()
            self.encoder_files = self.data.features.encoder_files()

    def best_tensors(self) -> dict[str, Tensor]:
        """The best epoch so far, for a RunState."""
        if self.predicted is None:
            return {}
        arrays = {f"predicted/{name}": array for name, array in vars(self.predicted).items()}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensors | {f"best/{name}": tensor for name, tensor in self.state.items()}

    def restore(self, state: RunState) -> None:
        self.epochs, self.best = list(state.facts["epochs"]), state.facts["best"]
        if self.best >= 0:
            arrays = {n: t.numpy() for n, t in _under("predicted/", state.tensors).items()}
            self.predicted = Predictions(**arrays)
            self.state = _under("best/", state.tensors)

    def outcome(self) -> Outcome:
        assert self.predicted is not None
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
class Predictions:
    """What a network says of N videos; attention is NaN where there is no visual prompt."""

    logits_NK: NDArray[np.float32]
    frame_logits_NTK: NDArray[np.float32]
    attention_NTK: NDArray[np.float32]

    def first(self, count: int) -> "Predictions":
        """The first ``count`` videos."""
        return Predictions(
            self.logits_NK[:count], self.frame_logits_NTK[:count], self.attention_NTK[:count]
        )


def predict(
    data: TrainingData, model: TGDFER, rows: Sequence[NDArray[np.int64]]
) -> list[Predictions]:
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
    return [Predictions(*(array[r, : len(own)] for array in arrays)) for r, own in enumerate(rows)]


def state_of_run(model: TGDFER, run: int) -> dict[str, Tensor]:
    """The learned parameters of one run of a stack, without the run axis."""
    return {
        name: parameter.detach()[run].clone().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _split(data: TrainingData, run: Run) -> _Split:
    store, selection = data.store, run.method.selection
    train, test = next((train, test) for name, train, test in store.folds if name == run.fold)
    train, test = train[data.usable_N[train]], test[data.usable_N[test]]
    if selection.rule != "best_on_val":
        return _Split(train, train[:0], test)
    share = selection.validation_share
    left, held = hold_out(train, store.labels, store.subjects, share, run.seed)
    return _Split(left, held, test)
