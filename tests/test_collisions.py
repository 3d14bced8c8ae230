"""A user's own cache.py, pipeline.py or cli.py is named, instead of a riddle."""

from pathlib import Path

import pytest

from support.commands import python

NAMES = ("cache", "pipeline", "cli")


@pytest.mark.parametrize("name", NAMES)
def test_file_beside_a_notebook_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("")
    done = python("-c", "import tgdfer", cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / name}.py is in the way: tgdfer has its own")


def test_package_beside_a_script_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").write_text("")
    (tmp_path / "study.py").write_text("import tgdfer")
    done = python("study.py", cwd=tmp_path)
    assert f"{tmp_path / 'pipeline/__init__.py'} is in the way" in done.stderr


def test_module_that_was_imported_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/cache.py").write_text("")
    script = "import sys; sys.path.insert(0, 'own'); import cache; sys.path.pop(0); import tgdfer"
    done = python("-c", script, cwd=tmp_path)
    assert "own/cache.py is in the way" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_command_says_it_in_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("")
    done = python("-m", "tgdfer", "extract", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / name}.py is in the way")
    assert len(done.stderr.splitlines()) == 1


def test_our_own_packages_are_imported_without_complaint(tmp_path: Path) -> None:
    script = "import cache, pipeline, tgdfer; print('imported')"
    assert python("-c", script, cwd=tmp_path).stdout == "imported\n"
