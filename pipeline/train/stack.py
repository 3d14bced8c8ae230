"""Features of videos and R runs -> R trained networks with their test predictions.

The R runs share everything that shapes their program, and may differ in fold, seed, learning rates,
schedule, loss and views. They train as one program: one network whose parameters have a run axis,
and one batch of R x B videos per step.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import OptimiserConfig, Run, stack_key
from pipeline.datasets.texts import class_texts
from pipeline.evaluate.metrics import Rows
from pipeline.evaluate.predictions import EVALUATION_VIDEOS, Predictions, predict
from pipeline.model.heads.choose import build_network
from pipeline.model.network import Network, NetworkSpec, Output
from pipeline.profile import stage
from pipeline.train.average import WeightAverage, epoch_share, step_shares
from pipeline.train.batches import EpochBatches, Pairs, epoch_batches, mixed_pairs
from pipeline.train.features import CachedFeatures, TrainingData
from pipeline.train.imbalance import (
    class_counts,
    draw_chances,
    logit_shifts,
    loss_weights,
    prompt_rates,
)
from pipeline.train.optimisers import StackedAdamW, StackedSGD
from pipeline.train.schedule import rate_factors
from pipeline.train.selection import History, Outcome, SelectedEpoch
from pipeline.train.split import split_of
from pipeline.train.state import BEGINS_AGAIN, RunState, StateError
from pipeline.train.step import Batch, ReplayedStep, cross_entropy, intensity_aware


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
        if self.model.input.needs_statistics:
            for r, history in enumerate(self.histories):
                parts = map(self.model.choose, _frames(data, history.split.train))
                self.model.input.fit(r, parts)
        self._generators = [
            np.random.default_rng([run.seed, zlib.crc32(run.fold.encode())]) for run in runs
        ]
        self._by_votes_R = self._of_runs(lambda config: config.target == "votes").long()
        self._smoothing_R = self._of_runs(lambda config: config.label_smoothing)
        self._weight_RK = self._of_classes(loss_weights)
        self._shift_RK = self._of_classes(logit_shifts)
        self._gamma_R = self._of_loss("focal", lambda config: config.focal_gamma)
        self._intensity_R = self._of_loss("intensity_aware", lambda config: config.intensity)
        self._mixes = self._config.mixup > 0
        labels = [data.store.labels[history.split.train] for history in self.histories]
        self._chances = [
            draw_chances(run.method.optimiser, own) for run, own in zip(runs, labels, strict=True)
        ]
        self._optimiser = self._make_optimiser()
        self._averaged = [run.method.optimiser.average != "none" for run in runs]
        learned = list(learned_parameters(self.model).values())
        self._average = WeightAverage(learned) if any(self._averaged) else None
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
        with self._evaluated():
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
            moments=_of_run(self._moments(run), run),
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
                for name, kept in self.model.kept().items():
                    kept[r] = state.parameters[name]
                for name, moment in self._moments(r).items():
                    moment[r] = state.moments[name]
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
            frames_NTK = np.repeat(logits_NK[:, None], len(self.model.chosen_T), 1)
            said = Predictions(logits_NK, frames_NTK, frames_NTK)
            selected = SelectedEpoch(said, own.parameters)
        tested_on = self.runs[run].method.selection.tested_on
        parts = (tested_on, "val") if len(split.val) else (tested_on,)
        metrics = {f"{part}_{metric}" for part in parts for metric in ("uar", "war")}
        ended = state.epoch >= self.runs[run].method.optimiser.epochs
        return (
            state.layout() == replace(own, selected=selected).layout()
            and all(epoch.keys() == {"epoch", "train_loss", *metrics} for epoch in state.epochs)
            and state.epoch <= self.runs[run].method.optimiser.epochs
            and not (ended and selected is None)
        )

    def steps(self) -> list[Batch]:
        """The steps of the next epoch, newly drawn in each run's data order."""
        batches = epoch_batches(
            [history.split.train for history in self.histories],
            self._config.batch,
            [self._views(run.method.optimiser) for run in self.runs],
            self._generators,
            self._chances,
        )
        pairs = self._pairs(batches)
        of_videos = (batches.video_SRB, batches.view_SRB, batches.weight_SRB)
        of_pairs = (pairs.video_SRB, pairs.view_SRB, pairs.share_SRB)
        arrays = (*of_videos, *of_pairs, *self._of_steps(len(batches.video_SRB)))
        tensors = [torch.from_numpy(array).to(self.data.device) for array in arrays]
        return [Batch(*step) for step in zip(*tensors, strict=True)]

    def step(self, batch: Batch, following: Batch | None = None) -> Tensor:
        """One step of all runs, in micro-batches if configured; each run's summed loss, [R].

        The first features of the ``following`` step are prepared meanwhile.
        """
        size = self._config.micro_batch or self._config.batch
        parts = [batch.part(start, start + size) for start in range(0, self._config.batch, size)]
        after = following and following.part(0, size)
        count_R = batch.weight_RB.sum(1)
        total_R = torch.zeros_like(count_R)
        grads: list[Tensor | None] = [None] * len(self._optimiser.parameters)
        for part, coming in zip(parts, [*parts[1:], after], strict=True):
            with stage("gather"):
                features_RBTD, target_RBK = self._inputs(part)
                if coming:
                    self.data.features.prepare(coming.video_RB, coming.view_RB)
            with stage("forward"), self._products(), self.model.dropping(part.key_R):
                loss_RB = self._loss(self.model(features_RBTD), target_RBK)
                loss_R = (loss_RB * part.weight_RB).sum(1)
                # Runs are independent, so the gradient of the sum is each run's own gradient.
                mean = (loss_R / count_R.clamp(min=1)).sum()
            with stage("backward"):
                own = torch.autograd.grad(mean, self._optimiser.parameters, allow_unused=True)
                grads = [b if a is None else a + b for a, b in zip(grads, own, strict=True)]
            total_R = total_R + loss_R.detach()
        with stage("update"):
            self._optimiser.step(grads, count_R > 0, batch.factor_R)
            if self._average is not None:
                self._average.update(batch.share_R)
        return total_R

    def _inputs(self, part: Batch) -> tuple[Tensor, Tensor]:
        """Features and shares of the classes of a batch, mixed if that is asked for."""
        features_RBTD = self.data.features(part.video_RB, part.view_RB)
        target_RBK = self._targets(part.video_RB)
        if not self._mixes:
            return features_RBTD, target_RBK
        other_RBTD = self.data.features(part.other_RB, part.other_view_RB)
        share_RB1 = part.mixed_RB[..., None].to(features_RBTD.dtype)
        mixed_RBTD = torch.lerp(features_RBTD, other_RBTD, share_RB1[..., None])
        return mixed_RBTD, torch.lerp(target_RBK, self._targets(part.other_RB), share_RB1)

    def _targets(self, video_RB: Tensor) -> Tensor:
        return self.data.targets_2NK[self._by_votes_R[:, None], video_RB]

    def _loss(self, out: Output, target_RBK: Tensor) -> Tensor:
        """Each video's loss, [R, B]."""
        of_classes = self._weight_RK, self._shift_RK, self._gamma_R
        loss_RB = cross_entropy(out.logits_RBK, target_RBK, self._smoothing_R, *of_classes)
        if self._intensity_R is not None:
            aware_RB = intensity_aware(out.logits_RBK, target_RBK)
            loss_RB = loss_RB + self._intensity_R[:, None] * aware_RB
        return loss_RB if out.penalty_RB is None else loss_RB + out.penalty_RB

    def _pairs(self, batches: EpochBatches) -> Pairs:
        """Drawn anew in every epoch, and apart from the order of the videos."""
        generators = [
            np.random.default_rng([run.seed, zlib.crc32(run.fold.encode()), 1 + self.epoch])
            for run in self.runs
        ]
        alphas = [run.method.optimiser.mixup for run in self.runs]
        return mixed_pairs(batches, alphas, generators)

    def _train(self) -> Tensor:
        """The steps of an epoch; each run's mean loss per video, [R] on the host."""
        steps = self.steps()
        total_R, count_R = torch.zeros(2, len(self.runs), device=self.data.device)
        for batch, following in zip(steps, [*steps[1:], None], strict=True):
            if self._replayed is None:
                total_R += self.step(batch, following)
            else:
                total_R += self._replayed(self.step, batch)
            count_R += batch.weight_RB.sum(1)
        return (total_R / count_R).cpu()

    def _of_steps(self, steps: int) -> tuple[NDArray[np.generic], ...]:
        """Rate factors, shares in the average and keys of the next epoch's steps, each [S, R].

        All are zero in the steps in which a run has no video left.
        """
        factor_SR, share_SR = np.zeros((2, steps, len(self.runs)), np.float32)
        key_SR = np.zeros((steps, len(self.runs)), np.int64)
        for r, history in enumerate(self.histories):
            config, run = history.run.method.optimiser, history.run
            own = -(-len(history.split.train) // config.batch)
            factor_SR[:own, r] = rate_factors(config, self.epoch, own)
            share_SR[:own, r] = step_shares(config, self.epoch, own)
            names = (f"{run.fold}/{run.seed}/{self.epoch}/{step}" for step in range(own))
            key_SR[:own, r] = [zlib.crc32(name.encode()) for name in names]
        return factor_SR, share_SR, key_SR

    def _evaluated(self) -> AbstractContextManager[object]:
        """The weights to evaluate in place of the latest, if they are averaged."""
        if self._average is None:
            return nullcontext()
        self._average.update(self._of_runs(lambda config: epoch_share(config, self.epoch)))
        return self._average.in_place()

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
        learned = learned_parameters(self.model)
        parameters = list(learned.values())
        prompts, lr_prompts = ("fine.", "coarse."), self._prompt_rates()
        lrs_R = [lr_prompts if name.startswith(prompts) else lr_R for name in learned]
        if self._config.lr_encoder:
            encoder = self.data.features.parameters()
            parameters += encoder
            lrs_R += [self._of_runs(lambda config: config.lr_encoder)] * len(encoder)
        kind = StackedAdamW if self._config.kind == "adamw" else StackedSGD
        return kind(
            parameters,
            lrs_R,
            self._of_runs(lambda config: config.momentum),
            self._of_runs(lambda config: config.weight_decay),
        )

    def _prompt_rates(self) -> Tensor:
        """Learning rates of the context vectors: [R], or [R, C] if they differ by class."""
        lr_R = self._of_runs(lambda config: config.lr_prompts)
        if not any(run.method.optimiser.text_rarity for run in self.runs):
            return lr_R
        length = self.runs[0].method.prompts.context_length  # of each class in turn
        factor_RC = self._of_classes(prompt_rates).repeat_interleave(length, 1)
        return lr_R[:, None] * factor_RC

    def _moments(self, run: int) -> dict[str, Tensor]:
        """What the optimiser and the average of one run remember, with the run axis."""
        # The encoder's parameters, if any, come last.
        names = list(learned_parameters(self.model))
        kinds = dict(self._optimiser.moments)
        if self._average is not None and self._averaged[run]:
            kinds["average"] = self._average.averages
        return {
            f"{kind}/{name}": moment
            for kind, moments in kinds.items()
            for name, moment in zip(names, moments, strict=False)
        }

    def _of_runs(self, value: Callable[[OptimiserConfig], float]) -> Tensor:
        values = [value(run.method.optimiser) for run in self.runs]
        return torch.tensor(values, device=self.data.device)

    def _of_loss(self, loss: str, value: Callable[[OptimiserConfig], float]) -> Tensor | None:
        """A value of each run, if all have this loss."""
        return self._of_runs(value) if self._config.loss == loss else None

    def _of_classes(
        self, value: Callable[[OptimiserConfig, NDArray[np.float64]], NDArray[np.float64]]
    ) -> Tensor:
        """A value of each run and class, [R, K], from the number of its training videos."""
        store, rows = self.data.store, []
        for history in self.histories:
            counts_K = class_counts(store.labels[history.split.train], len(store.classes))
            rows.append(value(history.run.method.optimiser, counts_K))
        return torch.from_numpy(np.stack(rows)).float().to(self.data.device)


def build_model(data: TrainingData, runs: Sequence[Run]) -> Network:
    """The network of R runs, each initialised from its own seed."""
    spec = NetworkSpec(
        [torch.Generator().manual_seed(run.seed) for run in runs],
        data.tower,
        class_texts(data.store.classes, data.store.texts),
        data.store.frames,
        [run.method for run in runs],
    )
    return build_network(spec).to(data.device)


def parameters_of(model: Network, run: int) -> dict[str, Tensor]:
    """What the network of one run of a stack consists of, without the run axis."""
    return _of_run(model.kept(), run)


def learned_parameters(model: Network) -> dict[str, Tensor]:
    """The trained parameters, with the run axis."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _frames(data: TrainingData, rows: Rows) -> Iterator[Tensor]:
    """The features of some videos in the test view, in parts [1, .., T, D]."""
    for start in range(0, len(rows), EVALUATION_VIDEOS):
        row_1B = torch.from_numpy(rows[None, start : start + EVALUATION_VIDEOS]).to(data.device)
        yield data.features(row_1B, torch.zeros_like(row_1B))


def _of_run(tensors: Mapping[str, Tensor], run: int) -> dict[str, Tensor]:
    return {name: tensor.detach()[run].clone().cpu() for name, tensor in tensors.items()}
