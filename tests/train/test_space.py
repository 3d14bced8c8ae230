"""Spaces of settings: what is drawn is in them and fits, what is wrong is refused."""

from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from pipeline.config import MethodConfig, load_method
from pipeline.train.space import read_space

PAPER = load_method()


def space_of(tmp_path: Path, text: str) -> str:
    (tmp_path / "space.toml").write_text(text)
    return str(tmp_path / "space.toml")


def test_default_space_draws_different_settings_that_fit_together() -> None:
    rng = np.random.default_rng(0)
    space = read_space("default")
    drawn = [space.draw(rng, PAPER) for _ in range(50)]
    assert len(set(drawn)) == 50
    assert {m.input.scale for m in drawn} == {"none", "layer_norm", "standardise", "whiten"}
    assert all(2 <= m.label.top_k <= 12 for m in drawn)
    assert all(0.01 <= m.label.temperature <= 0.2 for m in drawn)
    assert all(m.optimiser.epochs == PAPER.optimiser.epochs for m in drawn)


def test_ranges_are_inclusive_and_logarithmic_if_asked(tmp_path: Path) -> None:
    space = read_space(
        space_of(
            tmp_path,
            "[label]\ntop_k = {low = 2, high = 3}\n"
            "[optimiser]\nlr = {low = 0.0001, high = 1.0, log = true}\n"
            "[temporal]\ndropout = {low = 0.0, high = 0.5}\n",
        )
    )
    rng = np.random.default_rng(1)
    drawn = [space.draw(rng, PAPER) for _ in range(400)]
    assert {m.label.top_k for m in drawn} == {2, 3}
    assert np.median([m.optimiser.lr for m in drawn]) == pytest.approx(0.01, rel=0.5)
    assert np.mean([m.temporal.dropout for m in drawn]) == pytest.approx(0.25, abs=0.03)


def test_settings_that_do_not_fit_together_are_drawn_again(tmp_path: Path) -> None:
    text = '[temporal]\nnorm = ["pre", "post"]\ninit = ["random", "identity"]\n'
    space = read_space(space_of(tmp_path, text))
    rng = np.random.default_rng(2)
    found = {
        (m.temporal.norm, m.temporal.init) for m in (space.draw(rng, PAPER) for _ in range(99))
    }
    assert found == {("pre", "random"), ("pre", "identity"), ("post", "random")}
    never = read_space(space_of(tmp_path, '[temporal]\nnorm = ["post"]\n'))
    identity = MethodConfig.model_validate({"temporal": {"init": "identity"}})
    with pytest.raises(RefusedError, match="no settings of 1000 drawn"):
        never.draw(rng, identity)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty space"),
        ("[label]\ntop_k = [", "not valid TOML"),
        ("[label]\ntop_kk = [1]", "did you mean label.top_k"),
        ("top_k = [1]", "unknown setting top_k"),
        ("[label]\ntop_k = [0]", "label.top_k = 0"),
        ("[label]\ntop_k = []", "expected a list of values"),
        ("[label]\ntop_k = 3", "expected a list of values"),
        ("[label]\ntop_k = {low = 3, high = 2}", "expected a list of values"),
        ("[label]\ntop_k = {low = 3}", "expected a list of values"),
        ("[label]\ntop_k = {low = 3, high = 4, step = 1}", "expected a list of values"),
        ("[label]\ntemperature = {low = 0.0, high = 1.0, log = true}", "expected a list of values"),
        ("[label]\ntemperature = {low = 0.1, high = inf}", "expected a list of values"),
        ("[label]\ntemperature = {low = true, high = 2}", "expected a list of values"),
        ("[optimiser]\nepochs = [1]", "cannot be searched"),
        ("[selection]\nrule = ['last']", "cannot be searched"),
        ("[temporal]\nnorm = ['mid']", "temporal.norm = 'mid'"),
    ],
)
def test_broken_space_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    place = space_of(tmp_path, text)
    with pytest.raises(RefusedError) as refused:
        read_space(place)
    assert str(refused.value).startswith(place)
    assert said in str(refused.value)
