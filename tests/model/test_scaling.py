"""Scaled features, centred texts and identity starts against NumPy in float64."""

import numpy as np
import pytest
import torch

from cache.errors import RefusedError
from pipeline.config import MethodConfig, load_method
from pipeline.datasets.texts import class_texts
from pipeline.model.network import NetworkSpec
from pipeline.model.scaling import InputScale, Scale
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.model.tgdfer import TGDFER
from support import oracle
from support.stores import CLASSES, text_config, text_weights

D, T = 12, 8


@pytest.fixture(scope="module")
def tower() -> TextTower:
    config = text_config(D)
    return load_text_tower(text_weights(config), config).double()


def features(seed: int, videos: int = 5) -> torch.Tensor:
    """Far from zero, with dimensions of very different and correlated variances."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(videos, T, D, generator=generator, dtype=torch.float64)
    return x @ torch.randn(D, D, generator=generator, dtype=torch.float64) * 3 + 7


def model_of(tower: TextTower, methods: list[MethodConfig]) -> TGDFER:
    generators = [torch.Generator().manual_seed(r) for r in range(len(methods))]
    return TGDFER(NetworkSpec(generators, tower, class_texts(CLASSES), T, methods)).double()


@pytest.mark.parametrize("kind", ["none", "layer_norm", "standardise", "whiten"])
def test_features_are_scaled_as_the_oracle_does_for_every_run(kind: Scale) -> None:
    scale = InputScale(2, D, kind).double()
    training = [features(seed) for seed in (1, 2)]
    if scale.needs_statistics:
        for run, own in enumerate(training):
            scale.fit(run, iter(own.split(2)))
    x_RBTD = torch.stack([features(3), features(4)])
    got = scale(x_RBTD)
    for r in range(2):
        for b in range(5):
            expected = oracle.scaled(x_RBTD[r, b].numpy(), kind, training[r].reshape(-1, D).numpy())
            np.testing.assert_allclose(got[r, b], expected, atol=1e-9)


def test_training_features_have_mean_zero_and_their_large_variances_become_one() -> None:
    own = features(1, videos=400)
    for kind in ("standardise", "whiten"):
        scale = InputScale(1, D, kind).double()
        scale.fit(0, [own])
        out = scale(own[None])[0].reshape(-1, D).numpy()
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-9)
        variances = out.var(0) if kind == "standardise" else np.linalg.eigvalsh(np.cov(out.T))
        assert variances.max() == pytest.approx(1, abs=0.02)
        assert np.median(variances) > 0.8


@pytest.mark.parametrize(
    "settings",
    [
        ["input.scale=layer_norm"],
        ["input.scale=standardise"],
        ["input.scale=whiten"],
        ["input.centre_text=true"],
        ["temporal.init=identity", "label.init=identity", "temporal.positions_std=0.5"],
    ],
)
def test_conditioned_networks_equal_the_oracle_in_outputs_and_gradients(
    tower: TextTower, settings: list[str]
) -> None:
    common = ["temporal.head_size=4", "label.temperature=0.1"]
    method = load_method("paper", [*common, *settings])
    model, kind = model_of(tower, [method]), method.input.scale
    if model.input.needs_statistics:
        model.input.fit(0, [features(1)])
    x_TD = features(2, videos=1)[0]
    out = model(x_TD[None, None])
    out.logits_RBK[0, 0, 2].backward()
    scaled = oracle.scaled(x_TD.numpy(), kind, features(1).reshape(-1, D).numpy())
    options = oracle.Options(heads=3, tau=0.1)

    def oracle_logit() -> float:
        weights = {
            name: p.detach()[0].numpy() for name, p in model.named_parameters() if p.requires_grad
        }
        texts = model.fine()[0].detach().numpy(), model.coarse()[0].detach().numpy()
        return float(oracle.tgdfer(scaled, *texts, weights, options)[0][2])

    assert float(out.logits_RBK[0, 0, 2].detach()) == pytest.approx(oracle_logit(), abs=1e-9)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = torch.from_numpy(np.random.default_rng(0).standard_normal(parameter.shape))
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(step * direction)
                ends.append(oracle_logit())
                parameter.sub_(step * direction)
        assert parameter.grad is not None
        got = float((parameter.grad * direction).sum())
        assert got == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("visual", ["add", "prepend"])
def test_centred_texts_have_mean_zero_and_keep_their_differences(
    tower: TextTower, visual: str
) -> None:
    plain, centred = (
        model_of(
            tower,
            [
                load_method(
                    "paper",
                    [
                        f"input.centre_text={str(centre).lower()}",
                        f"label.visual_prompt={visual}",
                        "temporal.head_size=4",
                    ],
                )
            ],
        )
        for centre in (False, True)
    )
    for ours, theirs in ((centred.fine, plain.fine), (centred.coarse, plain.coarse)):
        texts_KD = theirs()[0].detach()
        np.testing.assert_allclose(ours()[0].detach(), texts_KD - texts_KD.mean(0), atol=1e-12)
    weight_KD = torch.randn(len(CLASSES), D, dtype=torch.float64)
    for model, weights in ((centred, weight_KD), (plain, weight_KD - weight_KD.mean(0))):
        (model.fine()[0] * weights).sum().backward()
    context, same_context = centred.fine.context_RCW, plain.fine.context_RCW
    assert context is not None
    assert same_context is not None
    torch.testing.assert_close(context.grad, same_context.grad)
    if visual == "prepend":
        seen_RBKD = torch.randn(1, 2, len(CLASSES), D, dtype=torch.float64)
        texts_BKD = plain.fine.with_visual(seen_RBKD)[0].detach()
        np.testing.assert_allclose(
            centred.fine.with_visual(seen_RBKD)[0].detach(),
            texts_BKD - texts_BKD.mean(1, keepdim=True),
            atol=1e-12,
        )


@pytest.mark.parametrize("depths", [(1, 1), (2, 0), (0, 1)])
def test_identity_starts_at_the_zero_shot_model_and_leaves_the_other_run_alone(
    tower: TextTower, depths: tuple[int, int]
) -> None:
    common = [
        f"temporal.fine_depth={depths[0]}",
        f"temporal.coarse_depth={depths[1]}",
        "temporal.head_size=4",
        "prompts.context_length=2",
    ]
    start = ["temporal.init=identity", "temporal.positions_std=0", "label.init=identity"]
    random, identity = load_method("paper", common), load_method("paper", [*common, *start])
    model = model_of(tower, [identity, random])
    x_BTD = features(5)
    with torch.no_grad():
        out = model(torch.stack([x_BTD, x_BTD]))
        instances = model.temporal(torch.stack([x_BTD, x_BTD]))
        alone = model_of(tower, [random, random])(torch.stack([x_BTD, x_BTD]))
        text_KD = model.coarse()[0]
    np.testing.assert_allclose(instances[0], x_BTD, atol=1e-9)
    cosines = (
        torch.nn.functional.normalize(x_BTD, dim=-1)
        @ torch.nn.functional.normalize(text_KD, dim=-1).T
    )
    np.testing.assert_allclose(out.logits_RBK[0], cosines.mean(1) / 0.01, atol=1e-6)
    np.testing.assert_allclose(out.logits_RBK[1], alone.logits_RBK[1], atol=1e-9)


def test_identity_beside_the_residual_connection_begins_with_twice_the_input(
    tower: TextTower,
) -> None:
    settings = ["temporal.init=identity", "temporal.positions_std=0", "temporal.residual=true"]
    model = model_of(tower, [load_method("paper", [*settings, "temporal.head_size=4"])])
    x_BTD = features(5)
    np.testing.assert_allclose(model.temporal(x_BTD[None])[0].detach(), 2 * x_BTD, atol=1e-9)


@pytest.mark.parametrize("std", [0.02, 0.5, 2.0])
def test_positions_begin_with_the_standard_deviation_of_their_run(
    tower: TextTower, std: float
) -> None:
    settings = ["temporal.head_size=4"]
    one, other = (
        load_method("paper", [*settings, f"temporal.positions_std={value}"]) for value in (1, std)
    )
    ours, units = (model_of(tower, runs).temporal for runs in ([one, other], [one, one]))
    for branch, same in zip(ours.branches, units.branches, strict=True):
        drawn, unit = (
            next(p.detach() for name, p in module.named_parameters() if name.startswith("pos"))
            for module in (branch, same)
        )
        torch.testing.assert_close(drawn[0], unit[0])
        torch.testing.assert_close(drawn[1], std * unit[1])
        assert float(unit.std()) == pytest.approx(1, abs=0.2)


def test_identity_is_refused_where_no_layer_can_be_the_identity() -> None:
    with pytest.raises(RefusedError, match="init identity needs norm pre"):
        load_method("paper", ["temporal.init=identity", "temporal.norm=post"])
    with pytest.raises(RefusedError, match="init identity needs fusion mlp"):
        load_method("paper", ["label.init=identity", "label.fusion=none"])
