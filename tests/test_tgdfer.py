"""The network against a slow float64 oracle written from the equations, outputs and gradients."""

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from material import CLASSES, text_config, text_weights

from cache.errors import RefusedError
from pipeline.model.config import LabelConfig, PromptConfig, TemporalConfig
from pipeline.model.prompts import class_texts
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.model.tgdfer import TGDFER

T, D, B, R = 16, 12, 2, 2
HEADS = 3
# (window, stride) of the paper's Table 4; "stride X" means windows side by side.
WINDOWS = [(2, 2), (4, 4), (8, 8), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (4, 3)]
DEPTHS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> TextTower:
    path = tmp_path_factory.mktemp("tower") / "text.safetensors"
    config = text_config(D)
    path.write_bytes(text_weights(config))
    return load_text_tower(path, config).double()


def make_model(
    tower: TextTower, seeds: tuple[int, ...] = (0, 1), tau: float = 0.1, **temporal: Any
) -> TGDFER:
    model = TGDFER(
        [torch.Generator().manual_seed(seed) for seed in seeds],
        tower,
        class_texts(CLASSES),
        T,
        D,
        TemporalConfig(head_size=D // HEADS, **temporal),
        PromptConfig(context_length=2),
        LabelConfig(temperature=tau),
    ).double()
    with torch.no_grad():  # far from the special values that layers start at
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.manual_seed(len(name))
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(R, B, T, D, generator=generator, dtype=torch.float64)
    return features, torch.tensor([[0, 6], [3, 2]])


def weights_of(model: TGDFER, run: int) -> dict[str, np.ndarray]:
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {name: value.detach()[run].numpy().copy() for name, value in learned.items()}


def texts_of(model: TGDFER, run: int) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return model.fine()[run].numpy(), model.coarse()[0].numpy()


def oracle_loss(weights: dict[str, np.ndarray], model: TGDFER, run: int, **options: Any) -> float:
    features, targets = inputs()
    fine, coarse = texts_of(model, run)
    losses = [
        oracle.cross_entropy(
            oracle.tgdfer(features[run, b].numpy(), fine, coarse, weights, **options)[0],
            int(targets[run, b]),
        )
        for b in range(B)
    ]
    return sum(losses)


CASES = [(window, depths) for window in WINDOWS for depths in [(1, 1)]]
CASES += [((4, 1), depths) for depths in DEPTHS]


@pytest.mark.parametrize(("window", "depths"), CASES)
def test_network_equals_the_oracle_in_outputs_and_gradients(
    tower: TextTower, window: tuple[int, int], depths: tuple[int, int]
) -> None:
    fine, coarse = depths
    model = make_model(
        tower, window=window[0], stride=window[1], fine_depth=fine, coarse_depth=coarse
    )
    options = {"window": window[0], "stride": window[1], "depths": depths}
    options |= {"heads": HEADS, "tau": 0.1}
    features, targets = inputs()
    out = model(features)
    loss = torch.nn.functional.cross_entropy(
        out.logits_RBK.flatten(0, 1), targets.flatten(), reduction="sum"
    )
    loss.backward()
    for r in range(R):
        texts, weights = texts_of(model, r), weights_of(model, r)
        for b in range(B):
            bag, frames = oracle.tgdfer(features[r, b].numpy(), *texts, weights, **options)
            np.testing.assert_allclose(out.logits_RBK[r, b].detach(), bag, atol=1e-9)
            np.testing.assert_allclose(out.frame_logits_RBTK[r, b].detach(), frames, atol=1e-9)
    check_gradients(model, run=1, options=options)


def check_gradients(model: TGDFER, run: int, options: dict[str, Any]) -> None:
    """Central differences of the oracle along one random direction of every parameter."""
    weights = weights_of(model, run)
    generator = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name == "fine.context_RCW":
            continue
        direction = generator.standard_normal(weights[name].shape)
        direction /= np.linalg.norm(direction)
        losses = [
            oracle_loss(weights | {name: weights[name] + step * direction}, model, run, **options)
            for step in (1e-5, -1e-5)
        ]
        assert parameter.grad is not None, name
        expected = (losses[0] - losses[1]) / 2e-5
        got = float((parameter.grad[run].numpy() * direction).sum())
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_context_gradient_equals_differences_of_the_oracle(tower: TextTower) -> None:
    model = make_model(tower)
    features, targets = inputs()
    logits = model(features).logits_RBK.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
    context = model.fine.context_RCW
    direction = torch.randn(context.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    losses = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            context[0] += step * direction
            losses.append(oracle_loss(weights_of(model, 0), model, 0, heads=HEADS, tau=0.1))
            context[0] -= step * direction
    got = float((context.grad[0] * direction).sum())
    assert got == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


def test_label_without_visual_prompt_equals_the_oracle(tower: TextTower) -> None:
    model = make_model(tower)
    model.label.config = LabelConfig(visual_prompt="none", temperature=0.1)
    features, _ = inputs()
    expected, _ = oracle.tgdfer(
        features[0, 0].numpy(),
        *texts_of(model, 0),
        weights_of(model, 0),
        heads=HEADS,
        tau=0.1,
        visual=False,
    )
    np.testing.assert_allclose(model(features).logits_RBK[0, 0].detach(), expected, atol=1e-9)


def test_a_run_in_a_stack_equals_the_same_run_alone(tower: TextTower) -> None:
    features, _ = inputs()
    stack = make_model(tower, seeds=(5, 6))(features).logits_RBK
    # make_model shakes every parameter alike, so only the seeds tell the runs apart.
    for r, seed in enumerate((5, 6)):
        alone = make_alone(tower, seed, r)(features[r : r + 1]).logits_RBK
        np.testing.assert_allclose(stack[r].detach(), alone[0].detach(), atol=1e-11)
    assert not torch.allclose(stack[0], stack[1])


def make_alone(tower: TextTower, seed: int, run: int) -> TGDFER:
    model = make_model(tower, seeds=(seed,))
    pair = make_model(tower, seeds=(5, 6))
    with torch.no_grad():
        for own, both in zip(model.parameters(), pair.parameters(), strict=True):
            if own.requires_grad:
                own.copy_(both[run : run + 1])
    return model


def test_initial_weights_do_not_depend_on_the_stack(tower: TextTower) -> None:
    def weights(*seeds: int) -> dict[str, torch.Tensor]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        texts, config = class_texts(CLASSES), TemporalConfig(head_size=4)
        model = TGDFER(generators, tower, texts, T, D, config, PromptConfig(), LabelConfig())
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    alone, stack = weights(7), weights(3, 7, 9)
    for name, value in alone.items():
        assert torch.equal(value[0], stack[name][1]), name


@pytest.mark.parametrize(("window", "stride"), [(5, 2), (17, 1), (4, 5), (6, 4)])
def test_windows_that_leave_gaps_are_refused(window: int, stride: int) -> None:
    with pytest.raises(RefusedError, match=r"do not cover 16 frames.*temporal\.stride"):
        TemporalConfig(window=window, stride=stride).window_starts(16)


def test_head_size_that_does_not_divide_the_features_is_refused() -> None:
    assert TemporalConfig().heads(512) == 8
    assert TemporalConfig().heads(32) == 1
    with pytest.raises(RefusedError, match=r"head_size=64 does not divide 100"):
        TemporalConfig().heads(100)
