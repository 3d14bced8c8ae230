"""Records of runs and frame-level truth -> how well rankings find the frames that show the label.

This needs a data set with a label for every frame; no real DFER set has them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from cache.store import Store
from pipeline.config import Run
from pipeline.evaluate.influence import Array, Influence, average_precision, influence_by
from pipeline.evaluate.statistics import Interval, bootstrap_mean
from pipeline.markdown import paragraph, table
from pipeline.show import show

FIRST = get_args(Influence)[0]  # the paper's, to which the others are compared


class TestedRun(Protocol):
    """A run's output for its N test videos; T are the frames that it uses."""

    @property
    def run(self) -> Run:
        """Its settings."""

    def predictions(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """(ids, labels, predicted classes)."""

    def logits(self) -> NDArray[np.float64]:
        """What it says of the videos, [N, K]."""

    def frame_logits(self) -> NDArray[np.float32]:
        """What it says of the frames, [N, T, K]; of TG-DFER, cos(x_t, label_k) / tau."""

    def attention(self) -> NDArray[np.float32]:
        """Frame weights of the visual prompts, [N, T, K]."""


@dataclass(frozen=True)
class Found:
    """How well one ranking finds the frames; one entry per test video of every run."""

    rows: NDArray[np.int64]  # of the store
    labels: NDArray[np.int64]
    precision: Array  # average precision; NaN if all or none of the frames are positive
    people: list[str]  # the person, or the video where people are not known


def localise(
    runs: Sequence[TestedRun],
    store: Store,
    more: Callable[[TestedRun], Mapping[str, Array]] = lambda run: {},
) -> dict[str, Found]:
    """Ranking -> what it finds in all test videos; {} without truth or runs.

    A frame is positive if its true expression is the video's label. Rankings are those of
    ``influence_by`` and what ``more`` gives; ``random`` and ``uniform`` are chance levels.
    """
    truth = store.frame_truth()
    if truth is None or not runs:
        return {}
    generator = np.random.default_rng(0)
    parts: dict[str, list[Array]] = {}
    tested = []
    for run in runs:
        ids, own, predicted = run.predictions()
        rows = store.rows_of(ids)
        frames = run.run.method.input.chosen(store.frames)
        shows_NT = truth[0][rows][:, frames] == own[:, None]
        logits_NTK, attention_NTK = run.frame_logits(), run.attention()
        rankings = {
            kind: influence_by(kind, logits_NTK, attention_NTK, predicted)
            for kind in get_args(Influence)
        }
        rankings |= more(run)
        rankings["random"] = generator.random(shows_NT.shape)
        rankings["uniform"] = np.zeros(shows_NT.shape)
        tested.append(rows)
        for name, scores_NT in rankings.items():
            if np.isfinite(scores_NT).all():
                parts.setdefault(name, []).append(average_precision(scores_NT, shows_NT))
    every = np.concatenate(tested)
    labels, people = store.labels[every], store.people(every)
    return {
        name: Found(every, labels, np.concatenate(own), people)
        for name, own in parts.items()
        if len(own) == len(runs)
    }


def mean_precision(found: Found, subset_N: NDArray[np.bool_]) -> Interval | None:
    """Mean average precision over the test videos in a subset of the store's N videos.

    None if there is no such video in which some but not all frames show the label.
    """
    return _mean_over_people(found, np.where(subset_N[found.rows], found.precision, np.nan))


def precision_recall(
    runs: Sequence[TestedRun], store: Store, kind: Influence
) -> tuple[Array, Array] | None:
    """(precision, recall) of the 1, 2, …, T frames that rank highest, each [T], means over videos.

    Over the test videos of all runs in which some but not all frames show the label. None without
    such a video, and for a ranking that the method does not have.
    """
    truth = store.frame_truth()
    parts = [] if truth is None else [_hits(run, store, truth[0], kind) for run in runs]
    hits_NT = np.concatenate(parts) if parts else np.empty((0, 1))
    shown_N = hits_NT.sum(1)
    hits_NT = hits_NT[(shown_N > 0) & (shown_N < hits_NT.shape[1])]
    if not len(hits_NT) or not np.isfinite(shown_N).all():
        return None
    found_NT = hits_NT.cumsum(1)
    ranks_T = np.arange(1, found_NT.shape[1] + 1)
    return (found_NT / ranks_T).mean(0), (found_NT / found_NT[:, -1:]).mean(0)


def localisation_table(found: Mapping[str, Found], classes: Sequence[str], name: str = "") -> str:
    """Markdown: mean average precision of each ranking, over all videos and per class."""
    of = f" ({name})" if name else ""
    about = (
        "Mean average precision over test videos in which some but not all frames show the label, "
        f"with 95 % intervals; differences to {FIRST}, the paper's influence, are paired by video."
    )
    rows = []
    for ranking, own in found.items():
        known = np.isfinite(own.precision)
        cells = [_interval(own, own.precision), "–"]
        if ranking != FIRST:
            cells[1] = _interval(own, own.precision - found[FIRST].precision, "+")
        cells += [_mean(own.precision[known & (own.labels == k)]) for k in range(len(classes))]
        rows.append([ranking, *cells, int(known.sum())])
    columns = ["ranking", "all", f"minus {FIRST}", *classes, "videos"]
    lines = ["", f"## Which frames show the label{show(of)}", "", paragraph(about), ""]
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def _hits(run: TestedRun, store: Store, truth_NT: NDArray[np.int8], kind: Influence) -> Array:
    """Whether the frame of each rank shows the label, [N, T]; NaN without such a ranking."""
    ids, labels, predicted = run.predictions()
    scores_NT = influence_by(kind, run.frame_logits(), run.attention(), predicted)
    frames = run.run.method.input.chosen(store.frames)
    shows_NT = truth_NT[store.rows_of(ids)][:, frames] == labels[:, None]
    order_NT = np.argsort(-scores_NT, axis=1, kind="stable")
    hits_NT = np.take_along_axis(shows_NT, order_NT, 1).astype(np.float64)
    return np.where(np.isfinite(scores_NT).all(), hits_NT, np.nan)


def _interval(own: Found, values: Array, sign: str = "") -> str:
    found = _mean_over_people(own, values)
    return "–" if found is None else found.text(f"{sign}.3f")


def _mean_over_people(own: Found, values: Array) -> Interval | None:
    """Of the finite values."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return None
    return bootstrap_mean(values[known], [own.people[n] for n in known])


def _mean(values: Array) -> str:
    return f"{values.mean():.3f}" if len(values) else "–"
