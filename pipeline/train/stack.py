"""Features of videos and R runs -> R trained networks with their test predictions.

The R runs share everything that shapes their program, and may differ in fold, seed, learning rates,
schedule, loss and views. They train as one program: one network whose parameters have a run axis,
and one batch of R x B videos per step.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.config import OptimiserConfig, Run, stack_key
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.predictions import Predictions, predict
from pipeline.model.tgdfer import TGDFER
from pipeline.profile import stage
from pipeline.train.batches import epoch_batches
from pipeline.train.features import CachedFeatures, TrainingData
from pipeline.train.selection import History, Outcome, SelectedEpoch
from pipeline.train.sgd import StackedSGD
from pipeline.train.split import split_of
from pipeline.train.state import BEGINS_AGAIN, RunState, StateError
from pipeline.train.step import Batch, ReplayedStep, cross_entropy


def train_stack(
    data: TrainingData,
    runs: Sequence[Run],
    on_epochs: Callable[[int], None] = lambda epochs: None,
    states: Sequence[RunState] = (),
    keep: "Callable[[Stack], None]" = lambda stack: None,
) -> list[Outcome]:
    """Train ``runs``, which may differ in anything that changes no shape, as one program.

    Resumes from the states in ``states``, if any. ``on_epochs`` gets the number of epochs done
    since its last call; ``keep`` is called after every epoch. Raises ValueError for runs that
    cannot be stacked.
    """
    stack = Stack(data, runs)
    if states:
        stack.restore(states)
        on_epochs(stack.epoch)
    while stack.epoch < runs[0].method.optimiser.epochs:
        stack.train_epoch()
        on_epochs(1)
        keep(stack)
    return [history.outcome() for history in stack.histories]


class Stack:
    """R runs in training: their network, optimiser, data orders and epochs so far."""

    def __init__(self, data: TrainingData, runs: Sequence[Run]) -> None:
        if len({stack_key(run.method) for run in runs}) > 1:
            raise ValueError("the runs of a stack must share everything that shapes their program")
        if runs[0].method.optimiser.lr_encoder and len(runs) > 1:
            raise ValueError("runs that train the encoder cannot be stacked")
        self.data, self.runs = data, runs
        self._config = runs[0].method.optimiser  # for settings that all runs share
        self.histories = [History(data, run, split_of(data, run)) for run in runs]
        self.model = build_model(data, runs)
        self._generators = [
            np.random.default_rng([run.seed, zlib.crc32(run.fold.encode())]) for run in runs
        ]
        self._smoothing_R = self._of_runs(lambda config: config.label_smoothing)
        self._optimiser = self._make_optimiser()
        graphed = data.device.type == "cuda" and isinstance(data.features, CachedFeatures)
        self._replayed = ReplayedStep(data.device) if graphed else None

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.histories[0].epochs)

    def train_epoch(self) -> None:
        """Train every run for one epoch and evaluate it."""
        loss_R = self._train()
        rows = [history.split.evaluation_rows for history in self.histories]
        predictions = predict(self.model, self.data.features, rows)
        for r, history in enumerate(self.histories):
            history.add(float(loss_R[r]), predictions[r], partial(parameters_of, self.model, r))

    def state(self, run: int) -> RunState:
        """What one run needs to resume; does not include a trained encoder."""
        history = self.histories[run]
        return RunState(
            generator=dict(self._generators[run].bit_generator.state),
            epochs=list(history.epochs),
            best=history.best,
            parameters=parameters_of(self.model, run),
            velocities=_of_run(self._velocities(), run),
            selected=history.selected,
        )

    def restore(self, states: Sequence[RunState]) -> None:
        """Resume from ``states``, one per run and all after the same epoch.

        Raises StateError for a state of another network, other videos or more epochs.
        """
        for r, state in enumerate(states):
            if not self._fits(r, state):
                run = self.runs[r]
                raise StateError(
                    f"the state of fold {run.fold}, seed {run.seed} does not fit it: {BEGINS_AGAIN}"
                )
        with torch.no_grad():
            for r, state in enumerate(states):
                for name, parameter in learned_parameters(self.model).items():
                    parameter[r] = state.parameters[name]
                for name, velocity in self._velocities().items():
                    velocity[r] = state.velocities[name]
                self._generators[r].bit_generator.state = state.generator
                history = self.histories[r]
                history.epochs, history.best = list(state.epochs), state.best
                history.selected = state.selected

    def _fits(self, run: int, state: RunState) -> bool:
        """Whether training could have left ``state``."""
        own, split, store = self.state(run), self.histories[run].split, self.data.store
        selected = None
        if state.selected is not None:
            logits_NK = np.zeros((len(split.test), len(store.classes)), np.float32)
            frames_NTK = np.repeat(logits_NK[:, None], store.frames, 1)
            said = Predictions(logits_NK, frames_NTK, frames_NTK)
            selected = SelectedEpoch(said, own.parameters)
        parts = ("test", "val") if len(split.val) else ("test",)
        metrics = {f"{part}_{metric}" for part in parts for metric in ("uar", "war")}
        ended = state.epoch >= self.runs[run].method.optimiser.epochs
        return (
            state.layout() == replace(own, selected=selected).layout()
            and all(epoch.keys() == {"epoch", "train_loss", *metrics} for epoch in state.epochs)
            and state.epoch <= self.runs[run].method.optimiser.epochs
            and not (ended and selected is None)
        )

    def steps(self) -> list[Batch]:
        """The batches of the next epoch, newly drawn in each run's data order."""
        batches = epoch_batches(
            [history.split.train for history in self.histories],
            self._config.batch,
            [self._views(run.method.optimiser) for run in self.runs],
            self._generators,
        )
        arrays = (batches.video_SRB, batches.view_SRB, batches.weight_SRB)
        tensors = [torch.from_numpy(array).to(self.data.device) for array in arrays]
        return [Batch(*step) for step in zip(*tensors, strict=True)]

    def step(self, batch: Batch, factor_R: Tensor, following: Batch | None = None) -> Tensor:
        """One step of all runs, in micro-batches if configured; each run's summed loss, [R].

        ``factor_R`` multiplies the learning rates. The first features of the ``following`` step
        are prepared meanwhile.
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
        """The factor by which each run's schedule multiplies its learning rates now, [R]."""
        return self._of_runs(
            lambda own: own.gamma ** sum(last <= self.epoch for last in own.decays())
        )

    def _train(self) -> Tensor:
        """The steps of an epoch; each run's mean loss per video, [R] on the host."""
        steps, factor_R = self.steps(), self.factors()
        total_R, count_R = torch.zeros_like(factor_R), torch.zeros_like(factor_R)
        for batch, following in zip(steps, [*steps[1:], None], strict=True):
            if self._replayed is None:
                total_R += self.step(batch, factor_R, following)
            else:
                total_R += self._replayed(self.step, batch, factor_R)
            count_R += batch.weight_RB.sum(1)
        return (total_R / count_R).cpu()

    def _products(self) -> AbstractContextManager[object]:
        """Matrix products in bfloat16 if configured; parameters stay in float32."""
        kind = self.data.device.type
        lower = self._config.resolved_precision(kind) == "bf16"
        # No cache: each weight is used once, and a captured graph must cast it every time.
        return torch.autocast(kind, torch.bfloat16, enabled=lower, cache_enabled=False)

    def _views(self, config: OptimiserConfig) -> int:
        if not config.augment:
            return 1
        return 1 + config.views if config.views else self.data.features.views

    def _make_optimiser(self) -> StackedSGD:
        lr_R = self._of_runs(lambda config: config.lr)
        lr_prompts_R = self._of_runs(lambda config: config.lr_prompts)
        learned = learned_parameters(self.model)
        parameters = list(learned.values())
        prompts = ("fine.", "coarse.")
        lrs_R = [lr_prompts_R if name.startswith(prompts) else lr_R for name in learned]
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

    def _velocities(self) -> dict[str, Tensor]:
        # The encoder's parameters, if any, come last.
        return dict(zip(learned_parameters(self.model), self._optimiser.velocities, strict=False))

    def _of_runs(self, value: Callable[[OptimiserConfig], float]) -> Tensor:
        values = [value(run.method.optimiser) for run in self.runs]
        return torch.tensor(values, device=self.data.device)


def build_model(data: TrainingData, runs: Sequence[Run]) -> TGDFER:
    """The network of R runs, each initialised from its own seed."""
    return TGDFER(
        [torch.Generator().manual_seed(run.seed) for run in runs],
        data.tower,
        class_texts(data.store.classes),
        data.store.frames,
        [run.method for run in runs],
    ).to(data.device)


def parameters_of(model: TGDFER, run: int) -> dict[str, Tensor]:
    """The learned parameters of one run of a stack, without the run axis."""
    return _of_run(learned_parameters(model), run)


def learned_parameters(model: TGDFER) -> dict[str, Tensor]:
    """The trained parameters, with the run axis."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _of_run(tensors: Mapping[str, Tensor], run: int) -> dict[str, Tensor]:
    return {name: tensor.detach()[run].clone().cpu() for name, tensor in tensors.items()}
