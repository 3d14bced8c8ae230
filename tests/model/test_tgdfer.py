"""The network against a slow float64 oracle written from the equations, outputs and gradients."""

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cache.errors import RefusedError
from pipeline.config import (
    InputConfig,
    LabelConfig,
    MethodConfig,
    PromptConfig,
    TemporalConfig,
    load_method,
    stack_key,
)
from pipeline.datasets.texts import class_texts
from pipeline.model.network import NetworkSpec
from pipeline.model.scaling import Scale
from pipeline.model.temporal import TemporalNetwork
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.model.tgdfer import TGDFER
from support import oracle
from support.stores import CLASSES, text_config, text_weights

T, D, B, R = 16, 12, 2, 2
HEADS, TAU = 3, 0.1
# (window, stride) of the paper's Table 4; "stride X" means non-overlapping windows.
WINDOWS = [(2, 2), (4, 4), (8, 8), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (4, 3)]
POOLINGS = ["mean_feature", "mean_probability", "top_k", "log_sum_exp", "attention"]
DEPTHS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.fixture(scope="module")
def tower() -> TextTower:
    config = text_config(D)
    return load_text_tower(text_weights(config), config).double()


def make_model(
    tower: TextTower,
    seeds: tuple[int, ...] = (0, 1),
    temporal: Mapping[str, Any] | None = None,
    label: Mapping[str, Any] | None = None,
    scale: Scale = "none",
) -> TGDFER:
    method = MethodConfig(
        input=InputConfig(scale=scale),
        temporal=TemporalConfig(head_size=D // HEADS, **(temporal or {})),
        prompts=PromptConfig(context_length=2),
        label=LabelConfig(temperature=TAU, **(label or {})),
    )
    spec = NetworkSpec(
        [torch.Generator().manual_seed(seed) for seed in seeds],
        tower,
        class_texts(CLASSES),
        T,
        [method] * len(seeds),
    )
    model = TGDFER(spec).double()
    if scale == "standardise":  # by a mean of 0 and a deviation of 1
        model.input.scale_RD.fill_(1)
    with torch.no_grad():  # far from the special values that layers start at
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.manual_seed(len(name))
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs(size: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(R, B, T, size, generator=generator, dtype=torch.float64)
    return features, torch.tensor([[0, 6], [3, 2]])


def weights_of(model: TGDFER, run: int) -> dict[str, np.ndarray]:
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {name: value.detach()[run].numpy().copy() for name, value in learned.items()}


def texts_of(model: TGDFER, run: int) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return model.fine()[run].numpy(), model.coarse()[0].numpy()


def encoder_of(model: TGDFER, run: int) -> Any:
    """Text features with a visual token, from the tower that test_packing compares with CLIP's."""

    def encode(k: int, visual: np.ndarray) -> np.ndarray:
        visual_RBKD = torch.zeros(R, 1, len(CLASSES), D, dtype=torch.float64)
        visual_RBKD[run, 0, k] = torch.from_numpy(visual)
        with torch.no_grad():
            return model.fine.with_visual(visual_RBKD)[run, 0, k].numpy()

    return encode


def oracle_loss(
    weights: dict[str, np.ndarray], model: TGDFER, run: int, options: oracle.Options
) -> float:
    features, targets = inputs(model.size)
    fine, coarse = texts_of(model, run)
    losses = [
        oracle.cross_entropy(
            oracle.tgdfer(features[run, b].numpy(), fine, coarse, weights, options)[0],
            int(targets[run, b]),
        )
        for b in range(B)
    ]
    return sum(losses)


def check_model(model: TGDFER, options: oracle.Options) -> None:
    """Outputs of both runs; gradients of one, by differences of the oracle."""
    features, targets = inputs(model.size)
    out = model(features)
    logits = out.logits_RBK.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
    for r in range(R):
        options = replace(options, encode=encoder_of(model, r))
        texts, weights = texts_of(model, r), weights_of(model, r)
        for b in range(B):
            bag, frames = oracle.tgdfer(features[r, b].numpy(), *texts, weights, options)
            np.testing.assert_allclose(out.logits_RBK[r, b].detach(), bag, atol=1e-9)
            np.testing.assert_allclose(out.frame_logits_RBTK[r, b].detach(), frames, atol=1e-9)
    check_gradients(model, R - 1, options)


def check_gradients(model: TGDFER, run: int, options: oracle.Options) -> None:
    """Central differences of the oracle along a random direction of every layer's parameters."""
    generator = np.random.default_rng(0)
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for layer, own in groupby(learned, key=lambda pair: layer_of(pair[0])):
        directions = {}
        for name, parameter in own:
            direction = torch.from_numpy(generator.standard_normal(parameter.shape[1:]))
            directions[name] = direction / direction.norm()
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for name, direction in directions.items():
                    model.get_parameter(name)[run] += step * direction
                losses.append(oracle_loss(weights_of(model, run), model, run, options))
                for name, direction in directions.items():
                    model.get_parameter(name)[run] -= step * direction
        got = 0.0
        for name, direction in directions.items():
            grad = model.get_parameter(name).grad
            assert grad is not None, name
            got += float((grad[run] * direction).sum())
        expected = (losses[0] - losses[1]) / 2e-5
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-7), layer


def layer_of(parameter: str) -> str:
    """A transformer layer as a whole, or the module that holds a parameter."""
    layer = re.match(r".*layers\.\d+", parameter)
    return layer[0] if layer else parameter.rpartition(".")[0]


def test_the_papers_network_equals_the_oracle(tower: TextTower) -> None:
    check_model(make_model(tower), oracle.Options(heads=HEADS, tau=TAU))


def test_features_of_another_encoder_are_projected_as_in_the_oracle() -> None:
    config = text_config(D) | {"features": D + 5}
    other = load_text_tower(text_weights(config), config).double()
    check_model(make_model(other), oracle.Options(heads=HEADS, tau=TAU))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_every_window_of_table_4_equals_the_oracle(
    tower: TextTower, window: int, stride: int
) -> None:
    model = make_model(tower, temporal={"window": window, "stride": stride})
    check_model(model, oracle.Options(heads=HEADS, tau=TAU, window=window, stride=stride))


@pytest.mark.slow
@pytest.mark.parametrize("depths", DEPTHS)
def test_every_depth_equals_the_oracle(tower: TextTower, depths: tuple[int, int]) -> None:
    model = make_model(tower, temporal={"fine_depth": depths[0], "coarse_depth": depths[1]})
    check_model(model, oracle.Options(heads=HEADS, tau=TAU, depths=depths))


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch",
    [
        {"positions": "per_window"},
        {"merge": "last"},
        {"merge": "last", "window": 4, "stride": 3},
        {"norm": "post"},
        {"residual": True},
        {"coarse_keys": 5},
        {"coarse_keys": 4, "norm": "post"},
    ],
    ids=str,
)
def test_every_switch_of_the_temporal_network_equals_the_oracle(
    tower: TextTower, switch: dict[str, Any]
) -> None:
    model = make_model(tower, temporal=switch)
    check_model(model, oracle.Options(heads=HEADS, tau=TAU, **switch))


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch",
    [{"visual_prompt": kind} for kind in ("none", "prepend", "concat")]
    + [{"weighting": "linear"}, {"scope": "shared"}, {"weighting": "linear", "scope": "shared"}]
    + [{"visual_prompt": "prepend", "scope": "shared"}]
    + [{"fusion": "none"}, {"fusion": "none", "visual_prompt": "none"}]
    + [{"pooling": kind} for kind in POOLINGS],
    ids=str,
)
def test_every_switch_of_the_label_equals_the_oracle(
    tower: TextTower, switch: dict[str, Any]
) -> None:
    options = {name.replace("visual_prompt", "visual"): value for name, value in switch.items()}
    model = make_model(tower, label=switch)
    check_model(model, oracle.Options(heads=HEADS, tau=TAU, **options))


