"""Epochs of a run -> the one that is reported, by a rule that is recorded with the result."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Run, SelectionConfig
from pipeline.evaluate.metrics import confusion, uar, war
from pipeline.model.text_tower import Layout
from pipeline.train.features import TrainingData
from pipeline.train.split import Split

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluate.predictions import Predictions

Metrics = dict[str, float]


@dataclass(frozen=True)
class SelectedEpoch:
    """The network of the reported epoch, and its predictions for the test videos."""

    predictions: "Predictions"
    parameters: "dict[str, Tensor]"  # the run's own, without the run axis
    encoder_files: dict[str, bytes] = field(default_factory=dict)  # if the encoder was trained


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run."""

    run: Run
    split: Split
    epochs: list[Metrics]
    epoch: int  # the reported one, counted from 1
    selected: SelectedEpoch
    layout: Layout | None  # of the prompts, if something reads them

    @property
    def diverged(self) -> bool:
        """Whether the network's output is no longer finite."""
        return not bool(np.isfinite(self.selected.predictions.logits_NK).all())


@dataclass
class History:
    """The epochs of one run so far, and the one that would be reported if it ended now."""

    data: TrainingData
    run: Run
    split: Split
    epochs: list[Metrics] = field(default_factory=list)
    best: int = -1  # -1 for none yet
    selected: SelectedEpoch | None = None

    def add(
        self,
        loss: float,
        predictions: "Predictions",
        parameters: "Callable[[], dict[str, Tensor]]",
    ) -> None:
        """Add an epoch; ``predictions`` are those for the split's ``evaluation_rows``.

        Its scores begin with the name of the videos they are of: test or held_out, and val.
        """
        tests = len(self.split.test)
        epoch: Metrics = {"epoch": len(self.epochs) + 1, "train_loss": loss}
        tested_on = self.run.method.selection.tested_on
        epoch |= self._metrics(tested_on, self.split.test, predictions.logits_NK[:tests])
        if len(self.split.val):
            epoch |= self._metrics("val", self.split.val, predictions.logits_NK[tests:])
        self.epochs.append(epoch)
        method = self.run.method
        ended = len(self.epochs) == method.optimiser.epochs
        if method.selection.rule == "last" and not ended:
            return
        best = self.epochs[self.best] if self.best >= 0 else None
        if better(method.selection, epoch, best):
            self.best = len(self.epochs) - 1
            files = self.data.features.encoder_files()
            self.selected = SelectedEpoch(predictions.first(tests), parameters(), files)

    def outcome(self) -> Outcome:
        """The outcome of the run, after its last epoch."""
        assert self.selected is not None
        layout = self.data.tower.layout
        return Outcome(self.run, self.split, self.epochs, self.best + 1, self.selected, layout)

    def _metrics(
        self, part: str, rows: NDArray[np.int64], logits_NK: NDArray[np.float32]
    ) -> Metrics:
        store = self.data.store
        counts = confusion(store.labels[rows], logits_NK.argmax(1), len(store.classes))
        return {f"{part}_uar": float(uar(counts)), f"{part}_war": float(war(counts))}


def better(config: SelectionConfig, epoch: Metrics, best: Metrics | None) -> bool:
    """Whether to report the network of ``epoch`` rather than that of ``best``.

    Best means highest WAR; the earlier of two equal epochs wins.
    """
    if best is None or config.rule == "last":
        return True
    score = "val_war" if config.rule == "best_on_val" else "test_war"
    return epoch[score] > best[score]
