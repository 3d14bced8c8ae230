"""What ``make test-fast`` leaves out: the slow, and whatever would start a process."""

import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from support.commands import python


@pytest.mark.slow
def test_that_is_slow() -> None:
    pass


def test_that_starts_a_process() -> None:
    subprocess.run(["true"], check=True)


def test_that_starts_a_pool() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(abs, -1).result() == 1


def test_fast_leaves_these_out_and_says_why() -> None:
    names = ("is_slow", "starts_a_process", "starts_a_pool")
    done = python("-m", "pytest", "--fast", "-rs", *(f"{__file__}::test_that_{n}" for n in names))
    reasons = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert [reason.split(": ")[1] for reason in reasons] == ["slow", "starts a process"]
    assert "3 skipped" in done.stdout
