"""What is handed out: the wheel, the source archive, and what they say they need."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from support.commands import ROOT, python

ROOMS = ("cache", "pipeline", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distribution(text: str) -> str:
    """The name at the start of a requirement, spelt one way."""
    return re.split(r"[^\w.-]", text)[0].lower().replace("_", "-")


DECLARED = {distribution(text) for text in PROJECT["dependencies"]}
EXTRAS = {
    distribution(text)
    for name, texts in PROJECT["optional-dependencies"].items()
    if name != "dev"
    for text in texts
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("built")
    done = python("-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


def room_files() -> set[str]:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in paths if path.suffix != ".pyc"}


def test_wheel_has_every_file_of_the_rooms_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {"tgdfer.py"} | room_files()
    data = {"presets/paper.toml", "datasets/texts.toml", "report/reported.toml", "py.typed"}
    data |= {f"report/page_files/page.{end}" for end in ("html", "css", "js")}
    mini = {"open_clip_config.json", "open_clip_model.safetensors"}
    for name in data | {f"encoders/mini/{file}" for file in mini}:
        assert f"pipeline/{name}" in names


def test_wheel_works_where_there_is_no_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import tgdfer, pipeline\n"
        "from pipeline.config import load_method\n"
        "from pipeline.datasets.texts import class_texts\n"
        "from pipeline.encoders.clip import find_encoder\n"
        "load_method('paper'); class_texts(('happiness', 'sadness'))\n"
        "print(find_encoder('mini').weights_path, pipeline.__file__)"
    )
    done = python("-I", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())


def test_source_archive_has_what_building_and_testing_need(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = ["pyproject.toml", "Makefile", "constraints.txt", "README.md", "LICENSE", ".ci/run"]
    folders = (ROOT / name for name in ("tests", "docs", "benchmarks"))
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    needed += [str(path.relative_to(ROOT)) for path in paths if path.suffix != ".pyc"]
    assert names >= {"tgdfer.py", *room_files(), *needed}


def imported() -> set[str]:
    """Top-level modules of others that the source imports anywhere."""
    names = set()
    for path in [ROOT / "tgdfer.py", *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    ours = {*ROOMS, "tgdfer", "benchmarks"}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ours


def test_every_dependency_is_imported_and_every_import_is_a_dependency() -> None:
    homes = importlib.metadata.packages_distributions()
    used = {distribution(home) for name in imported() for home in homes.get(name, [name])}
    # triton comes with torch; the others are extras, and whoever lacks them is told.
    assert used - {"triton", "aiohttp"} - EXTRAS == DECLARED


def test_editable_wheel_points_at_the_checkout_and_copies_nothing(tmp_path: Path) -> None:
    command = ("-m", "hatchling", "build", "-t", "wheel:editable", "-d", tmp_path)
    done = python(*command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
        assert names == ["_tgdfer.pth"]
        assert file.read("_tgdfer.pth").decode().strip() == str(ROOT)


def test_installed_command_starts_from_any_folder(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("tgdfer")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([command, "--version"], cwd=tmp_path, env=clean, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"tgdfer ")