@pytest.mark.parametrize(
    "switch",
    [
        {},
        *[
            pytest.param(own, marks=pytest.mark.slow, id=str(own))
            for own in (
                {"weighting": "linear"},
                {"scope": "shared"},
                {"visual_prompt": "none"},
                *({"pooling": kind} for kind in POOLINGS),
            )
        ],
    ],
)
def test_frames_weighted_by_their_quality_equal_the_oracle(
    tower: TextTower, switch: dict[str, Any]
) -> None:
    options = {name.replace("visual_prompt", "visual"): value for name, value in switch.items()}
    model = make_model(tower, label={"quality": 0.7, **switch}, scale="standardise")
    check_model(model, oracle.Options(heads=HEADS, tau=TAU, quality=0.7, **options))


def test_a_frame_unlike_the_training_frames_counts_less_the_higher_the_quality(
    tower: TextTower,
) -> None:
    features, _ = inputs()
    strange = features.clone()
    strange[:, :, 5] += 4
    changes, attention = [], []
    for quality in (0.0, 0.1, 1.0):
        # Without a temporal network, so that only weights can carry one frame to another.
        model = make_model(
            tower,
            temporal={"fine_depth": 0, "coarse_depth": 0},
            label={"quality": quality},
            scale="standardise",
        )
        with torch.no_grad():
            with_it, without_it = model(strange), model(features)
        changes.append(float((with_it.logits_RBK - without_it.logits_RBK).abs().max()))
        attention.append(float(with_it.attention_RBTK[:, :, 5].max()))
    assert changes[0] > 1.2 * changes[1] > 1.2 * changes[2]  # what is left: frame 5 is missed
    assert attention[0] > attention[1] > attention[2]


