"""What the doctor says of a machine, and of machines that lack something."""

import json
from pathlib import Path

from cli.doctor import check_modules, check_videos
from pipeline.resources import cpu_quotas, memory_limits, usable_cores
from support.commands import python, tgdfer


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_json_has_a_row_for_everything_and_finds_cached_weights(tmp_path: Path) -> None:
    model = "models--timm--vit_base_patch32_clip_224.openai"
    weights = f"{model}/snapshots/1a2b/open_clip_model.safetensors"
    write(tmp_path / "hub", {f"{model}/refs/main": "1a2b", weights: "weights"})
    (tmp_path / "place").mkdir()
    options = ["--path", "place", "--json"]
    hub = str(tmp_path / "hub")
    done = python("-m", "tgdfer", "doctor", *options, cwd=tmp_path, env={"HF_HUB_CACHE": hub})
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    names = "python modules torch device triton videos jpeg disk locks memory cores mini weights"
    assert list(rows) == names.split()
    assert rows["weights"]["status"] == "ok"
    assert rows["weights"]["found"].endswith(weights)
    assert "h264" in rows["videos"]["found"]
    assert str(tmp_path / "place") in rows["disk"]["found"]
    assert all(bool(row["remedy"]) == (row["status"] != "ok") for row in rows.values())
    assert list((tmp_path / "place").iterdir()) == []


def test_folder_that_cannot_be_used_fails_with_exit_code_1(tmp_path: Path) -> None:
    options = ["--path", "nowhere", "--json"]
    done = tgdfer("doctor", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    failed = {name for name, row in rows.items() if row["status"] == "fail"}
    assert failed == {"disk", "locks"}
    assert "nowhere" in rows["disk"]["found"]
    assert "--path" in rows["disk"]["remedy"]


def test_files_that_hide_our_packages_are_named(tmp_path: Path) -> None:
    assert check_modules([tmp_path]).status == "ok"
    write(tmp_path, {"cache.py": "", "cli/__init__.py": "", "pipeline/notes.txt": ""})
    found = check_modules([tmp_path, tmp_path])
    assert found.status == "warn"
    assert found.found.startswith(f"{tmp_path / 'cache.py'}, {tmp_path / 'cli/__init__.py'} can")


def test_missing_decoder_is_a_warning() -> None:
    found = check_videos(("h264", "no_such_decoder"))
    assert found.status == "warn"
    assert found.found.endswith("without no_such_decoder")


def test_limits_of_cgroups_of_version_2_and_of_those_above(tmp_path: Path) -> None:
    files = {
        "own": "0::/job/step\n",
        "job/memory.max": "2147483648\n",
        "job/step/memory.max": "max\n",
        "job/step/cpu.max": "150000 100000\n",
        "job/cpu.max": "max 100000\n",
        "other/memory.max": "1\n",
    }
    write(tmp_path, files)
    assert memory_limits(tmp_path, tmp_path / "own") == [2147483648]
    assert cpu_quotas(tmp_path, tmp_path / "own") == [1.5]


def test_limits_of_cgroups_of_version_1_seen_from_a_container(tmp_path: Path) -> None:
    files = {
        "own": "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        "memory/memory.limit_in_bytes": "1073741824\n",
        "cpu/cpu.cfs_quota_us": "50000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    write(tmp_path, files)
    assert memory_limits(tmp_path, tmp_path / "own") == [1073741824]
    assert cpu_quotas(tmp_path, tmp_path / "own") == [0.5]
    assert usable_cores(tmp_path, tmp_path / "own") == 1


def test_cgroups_without_limits(tmp_path: Path) -> None:
    files = {
        "own": "0::/\n9:memory:/\n4:cpu,cpuacct:/\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    write(tmp_path, files)
    assert memory_limits(tmp_path, tmp_path / "own") == []
    assert cpu_quotas(tmp_path, tmp_path / "own") == []
