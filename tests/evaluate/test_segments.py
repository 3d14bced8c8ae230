"""Segments from frame scores, and their mean average precision by intersection over union."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.config import Run, load_method
from pipeline.evaluate.segments import (
    KEPT,
    LEAST_SCORE,
    Located,
    Segments,
    hits,
    locate,
    mean_average_precision,
    segments,
    segments_table,
    true_segments,
)
from pipeline.train.records import Records
from support.markdown import cells_of
from support.records import write_record
from support.stores import CLASSES, write_store

Found = list[tuple[int, int, int, int, float]]  # video, class, first, end, score


def of(rows: Found) -> Segments:
    video, label, first, end, score = (np.array(own) for own in zip(*rows, strict=True))
    return Segments(video, label, first, end, score.astype(np.float64))


def rows_of(own: Segments) -> Found:
    columns = (own.video, own.label, own.first, own.end, own.score)
    return list(zip(*(values.tolist() for values in columns), strict=True))


def iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    one, other = set(range(*a)), set(range(*b))
    return len(one & other) / len(one | other)


def slow_segments(scores_NTK: np.ndarray, probability_NK: np.ndarray) -> Found:
    """Every segment of every video and class, one by one."""
    N, T, K = scores_NTK.shape
    found = []
    for n in range(N):
        for k in range(K):
            own = []
            for first in range(T):
                for end in range(first + 1, T + 1):
                    beside = max(1, (end - first) // 4)
                    around = [
                        *range(max(0, first - beside), first),
                        *range(end, min(T, end + beside)),
                    ]
                    inner = sum(scores_NTK[n, t, k] for t in range(first, end)) / (end - first)
                    outer = sum(scores_NTK[n, t, k] for t in around) / max(1, len(around))
                    own.append((probability_NK[n, k] * (inner - outer), first, end))
            own.sort(key=lambda row: (-row[0], row[1], row[2]))
            kept: list[tuple[float, int, int]] = []
            for score, first, end in own:
                apart = all(iou((first, end), (a, b)) < 0.5 for _, a, b in kept)
                if apart and score >= LEAST_SCORE and len(kept) < KEPT:
                    kept.append((score, first, end))
            found += [(n, k, first, end, score) for score, first, end in kept]
    return found


def slow_average_precision(found: Found, true: Found, overlap: float) -> float:
    """Mean over classes; a precision at a recall is the highest at that recall or a higher one."""
    each = []
    for k in sorted({row[1] for row in true}):
        left = [row for row in true if row[1] == k]
        shown, right = len(left), []
        for video, _, first, end, _ in sorted(
            (row for row in found if row[1] == k), key=lambda row: -row[4]
        ):
            ious = {row: iou((first, end), row[2:4]) for row in left if row[0] == video}
            best = max(ious, key=lambda row: ious[row], default=None)
            right.append(best is not None and ious[best] >= overlap)
            if best is not None and right[-1]:
                left.remove(best)
        precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
        each.append(sum(max(precision[n:]) for n, hit in enumerate(right) if hit) / shown)
    return float(np.mean(each))


def test_segments_are_those_of_the_highest_contrast_that_do_not_overlap() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((5, 7, 3))
    probability = softmax(generator.standard_normal((5, 3)), 1)
    probability[0] = 1e-4, 0.5, 0.4999  # too small to be kept
    found = segments(scores, probability, start=3)
    ours = sorted((v - 3, k, a, b, round(s, 9)) for v, k, a, b, s in rows_of(found))
    slow = sorted((v, k, a, b, round(s, 9)) for v, k, a, b, s in slow_segments(scores, probability))
    assert ours == slow
    assert not [row for row in ours if row[:2] == (0, 0)]


def test_a_frame_score_that_is_the_same_everywhere_gives_all_frames_alone() -> None:
    found = segments(np.ones((2, 6, 1)), np.array([[0.5], [0.25]]))
    assert rows_of(found) == [(0, 0, 0, 6, 0.5), (1, 0, 0, 6, 0.25)]


def test_true_segments_are_rows_of_frames() -> None:
    shows = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    found = true_segments(shows, np.array([2, 0, 1]), start=10)
    assert rows_of(found) == [(10, 2, 0, 2, 1), (10, 2, 3, 4, 1), (12, 1, 0, 4, 1)]


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_mean_average_precision_equals_a_count_by_hand_and_one_by_one(overlap: float) -> None:
    true = of([(0, 0, 0, 4, 1), (0, 0, 6, 8, 1), (1, 0, 0, 8, 1), (2, 1, 2, 4, 1)])
    generator = np.random.default_rng(1)
    rows: Found = []
    for score in generator.permutation(60) / 60:
        first = int(generator.integers(0, 7))
        video, label = int(generator.integers(0, 3)), int(generator.integers(0, 2))
        rows.append((video, label, first, int(generator.integers(first + 1, 9)), float(score)))
    own = Located(of(rows), true, ["a", "b", "a"])
    found = mean_average_precision(own, overlap)
    assert found.value == pytest.approx(slow_average_precision(rows, rows_of(true), overlap))
    assert found.low <= found.value <= found.high


def test_a_true_segment_is_taken_once_and_by_its_own_class_and_video() -> None:
    true = of([(0, 0, 0, 4, 1), (0, 0, 5, 8, 1)])
    found = of(
        [
            (0, 0, 0, 4, 0.9),
            (0, 0, 0, 4, 0.8),  # taken
            (1, 0, 0, 4, 0.7),  # another video
            (0, 1, 0, 4, 0.6),  # another class
            (0, 0, 4, 8, 0.5),  # 3 of 4 frames
        ]
    )
    assert hits(found, true, 0.7).tolist() == [True, False, False, False, True]
    assert hits(found, true, 0.8).tolist() == [True, False, False, False, False]
    # precision 1 at recall 1/2, 2/4 at recall 1
    assert mean_average_precision(Located(found, true, ["a", "b"]), 0.7).value == 0.75


def test_segments_of_records_find_the_truth_that_the_frames_tell(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(22) % 2
    first = generator.integers(0, 8, 22)
    shows = (np.arange(12) >= first[:, None]) & (np.arange(12) < first[:, None] + 4)
    truth = np.where(shows, labels[:, None], -1)
    features, folds = np.ones((22, 1, 12, 8)), {"1": (range(20, 22), range(20))}
    store = write_store(tmp_path / "s.zarr", features, labels, truth_NT=truth, folds=folds)
    said = np.where(shows[:20, :, None], 4.0 * np.eye(len(CLASSES))[labels[:20]][:, None], 0)
    records = Records(tmp_path / "runs", store)
    run = Run(method=load_method(), fold="1", seed=0)
    write_record(records, run, labels[:20], frame_logits_NTK=said)
    record = records.find(run)
    assert record is not None
    located = locate([record], store)
    for kind in ("probability", "influence"):
        assert mean_average_precision(located[kind], 0.7).value == 1
    whole = [mean_average_precision(located["whole video"], own).value for own in (0.3, 0.5)]
    assert whole == [1, 0]  # 4 of 12 frames
    assert mean_average_precision(located["random"], 0.5).value < 0.6
    cells = cells_of(segments_table(located))
    assert cells["probability"] == [*["100.0 [100.0, 100.0]"] * 3, "100.0"]
    without = write_store(tmp_path / "without.zarr", features, labels, folds=folds)
    assert locate([record], without) == {}
