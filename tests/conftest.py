"""Fixtures of several tests, and where kernels run: on a GPU, else in Triton's interpreter."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks once, when it is first imported


@pytest.fixture
def gpu() -> torch.device:
    """A GPU; without one the test is skipped, or fails where TGDFER_REQUIRE_GPU=1 promises one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TGDFER_REQUIRE_GPU") == "1":
        pytest.fail("TGDFER_REQUIRE_GPU=1, but PyTorch finds no GPU")
    pytest.skip("no GPU")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is synced, in order."""
    paths: list[Path] = []

    def note(handle: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{handle}")))

    monkeypatch.setattr(os, "fsync", note)
    return paths
