"""Training videos of R runs -> the batches of one epoch, each run in its own random order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


@dataclass(frozen=True)
class EpochBatches:
    """The videos that each run sees in each of S steps of B videos."""

    video_SRB: NDArray[np.int64]  # rows of the store
    view_SRB: NDArray[np.int64]  # view of each video
    weight_SRB: NDArray[np.float32]  # 1, or 0 where a run has no video left


def epoch_batches(
    train: Sequence[NDArray[np.int64]],
    batch: int,
    views: Sequence[int],
    generators: Sequence[Generator],
    chances: Sequence[NDArray[np.float64] | None] | None = None,
) -> EpochBatches:
    """Every training video once, in random order; the last batch of a run may be partial.

    A run with ``chances`` draws as many videos as it has, each by its own chance, with replacement.
    Each video is shown in one of its augmented views 1 to ``views[r] - 1``, or in view 0 if it has
    no other. A run's draws depend only on its own generator, so they are the same in any stack.
    """
    steps = max(-(-len(rows) // batch) for rows in train)
    shape = (steps, len(train), batch)
    video, view = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weight = np.zeros(shape, np.float32)
    for r, (rows, last, generator) in enumerate(zip(train, views, generators, strict=True)):
        own = chances[r] if chances else None
        if own is None:
            order = generator.permutation(rows)
        else:
            order = generator.choice(rows, len(rows), p=own)
        drawn = generator.integers(1, last, len(rows)) if last > 1 else np.zeros_like(rows)
        video[:, r] = _steps(order, steps, batch)
        view[:, r] = _steps(drawn, steps, batch)
        weight[:, r] = _steps(np.ones(len(rows), np.float32), steps, batch)
    return EpochBatches(video, view, weight)


@dataclass(frozen=True)
class Pairs:
    """What may be mixed into each video of the batches: another of its step, in the same run."""

    video_SRB: NDArray[np.int64]
    view_SRB: NDArray[np.int64]
    share_SRB: NDArray[np.float32]  # of the other one; the same in all of a step of a run


def mixed_pairs(
    batches: EpochBatches, alphas: Sequence[float], generators: Sequence[Generator]
) -> Pairs:
    """Each run's videos of a step in another order, with a share from Beta(alpha, alpha).

    As in mixup (Zhang et al. 2018); nothing is drawn for a run with an alpha of 0.
    """
    video, view = batches.video_SRB.copy(), batches.view_SRB.copy()
    share = np.zeros(video.shape, np.float32)
    for r, (alpha, generator) in enumerate(zip(alphas, generators, strict=True)):
        for s, count in enumerate(batches.weight_SRB[:, r].sum(1).astype(int) * (alpha > 0)):
            if count:
                order = generator.permutation(count)
                video[s, r, :count], view[s, r, :count] = video[s, r, order], view[s, r, order]
                share[s, r] = generator.beta(alpha, alpha)
    return Pairs(video, view, share)


def _steps(values: NDArray[np.generic], steps: int, batch: int) -> NDArray[np.generic]:
    padded = np.zeros(steps * batch, values.dtype)
    padded[: len(values)] = values
    return padded.reshape(steps, batch)
