"""Records of runs and frame-level truth -> how well rankings find the frames that show the label.

This needs a data set with a label for every frame; no real DFER set has them.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache.store import Store
from pipeline.evaluate.influence import Array, average_precision, influence
from pipeline.show import markdown_line


class TestedRun(Protocol):
    """A run's output for its N test videos."""

    def predictions(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """(ids, labels, predicted classes)."""

    def frame_logits(self) -> NDArray[np.float32]:
        """cos(x_t, label_k) / tau, [N, T, K]."""

    def attention(self) -> NDArray[np.float32]:
        """Frame weights of the visual prompts, [N, T, K]."""


def localise(runs: Sequence[TestedRun], store: Store) -> dict[str, tuple[NDArray[np.int64], Array]]:
    """Ranking -> (labels, average precision) of all test videos; {} without truth or runs.

    A frame is positive if its true expression is the video's label. ``influence`` ranks by the
    logit of the predicted class, ``attention`` by the visual prompt's weights for that class;
    ``random`` and ``uniform`` are chance levels. NaN if all or none of the frames are positive.
    """
    truth = store.frame_truth()
    if truth is None or not runs:
        return {}
    row_of = {video_id: row for row, video_id in enumerate(store.ids)}
    generator = np.random.default_rng(0)
    labels: list[NDArray[np.int64]] = []
    found: dict[str, list[Array]] = {}
    for run in runs:
        ids, own, predicted = run.predictions()
        shows_NT = truth[0][[row_of[video_id] for video_id in ids]] == own[:, None]
        rankings = {
            "influence": influence(run.frame_logits(), predicted),
            "attention": influence(run.attention(), predicted),
            "random": generator.random(shows_NT.shape),
            "uniform": np.zeros(shows_NT.shape),
        }
        labels.append(own)
        for name, scores_NT in rankings.items():
            if np.isfinite(scores_NT).all():
                found.setdefault(name, []).append(average_precision(scores_NT, shows_NT))
    gathered = np.concatenate(labels)
    return {name: (gathered, np.concatenate(parts)) for name, parts in found.items()}


def localisation_table(
    found: Mapping[str, tuple[NDArray[np.int64], Array]], classes: Sequence[str], name: str = ""
) -> str:
    """Markdown: mean average precision of each ranking, over all videos and per class."""
    of = f" ({name})" if name else ""
    lines = ["", f"## Which frames show the label{of}", ""]
    lines += [
        "Mean average precision over test videos in which some but not all frames show the label."
    ]
    lines += ["", markdown_line(["ranking", "all", *classes, "videos"])]
    lines.append("| --- " * (len(classes) + 3) + "|")
    for name, (labels, precision) in found.items():
        known = np.isfinite(precision)
        cells = [_mean(precision[known])]
        cells += [_mean(precision[known & (labels == k)]) for k in range(len(classes))]
        lines.append(markdown_line([name, *cells, int(known.sum())]))
    return "\n".join(lines) + "\n"


def _mean(values: Array) -> str:
    return f"{values.mean():.3f}" if len(values) else "–"
