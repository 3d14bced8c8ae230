"""Ground truth beside DFEW's lists that DFEW itself lacks: subjects, subsets, labels of frames.

``truth.json`` has ``subjects`` (id -> subject) and ``subsets`` (name -> ids); ``frames.csv`` has
rows of ``video_name,frame,label,intensity``, in which frames and labels count from 1, label 0 marks
a frame that shows none of the classes, and intensities are from 0 to 1.
"""

import os
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from cache.errors import RefusedError
from cache.outside import MIB, read_text
from pipeline.datasets.rows import SHOWN_LETTERS
from pipeline.datasets.survey import FrameTruth
from pipeline.datasets.tree import refuse_outside, some

TRUTH_BYTES_MAX = 64 * MIB
FRAMES_HEADER = "video_name,frame,label,intensity"


class Truth(BaseModel):
    """``truth.json``."""

    subjects: dict[str, str] = {}
    subsets: dict[str, frozenset[str]] = {}


def read_truth(lists: Path, labels: Mapping[str, int]) -> Truth:
    """Subjects and subsets; refuses those of videos that have no label."""
    path = lists / "truth.json"
    if not os.path.lexists(path):
        return Truth()
    refuse_outside(lists, path)
    text = read_text(path, "ground truth in JSON", TRUTH_BYTES_MAX)
    try:
        truth = Truth.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(f"{path}: {where or 'not JSON'}: {first['msg']}") from None
    unknown = set(truth.subjects).union(*truth.subsets.values()) - set(labels)
    if unknown:
        raise RefusedError(f"{path}: names videos in no list: {some(sorted(unknown))}")
    return truth


def read_frame_truth(lists: Path, labels: Mapping[str, int], classes: int) -> dict[str, FrameTruth]:
    """Labels (int8, from 0, -1 for none) and intensities (float32) of every video's frames."""
    path = lists / "frames.csv"
    if not os.path.lexists(path):
        return {}
    refuse_outside(lists, path)
    rows: dict[str, list[tuple[int, float]]] = {}
    lines = StringIO(read_text(path, f"rows of {FRAMES_HEADER}", TRUTH_BYTES_MAX), None)
    if next(lines, "").strip() != FRAMES_HEADER:
        raise RefusedError(f"{path}:1: expected the header {FRAMES_HEADER}")
    for number, line in enumerate(lines, start=2):
        if line.strip():
            try:
                video_id, frame, label, intensity = _parse_frame(line.strip(), classes)
                frames = rows.setdefault(video_id, [])
                if video_id not in labels or frame != len(frames) + 1:
                    raise ValueError(
                        f"video {video_id} is in no list, or its frames are not 1, 2, 3, …"
                    )
            except ValueError as error:
                raise RefusedError(f"{path}:{number}: {error}") from None
            frames.append((label, intensity))
    return {
        video_id: (
            np.array([label - 1 for label, _ in frames], np.int8),
            np.array([intensity for _, intensity in frames], np.float32),
        )
        for video_id, frames in rows.items()
    }


def _parse_frame(line: str, classes: int) -> tuple[str, int, int, float]:
    """``00001,12,3,0.5``: video, frame, label, intensity; raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9.eE+-]{1,32})", line)
    if found is None:
        raise ValueError(f"{line[:SHOWN_LETTERS]!r} is not a row; expected {FRAMES_HEADER}")
    label, intensity = int(found[3]), float(found[4])
    if label > classes or not 0 <= intensity <= 1:
        raise ValueError(
            f"label {label}, intensity {intensity:g}; expected labels from 0 to {classes} and "
            "intensities from 0 to 1"
        )
    return found[1], int(found[2]), label, intensity
