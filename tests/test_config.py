"""Settings: presets, overrides and the messages for what is wrong."""

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
    ],
)
def test_wrong_setting_is_refused_with_the_remedy(override: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        load_method("paper", [override])


def test_config_file_is_read_and_its_errors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[temporal]\r\nfine_depth = 2\r\n")
    assert load_method(path).temporal.fine_depth == 2
    path.write_text("[temporal\n")
    with pytest.raises(RefusedError, match=r"mine\.toml: not valid TOML"):
        load_method(path)
    path.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(RefusedError, match=r"1048578 bytes, expected at most 1048576"):
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
    paper, equations, dfer_clip = (load_method(name) for name in PRESETS)
    assert (equations.prompts.fine_text, equations.prompts.coarse_learnable) == (
        "descriptors",
        True,
    )
    assert equations.temporal == paper.temporal
    assert (dfer_clip.temporal.fine_depth, dfer_clip.label.fusion) == (0, "none")
    assert dfer_clip.optimiser == paper.optimiser


def test_concatenated_visual_prompt_needs_the_mlp() -> None:
    with pytest.raises(RefusedError, match="concat needs fusion mlp"):
        load_method("paper", ["label.visual_prompt=concat", "label.fusion=none"])
