"""Presets as the command line shows them."""

from pathlib import Path

import pytest

from pipeline.config import PRESETS, known_keys, load_method
from support.commands import tgdfer


def test_list_says_what_each_preset_is(tmp_path: Path) -> None:
    done = tgdfer("config", "list", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.stderr == "next: tgdfer config show paper\n"
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert lines[0].endswith("arXiv 2511.10958: the setting of its headline result.")


def test_show_has_a_line_with_a_meaning_for_every_setting(tmp_path: Path) -> None:
    head, *lines = tgdfer("config", "show", "dfer-clip", cwd=tmp_path).stdout.splitlines()
    start, end = head.index("meaning"), head.index("type")
    assert [line.split()[0] for line in lines] == known_keys()
    assert all(line[start:end].strip() for line in lines)
    rows = {line.split()[0]: line for line in lines}
    assert rows["temporal.fine_depth"].endswith("int >= 0, <= 12; default 1")
    assert rows["temporal.fine_depth"].split()[1] == "0"
    assert rows["label.fusion"].endswith('mlp|none; default "mlp"')
    assert rows["temporal.norm"].endswith("pre|post")
    assert rows["optimiser.gamma"].endswith("float > 0, <= 1")


def test_show_takes_changes_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[temporal]\nwindow = 8\n")
    changed = ["mine.toml", "--set", "prompts.context=shared"]
    text = tgdfer("config", "show", *changed, cwd=tmp_path).stdout
    assert ["temporal.window", "8"] in [line.split()[:2] for line in text.splitlines()]
    assert ["prompts.context", '"shared"'] in [line.split()[:2] for line in text.splitlines()]


@pytest.mark.parametrize("preset", PRESETS)
def test_toml_is_a_file_for_config(tmp_path: Path, preset: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(tgdfer("config", "show", preset, "--toml", cwd=tmp_path).stdout)
    assert load_method(file) == load_method(preset)
    assert file.read_text().count("#") >= len(known_keys())
