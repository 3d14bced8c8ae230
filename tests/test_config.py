"""Settings: presets, overrides and the messages for what is wrong."""

import os
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.config import PRESETS, MethodConfig, known_keys, load_method


def test_paper_preset_states_every_setting_and_equals_the_defaults() -> None:
    import tomllib
    from importlib.resources import files

    text = files("pipeline").joinpath("presets/paper.toml").read_text()
    written = tomllib.loads(text)
    flat = {f"{table}.{key}" for table, values in written.items() for key in values}
    assert flat == set(known_keys())
    assert load_method() == MethodConfig()


def test_overrides_are_parsed_as_toml_and_bare_words_as_text() -> None:
    method = load_method(
        "paper", ["temporal.window=8", "optimiser.lr = 1e-3", "prompts.context=shared"]
    )
    assert method.temporal.window == 8
    assert method.optimiser.lr == 0.001
    assert method.prompts.context == "shared"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("temporal.windw=8", r"unknown setting temporal\.windw; did you mean temporal\.window\?"),
        ("window=8", r"unknown setting window; did you mean"),
        ("temporal.window", r"expected KEY=VALUE, e\.g\. --set temporal\.window=8"),
        ("temporal.window=0", r"temporal\.window = 0: .*greater than or equal to 1"),
        ("optimiser.lr=nan", r"optimiser\.lr = nan: .*finite"),
        ("prompts.context=both", r"prompts\.context = 'both': .*'class_specific' or 'shared'"),
        ("optimiser.lr.x=1", r"lr is a value, not a table"),
        ("optimiser.epochs=true", r"optimiser\.epochs = True: .* valid integer"),
        ("optimiser.epochs='3'", r"optimiser\.epochs = '3': .* valid integer"),
        ("optimiser.milestones=[0.5, true]", r"milestones\.1 = True: .* valid number"),
        ("optimiser.milestones=[-0.5, 0.8]", r"milestones has -0\.5, expected fractions"),
        ("optimiser.lr=1e999", r"optimiser\.lr = inf: .*finite"),
        ("optimiser.epochs=1" + "0" * 99, r"epochs = 10000.*\.\.\..*: .*or equal to 10000"),
        ("optimiser.epochs=" + "1" * 5000, r"^optimiser\.epochs=1111.*…: 5017 characters"),
        ("optimiser.lr=0x" + "f" * 1900, r"optimiser\.lr = .*: .*valid number"),
        ("optimiser.lr=" + "[" * 1500, r"--set optimiser\.lr: not valid TOML: nested too deeply"),
        ("optimiser.lr=" + "[" * 80 + "]" * 80, r"lr = \[+\.\.\.\]+: .*valid number"),
        ("optimiser.lr=1\nother=2", r"optimiser\.lr = '1\\nother=2'"),
        ("head.kind=mpl", r"^--set: head\.kind = 'mpl': .* or 'logo_former'; did you mean mlp\?$"),
        ("optimiser.milestones=['a']", r"^--set: optimiser\.milestones\.0 = 'a': .* valid number"),
        ("a.b=1", r"^--set: unknown setting a; known: "),
        ("temporal.window=1001", r"less than or equal to 1000"),
        ("label.temperature=1e-300", r"greater than or equal to 0\.0001"),
    ],
)
def test_wrong_setting_is_refused_with_the_remedy(override: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        load_method("paper", [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = " + b"[" * 5000, "mine.toml: not valid TOML: nested too deeply"),
        (b"a = " + b"1" * 5000, "mine.toml: a number of more digits than can be read"),
        (b"optimiser.lr = 0x" + b"f" * 5000, "optimiser.lr = a huge number: .*valid number"),
        (b"a = 1\nb = '\xe9'\n", "mine.toml:2: byte 0xe9 is no text; save the file as UTF-8"),
        ("a = 1".encode("utf-16"), "mine.toml:1: byte 0xff is no text"),
        (b"a = 1\n\0", "mine.toml:2: byte 0x00 is no text"),
    ],
)
def test_hostile_file_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RefusedError, match=message):
        load_method(tmp_path / "mine.toml")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(RefusedError, match=r"cannot be read \(.*presets paper, equations"):
            load_method(path)


def test_config_file_is_read_and_its_errors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[temporal]\r\nfine_depth = 2\r\n")
    assert load_method(path).temporal.fine_depth == 2
    path.write_text("[temporal\n")
    with pytest.raises(RefusedError, match=r"mine\.toml: not valid TOML"):
        load_method(path)
    path.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(RefusedError, match=r"more than 1048576 bytes.*expected a TOML"):
        load_method(path)
    with pytest.raises(
        RefusedError, match=r"none\.toml: cannot be read .*presets paper, equations"
    ):
        load_method(tmp_path / "none.toml")


def test_milestones_are_fractions_or_epochs_and_refused_beyond_the_end() -> None:
    assert load_method().optimiser.decays() == (30, 40)
    assert load_method("paper", ["optimiser.epochs=3"]).optimiser.decays() == (2, 2)
    absolute = ["optimiser.epochs=20", "optimiser.milestones=[12, 0.8]"]
    assert load_method("paper", absolute).optimiser.decays() == (12, 16)
    assert load_method("paper", ["optimiser.milestones=[]"]).optimiser.decays() == ()
    with pytest.raises(
        RefusedError, match=r"milestone 30 is not before the end of 3 .*\[0\.6, 0\.8\]"
    ):
        load_method("paper", ["optimiser.epochs=3", "optimiser.milestones=[30, 40]"])
    with pytest.raises(RefusedError, match="milestone 3 is not before the end of 3"):
        load_method("paper", ["optimiser.epochs=3", "optimiser.milestones=[3]"])
    for wrong in ("[-1]", "[1.5]", "[0]"):
        with pytest.raises(RefusedError, match=r"expected fractions of the epochs"):
            load_method("paper", [f"optimiser.milestones={wrong}"])


def test_precision_follows_the_kind_of_device_unless_it_is_given() -> None:
    auto, given = load_method(), load_method("paper", ["optimiser.precision=bf16"])
    assert (
        auto.optimiser.resolved_precision("cpu"),
        auto.optimiser.resolved_precision("cuda"),
    ) == ("fp32", "bf16")
    assert given.optimiser.resolved_precision("cpu") == "bf16"


def test_presets_differ_where_they_say_they_do() -> None:
    paper, equations, dfer_clip, tuned = (load_method(name) for name in PRESETS)
    assert (equations.prompts.fine_text, equations.prompts.coarse_learnable) == (
        "descriptors",
        True,
    )
    assert equations.temporal == paper.temporal
    assert (dfer_clip.temporal.fine_depth, dfer_clip.label.fusion) == (0, "none")
    assert dfer_clip.optimiser == paper.optimiser
    assert tuned.prompts == paper.prompts
    assert (tuned.input.scale, tuned.optimiser.kind) == ("layer_norm", "adamw")


def test_concatenated_visual_prompt_needs_the_mlp() -> None:
    with pytest.raises(RefusedError, match="concat needs fusion mlp"):
        load_method("paper", ["label.visual_prompt=concat", "label.fusion=none"])


def test_a_wrong_file_is_told_from_a_wrong_override(tmp_path: Path) -> None:
    wrong = tmp_path / "own.toml"
    wrong.write_text('[head]\nkind = "mpl"\n')
    with pytest.raises(
        RefusedError, match=r"own\.toml: head\.kind = 'mpl': .* did you mean mlp\?$"
    ):
        load_method(wrong, ["temporal.window=8"])
    with pytest.raises(RefusedError, match=r"own\.toml and --set: .*head\.kind"):
        load_method(wrong, ["temporal.window=1001"])
    with pytest.raises(RefusedError, match=r"^--set: head\.kind = 'MPL': "):
        load_method(wrong, ["head.kind=MPL"])
