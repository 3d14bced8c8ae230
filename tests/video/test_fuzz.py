"""Thousands of mutated images and videos: each gives frames or one reason, in time and memory."""

import json
import os
from pathlib import Path

import pytest

from support.commands import python
from support.fuzz import IMAGES, VIDEOS

SEED = 10
CASES = int(os.environ.get("TGDFER_FUZZ", "10000"))  # 10,000 take about 12 CPU seconds
PEAK_KIB = 1 << 20


@pytest.mark.slow
def test_mutated_images_and_videos_give_frames_or_a_reason(tmp_path: Path) -> None:
    done = python("-m", "support.fuzz", SEED, CASES, tmp_path, timeout=CASES)
    *cases, last = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {SEED}, case {last}: {done.returncode}\n{done.stderr}"
    assert cases == [str(case) for case in range(CASES)]
    summary = json.loads(last)
    assert summary["peak_kib"] < PEAK_KIB
    assert done.stderr == ""  # a decoder that warns would fill the terminal
    # Each kind reaches its decoder: some mutations are harmless, some are not.
    for name in [*IMAGES, *VIDEOS]:
        assert set(summary["outcomes"][name]) == {"frames", "refused"}, name
