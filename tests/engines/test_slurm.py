"""What ``--engine slurm`` says before and while its jobs wait."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("submitit", reason="no submitit; it is in the extra tgdfer[slurm]")

from cache.errors import RefusedError
from pipeline.engines.slurm import Slurm, _say_why_all_wait


def test_folder_whose_name_sbatch_would_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="sbatch puts something else in the place of %"):
        Slurm(tmp_path / "runs%j", {})


def test_each_reason_for_which_all_jobs_wait_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs: Any = [SimpleNamespace(id="7_0"), SimpleNamespace(id="7_1")]
    said = {"None"}
    waits = {"7_0": ("PD", "Resources"), "7_1": ("PD", "None")}
    _say_why_all_wait(jobs, waits, said)
    _say_why_all_wait(jobs, waits, said)
    _say_why_all_wait(jobs, waits | {"7_1": ("R", "None"), "7_0": ("PD", "Priority")}, said)
    _say_why_all_wait(jobs, {}, said)
    expected = "SLURM: all 2 waiting (Resources); Ctrl-C cancels them\n"
    assert capsys.readouterr().err == expected
