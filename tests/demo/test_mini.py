"""The bundled encoder: what it scores, what its card says, who it was trained on."""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.datasets.dfew import CLASSES
from pipeline.demo import train_mini
from pipeline.demo.face import UNITS, Person, draw_person
from pipeline.demo.faces import FacesSpec
from pipeline.demo.train_mini import (
    FLOORS,
    MINI,
    MOVEMENTS,
    NAMES,
    TEST_STREAM,
    TRAIN_STREAM,
    class_prompts,
    draw_stills,
    write_caption,
    zero_shot,
)

WEIGHTS = MINI / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((MINI / "zero_shot.json").read_text())


@pytest.mark.slow
def test_zero_shot_stays_above_the_floors_on_people_it_never_saw() -> None:
    accuracy = zero_shot(MINI, per_class=50)["accuracy"]
    for name, floor in FLOORS.items():
        assert accuracy[name] >= floor


def test_the_recorded_figures_are_of_these_weights_these_prompts_and_above_the_floors(
    record: dict[str, Any],
) -> None:
    assert record["weights_sha256"] == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert record["prompts"] == class_prompts()
    assert record["test_stills"] == 1400
    for name, floor in FLOORS.items():
        assert record["accuracy"][name] >= floor


def test_the_card_quotes_the_recorded_figures(record: dict[str, Any]) -> None:
    card = (MINI / "README.md").read_text()
    for kind, value in record["accuracy"].items():
        assert re.search(rf"\| `{kind}` \|.*\| {value:.3f} \|", card), kind
    assert record["machine"] in card
    assert f"{record['training_seconds']} s" in card


def test_weights_are_small_half_precision_and_loaded_as_float32() -> None:
    assert WEIGHTS.stat().st_size < 10_000_000
    stored = load_file(WEIGHTS)
    floating = [value for value in stored.values() if value.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.float16}
    assert all(bool(torch.isfinite(value).all()) for value in floating)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{MINI}")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.text_projection.shape == (64, 64)
    assert model.visual.image_size == 64
    assert "bicubic" in str(preprocess)


def test_training_and_test_people_are_not_the_face_sets_people() -> None:
    people: dict[str, set[Person]] = {"train": set(), "test": set(), "set": set()}
    for number in range(200):
        people["train"].add(draw_person(np.random.default_rng([number, TRAIN_STREAM])))
        people["test"].add(draw_person(np.random.default_rng([number, TEST_STREAM])))
        for seed in range(12):
            people["set"].add(draw_person(np.random.default_rng([seed, 3, number])))
    assert not people["train"] & people["test"]
    assert not people["set"] & (people["train"] | people["test"])


def test_stills_are_balanced_in_the_test_stream_and_do_not_depend_on_the_workers() -> None:
    alone = draw_stills(TEST_STREAM, 21)
    assert np.bincount(alone.expression_N).tolist() == [3] * 7
    shared = draw_stills(TEST_STREAM, 21, workers=2)
    assert np.array_equal(alone.pixels_NHWC, shared.pixels_NHWC)
    assert alone.pixels_NHWC.shape == (21, 64, 64, 3)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from(range(len(CLASSES))))
def test_a_caption_names_no_other_expression(seed: int, expression: int) -> None:
    units_U = np.zeros(len(UNITS))
    caption = write_caption(np.random.default_rng(seed), units_U, expression)
    others = [word for name in CLASSES if name != CLASSES[expression] for word in NAMES[name]]
    if expression != CLASSES.index("neutral"):
        others.remove("calm")  # calm eyes are a movement's absence, said of any face at rest
    words = set(re.findall(r"\w+", caption))
    assert not words & set(others)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from(UNITS))
def test_a_caption_of_one_movement_says_that_movement(seed: int, unit: int) -> None:
    units_U = np.zeros(len(UNITS))
    units_U[UNITS.index(unit)] = 0.8
    caption = write_caption(np.random.default_rng(seed), units_U, -1)
    assert any(phrase in caption for phrase in MOVEMENTS[unit])


def test_text_without_padding_encodes_as_open_clip_encodes_it() -> None:
    model = open_clip.create_model(f"local-dir:{MINI}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{MINI}")(class_prompts()["sentences"])
    with torch.inference_mode():
        expected = model.encode_text(tokens)
        torch.testing.assert_close(train_mini._encode_text(model, tokens), expected)


def test_class_texts_have_four_movements_per_class_in_the_data_sets_order() -> None:
    texts = tomllib.loads(train_mini.TEXTS.read_text("utf-8"))
    assert tuple(texts["seven"]) == CLASSES
    assert len(texts["eleven"]) == 11
    for table in ("seven", "eleven"):
        for name, entry in texts[table].items():
            assert entry["name"] == name
            assert len(entry["descriptors"].split(", ")) == 4
    assert tuple(texts["order"]) == FacesSpec(setting="long").classes
    for name, entry in texts["order"].items():
        assert entry["name"] == name.replace("-", ", then ")


@pytest.mark.slow
def test_a_training_run_writes_a_loadable_model_and_refuses_it_below_the_floors(
    tmp_path: Path,
) -> None:
    sizes = ["--stills", "48", "--steps", "2", "--batch", "16", "--test-per-class", "2"]
    with pytest.raises(SystemExit, match="below the floor"):
        train_mini.main(["--out", str(tmp_path), "--workers", "1", "--threads", "1", *sizes])
    assert zero_shot(tmp_path, per_class=2)["test_stills"] == 14
    assert json.loads((tmp_path / "zero_shot.json").read_text())["steps"] == 2


def test_help_names_every_option() -> None:
    command = [sys.executable, "-m", "pipeline.demo.train_mini", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--out", "--stills", "--steps", "--batch", "--lr", "--seed", "--threads"):
        assert option in text
