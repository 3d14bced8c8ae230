"""Records of runs and frame-level truth -> temporal emotion localisation: mAP of segments by IoU.

Networks that learn from labels of whole videos say from where to where each class is shown. As in
temporal action localisation, segments of all test videos are ranked by score, and one is right if
it overlaps a true segment of its class that no segment of a higher score has taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from cache.store import Store
from pipeline.evaluate.influence import Array
from pipeline.evaluate.localisation import TestedRun
from pipeline.evaluate.statistics import Interval, bootstrap_of_groups
from pipeline.markdown import paragraph, table
from pipeline.show import show

OVERLAPS = (0.3, 0.5, 0.7)  # least intersection over union with the truth
SUPPRESSED = 0.5  # IoU with a segment of a higher score, of the same video and class
KEPT = 3  # segments of a video and class
LEAST_SCORE = 1e-3
OUTER = 4  # frames around a segment of n are max(1, n // OUTER) on each side

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """Frames ``first`` to ``end`` - 1 of a video, with a class and a score; each [S]."""

    video: Ints
    label: Ints
    first: Ints
    end: Ints
    score: Array

    def overlap(self, others: "Segments") -> Array:
        """Intersection over union with another one at the same place."""
        both = np.minimum(self.end, others.end) - np.maximum(self.first, others.first)
        both = np.maximum(both, 0)
        return both / (self.end - self.first + others.end - others.first - both)

    def take(self, index: "Ints | Bools") -> "Segments":
        """Some of them."""
        video, label, score = self.video[index], self.label[index], self.score[index]
        return Segments(video, label, self.first[index], self.end[index], score)


@dataclass(frozen=True)
class Located:
    """Segments that one kind of frame score finds in N videos, and the true ones."""

    found: Segments
    true: Segments
    people: Sequence[str]  # the person in each video, or the video where people are not known


def locate(runs: Sequence[TestedRun], store: Store) -> dict[str, Located]:
    """Kind of frame score -> segments of all classes in all test videos; {} without truth or runs.

    A true segment is a row of frames that show the video's label, as long as it goes. The scores of
    frames are ``probability``, the softmax over classes of their logits; ``influence``, the logits
    of a class scaled to [0, 1] within a video, as Fig. 4 of the paper colours them; ``random``; and
    ``whole video``, the same for all frames, as of a network that says nothing of frames.
    """
    truth = store.frame_truth()
    if truth is None or not runs:
        return {}
    generator = np.random.default_rng(0)
    parts: dict[str, list[Segments]] = {}
    true, people, count = [], [], 0
    for run in runs:
        ids, own, _ = run.predictions()
        rows = store.rows_of(ids)
        frames = run.run.method.input.chosen(store.frames)
        true.append(true_segments(truth[0][rows][:, frames] == own[:, None], own, count))
        probability_NK = softmax(run.logits(), 1)
        for kind, scores_NTK in _scores(run.frame_logits().astype(np.float64), generator).items():
            parts.setdefault(kind, []).append(segments(scores_NTK, probability_NK, count))
        people += store.people(rows)
        count += len(rows)
    every = _joined(true)
    if not len(every.video):
        return {}
    return {kind: Located(_joined(own), every, people) for kind, own in parts.items()}


def true_segments(shows_NT: Bools, labels_N: Ints, start: int = 0) -> Segments:
    """Rows of frames that show the label; the first video's number is ``start``."""
    edges_NT = np.diff(np.pad(shows_NT, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    video, first = np.nonzero(edges_NT == 1)
    end = np.nonzero(edges_NT == -1)[1]
    return Segments(video + start, labels_N[video], first, end, np.ones(len(video)))


def segments(scores_NTK: Array, probability_NK: Array, start: int = 0) -> Segments:
    """The best segments of each video and class, from scores of frames in [0, 1] and of videos.

    A segment scores p_k (mean f_tk within it - mean f_tk of the frames around it), the contrast of
    Shou et al. (2018); nothing is around all frames. KEPT of those that score LEAST_SCORE are left
    after non-maximum suppression.
    """
    T, (N, K) = scores_NTK.shape[1], probability_NK.shape
    first_S, end_S = np.array([(a, b) for a in range(T) for b in range(a + 1, T + 1)]).T
    around_S = np.maximum(1, (end_S - first_S) // OUTER)
    low_S, high_S = np.maximum(first_S - around_S, 0), np.minimum(end_S + around_S, T)
    sums = np.pad(scores_NTK.cumsum(1), ((0, 0), (1, 0), (0, 0)))
    inner = sums[:, end_S] - sums[:, first_S]
    outer = sums[:, high_S] - sums[:, low_S] - inner
    length_S, beside_S = end_S - first_S, high_S - low_S - (end_S - first_S)
    contrast = inner / length_S[:, None] - outer / np.maximum(beside_S, 1)[:, None]
    scores = (contrast * probability_NK[:, None]).transpose(0, 2, 1).reshape(N * K, -1)  # [NK, S]
    none = np.zeros_like(first_S)
    every = Segments(none, none, first_S, end_S, none.astype(np.float64))
    close_SS = np.stack(
        [every.overlap(every.take(np.full(len(none), s))) for s in range(len(none))]
    )
    kept = []
    for _ in range(KEPT):
        best = scores.argmax(1)
        score = np.take_along_axis(scores, best[:, None], 1)[:, 0]
        own = np.flatnonzero(score >= LEAST_SCORE)
        video, label = own // K + start, own % K
        kept.append(Segments(video, label, first_S[best[own]], end_S[best[own]], score[own]))
        scores = np.where(close_SS[best] >= SUPPRESSED, -np.inf, scores)
    return _joined(kept)


def mean_average_precision(located: Located, overlap: float, resamples: int = 500) -> Interval:
    """Mean over the classes shown of the average precision at an IoU, with its 95 % interval.

    The precision at a recall is the highest at that recall or a higher one, as in ActivityNet
    (Caba Heilbron et al. 2015). The interval is over people, or videos where they are not known.
    """
    found = located.found.take(np.argsort(-located.found.score, kind="stable"))
    right = hits(found, located.true, overlap)
    classes = np.unique(located.true.label)

    def of(weights_RN: Array) -> Array:
        each = []
        for k in classes:
            own = found.label == k
            shown_R = weights_RN[:, located.true.video[located.true.label == k]].sum(1)
            each.append(_average_precision(weights_RN[:, found.video[own]], right[own], shown_R))
        found_KR = np.array(each)
        known_KR = np.isfinite(found_KR)
        sum_R, count_R = np.where(known_KR, found_KR, 0).sum(0), known_KR.sum(0)
        return np.divide(sum_R, count_R, out=np.full(len(sum_R), np.nan), where=count_R > 0)

    return bootstrap_of_groups(of, located.people, resamples)


def hits(found: Segments, true: Segments, overlap: float) -> Bools:
    """Whether each segment, in the order of scores, takes a true one of its video and class.

    It takes the one with which its IoU is highest, unless that is below ``overlap``.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for n, place in enumerate(zip(true.video.tolist(), true.label.tolist(), strict=True)):
        places.setdefault(place, []).append(n)
    right = np.zeros(len(found.video), bool)
    for s, place in enumerate(zip(found.video.tolist(), found.label.tolist(), strict=True)):
        if left := places.get(place):
            ious = found.take(np.full(len(left), s)).overlap(true.take(np.array(left)))
            if ious.max() >= overlap:
                left.pop(int(ious.argmax()))
                right[s] = True
    return right


def segments_table(located: Mapping[str, Located], name: str = "") -> str:
    """Markdown: mAP at each of OVERLAPS and their mean, of each kind of frame score."""
    of = f" ({name})" if name else ""
    about = (
        "Mean average precision over classes of the segments that are found in the test videos, by "
        "their least intersection over union with a row of frames that show the video's label, "
        "with 95 % intervals; in %."
    )
    rows = []
    for kind, own in located.items():
        found = [mean_average_precision(own, overlap) for overlap in OVERLAPS]
        mean = float(np.mean([interval.value for interval in found]))
        rows.append([kind, *(interval.text(".1f", 100) for interval in found), f"{100 * mean:.1f}"])
    columns = ["frame score", *(f"IoU {overlap}" for overlap in OVERLAPS), "mean"]
    lines = ["", f"## From where to where the label is shown{show(of)}", "", paragraph(about), ""]
    return "\n".join([*lines, *table(columns, rows)]) + "\n"


def _scores(logits_NTK: Array, generator: np.random.Generator) -> dict[str, Array]:
    low_N1K, high_N1K = logits_NTK.min(1, keepdims=True), logits_NTK.max(1, keepdims=True)
    range_N1K = np.where(high_N1K > low_N1K, high_N1K - low_N1K, 1)
    return {
        "probability": softmax(logits_NTK, 2),
        "influence": (logits_NTK - low_N1K) / range_N1K,
        "random": generator.random(logits_NTK.shape),
        "whole video": np.ones_like(logits_NTK),
    }


def _average_precision(weights_RS: Array, right_S: Bools, shown_R: Array) -> Array:
    """Of segments in the order of scores, which count as often as R resamples drew their videos."""
    taken_RS = (weights_RS * right_S).cumsum(1)
    every_RS = weights_RS.cumsum(1)
    precision_RS = np.divide(taken_RS, every_RS, out=np.zeros_like(taken_RS), where=every_RS > 0)
    highest_RS = np.maximum.accumulate(precision_RS[:, ::-1], 1)[:, ::-1]
    area_R = (weights_RS * right_S * highest_RS).sum(1)
    return np.divide(area_R, shown_R, out=np.full(len(shown_R), np.nan), where=shown_R > 0)


def _joined(parts: Sequence[Segments]) -> Segments:
    return Segments(
        video=np.concatenate([part.video for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        first=np.concatenate([part.first for part in parts]),
        end=np.concatenate([part.end for part in parts]),
        score=np.concatenate([part.score for part in parts]),
    )