def test_quality_is_a_run_s_own_and_needs_training_statistics() -> None:
    scaled = ["input.scale=whiten"]
    zero, low, high = (
        load_method("paper", [*scaled, f"label.quality={quality}"]) for quality in (0, 0.5, 2)
    )
    assert stack_key(low) == stack_key(high) != stack_key(zero)
    with pytest.raises(RefusedError, match=r"label\.quality=1 .*input\.scale=layer_norm does not"):
        load_method("paper", ["input.scale=layer_norm", "label.quality=1"])


LONG = 150  # frames, more than are computed at once


@pytest.mark.parametrize(
    "switch",
    [
        {"window": 4, "stride": 1},
        {"window": 4, "stride": 1, "merge": "last"},
        {"window": 6, "stride": 4},
        {"window": 3, "stride": 3, "coarse_keys": 16},
    ],
    ids=str,
)
def test_long_videos_equal_the_oracle(switch: dict[str, Any]) -> None:
    config = TemporalConfig(head_size=4, **switch)
    generators = [torch.Generator().manual_seed(seed) for seed in range(R)]
    network = TemporalNetwork(generators, LONG, 8, [config] * R).double()
    x_RBTD = torch.randn(R, 1, LONG, 8, dtype=torch.float64)
    with torch.no_grad():
        out = network(x_RBTD)
    options = oracle.Options(heads=2, **switch)
    for r in range(R):
        weights = {name: p.detach()[r].numpy() for name, p in network.named_parameters()}
        expected = oracle.temporal(x_RBTD[r, 0].numpy(), weights, options)
        np.testing.assert_allclose(out[r, 0], expected, atol=1e-9)


@pytest.mark.parametrize(
    "switch", [{"coarse_depth": 0}, {"fine_depth": 0, "coarse_keys": 16}], ids=str
)
def test_windows_and_coarse_keys_cost_twice_as_much_for_twice_as_many_frames(
    switch: dict[str, Any],
) -> None:
    config = TemporalConfig(head_size=8, **switch)

    def products(frames: int) -> int:
        network = TemporalNetwork([torch.Generator()], frames, 8, [config])
        x_RBTD = torch.randn(1, 1, frames, 8, requires_grad=True)
        # As products, which the counter knows on every device.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(x_RBTD).sum().backward()
        return counter.get_total_flops()

    assert products(512) / products(256) == pytest.approx(2, abs=0.05)


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
        methods = [MethodConfig(temporal=config)] * len(generators)
        model = TGDFER(NetworkSpec(generators, tower, texts, T, methods))
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
