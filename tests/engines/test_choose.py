"""``--engine``, ``--gpus``, ``--engine-set`` and ``[engine]`` of a TOML file -> a choice."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.engines.choose import EngineChoice, choose_engine

OURS = """
[engine]
name = "ray"
gpus = 8
[engine.settings]
num-cpus = 4
num-gpus = 0.5
accelerator-type = "H200"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(OURS)
    return path


@pytest.mark.skipif(find_spec("ray") is None, reason="no Ray; it is in the extra tgdfer[ray]")
def test_command_line_wins_over_a_file(file: Path) -> None:
    theirs = {"num-cpus": "4", "num-gpus": "0.5", "accelerator-type": "H200"}
    assert choose_engine(str(file), None, [], "cuda") == EngineChoice("ray", 8, theirs)
    given = ["num-cpus=2", "tasks=3"]
    mixed = theirs | {"num-cpus": "2", "tasks": "3"}
    assert choose_engine(str(file), 1, given, "cuda") == EngineChoice("ray", 1, mixed)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("[engine]", "[engines]", "engines: Extra inputs are not permitted"),
        ('name = "ray"', "", "engine.name: Field required"),
        ('"ray"', '"rey"', "engine.name: Input should be 'local', 'slurm' or 'ray'"),
        ("gpus = 8", "gpus = 0", "engine.gpus: Input should be greater than or equal to 1"),
        ("gpus = 8", "gpu = 8", "engine.gpu: Extra inputs are not permitted"),
        ('"H200"', '["H200"]', "engine.settings.accelerator-type"),
        ('"H200"', '"H 200"', "toml accelerator-type=H 200: expected a type of GPU"),
        ("num-cpus", "cpus", "toml cpus=4: expected KEY=VALUE"),
        ("gpus = 8", "gpus = ", "not valid TOML"),
    ],
)
def test_file_that_says_something_else_is_refused(
    file: Path, ours: str, theirs: str, said: str
) -> None:
    file.write_text(OURS.replace(ours, theirs, 1))
    with pytest.raises(RefusedError, match=said.replace("[", r"\[")):
        choose_engine(str(file), None, [], "cuda")


@pytest.mark.parametrize("option", ["array=0-3", "output=here", "wrap=true"])
def test_options_by_which_the_jobs_are_found_again_are_refused(option: str) -> None:
    with pytest.raises(RefusedError, match=rf"{option}: the command itself says "):
        choose_engine("slurm", 1, [option], "cuda")


def test_setting_of_a_cluster_is_not_read_on_this_machine(file: Path) -> None:
    file.write_text(OURS.replace('"ray"', '"local"'))
    with pytest.raises(RefusedError, match="num-cpus is a setting of a cluster"):
        choose_engine(str(file), None, [], "cuda")


def test_time_needs_no_quotes_in_a_file_and_cores_are_those_that_are_reserved(file: Path) -> None:
    pytest.importorskip("submitit", reason="no submitit; it is in the extra tgdfer[slurm]")
    if shutil.which("sbatch") is None:
        pytest.skip("no sbatch here")
    file.write_text('[engine]\nname = "slurm"\nsettings = {time = 04:00:00, cpus-per-task = 3}\n')
    chosen = choose_engine(str(file), None, [], "cpu")
    assert chosen.settings == {"time": "04:00:00", "cpus-per-task": "3"}
    assert (chosen.cores(1), EngineChoice("slurm").cores(2)) == (3, 2)
    assert EngineChoice("ray", None, {"num-cpus": "0.5"}).cores(4) == 1
