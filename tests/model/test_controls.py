"""What the language model adds: towers drawn anew, texts permuted, orthogonal vectors."""

from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import RefusedError
from pipeline.config import LabelConfig, MethodConfig, PromptConfig, TemporalConfig
from pipeline.datasets.texts import class_texts
from pipeline.model.network import NetworkSpec
from pipeline.model.prompts import Prompts, orthogonal_texts
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.model.tgdfer import TGDFER
from support import oracle
from support.stores import CLASSES, text_config, text_weights

T, D, K = 8, 12, len(CLASSES)
TEXTS = class_texts(CLASSES).of("class")


@pytest.fixture(scope="module")
def tower() -> TextTower:
    config = text_config(D)
    return load_text_tower(text_weights(config, seed=5), config).double()


def prompts_of(
    tower: TextTower, learnable: bool = True, visual: bool = False, **settings: Any
) -> Prompts:
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    config = PromptConfig(context_length=2, **settings)
    return Prompts(generators, tower, TEXTS, learnable, config, visual).double()


def model_of(tower: TextTower, seed: int = 0, /, **settings: Any) -> TGDFER:
    method = MethodConfig(
        temporal=TemporalConfig(head_size=4),
        prompts=PromptConfig(context_length=2, **settings),
        label=LabelConfig(temperature=0.1),
    )
    generators = [torch.Generator().manual_seed(seed)]
    spec = NetworkSpec(generators, tower, class_texts(CLASSES), T, [method])
    return TGDFER(spec).double()


def test_a_redrawn_tower_is_the_same_for_all_and_shares_no_weight_with_the_trained_one(
    tower: TextTower,
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one = tower.redrawn()
    assert torch.equal(torch.rand(1), expected)  # nobody else's random numbers change
    torch.manual_seed(4)  # as another process may have it
    other = tower.redrawn()
    trained = tower.tower.state_dict()
    for name, weight in one.tower.state_dict().items():
        assert torch.equal(weight, other.tower.state_dict()[name])
        assert weight.dtype == trained[name].dtype == torch.float64
        drawn = name.endswith(("weight", "embedding", "projection")) and "ln_" not in name
        assert not drawn or not torch.allclose(weight, trained[name], atol=1e-3), name
    assert not any(p.requires_grad for p in one.parameters())
    config = text_config(D)
    for seed in range(3):  # from which a tower may have been trained
        start = load_text_tower(text_weights(config, seed), config).tower.text_projection
        assert not torch.allclose(one.tower.text_projection.float(), start, atol=1e-3)


@pytest.mark.parametrize("settings", [{"tower": "random"}, {"texts": "permuted"}], ids=str)
def test_a_control_is_the_network_with_that_tower_or_those_texts(
    tower: TextTower, settings: dict[str, Any]
) -> None:
    model = model_of(tower, **settings, coarse_learnable=True)
    plain = MethodConfig(
        temporal=TemporalConfig(head_size=4),
        prompts=PromptConfig(context_length=2, coarse_learnable=True),
        label=LabelConfig(temperature=0.1),
    )
    generators = [torch.Generator().manual_seed(0)]
    shifted = class_texts([*CLASSES[1:], CLASSES[0]])
    spec = NetworkSpec(
        generators,
        tower.redrawn() if "tower" in settings else tower,
        class_texts(CLASSES) if "tower" in settings else shifted,
        T,
        [plain],
    )
    other = TGDFER(spec).double()
    features = torch.randn(1, 2, T, D, dtype=torch.float64)
    for ours, theirs in ((model.fine(), other.fine()), (model.coarse(), other.coarse())):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(model(features).logits_RBK, other(features).logits_RBK)
    real = model_of(tower, coarse_learnable=True)
    assert (real(features).logits_RBK - model(features).logits_RBK).abs().max() > 1e-3


def test_every_permuted_class_has_the_text_of_another(tower: TextTower) -> None:
    real = prompts_of(tower, learnable=False)()[0]
    permuted = prompts_of(tower, learnable=False, texts="permuted")()[0]
    np.testing.assert_allclose(permuted, np.roll(real, -1, axis=0))


@pytest.mark.parametrize("learnable", [True, False])
def test_orthogonal_texts_begin_orthogonal_and_as_long_as_the_real_ones(
    tower: TextTower, learnable: bool
) -> None:
    prompts = prompts_of(tower, learnable, texts="orthogonal")
    length = np.linalg.norm(tower.encode_texts(TEXTS), axis=1).mean()
    with torch.no_grad():
        texts_RKD = prompts().numpy()
    for texts_KD in texts_RKD:  # the same in every run
        np.testing.assert_allclose(texts_KD @ texts_KD.T, length**2 * np.eye(K), atol=1e-9)
        np.testing.assert_allclose(texts_KD, texts_RKD[0], atol=1e-9)


def test_orthogonal_texts_move_with_their_context_and_read_no_class_text(tower: TextTower) -> None:
    prompts = prompts_of(tower, texts="orthogonal", visual=True)
    assert prompts.context_RCW is not None
    assert set(prompts.packing.token_L.tolist()) == {0, *tower.tokenize("")}
    start = prompts_of(tower, texts="orthogonal").context_RCW
    assert start is not None
    with torch.no_grad():
        prompts.context_RCW.add_(torch.randn_like(prompts.context_RCW))
        goal_KD = orthogonal_texts(tower.encode_texts(TEXTS))
        visual_RBKD = torch.randn(2, 3, K, D, dtype=torch.float64)
        got_RKD, seen_RBKD = prompts(), prompts.with_visual(visual_RBKD)
        for r, k in ((0, 0), (1, 6)):
            own = slice(2 * k, 2 * k + 2)
            now, before = prompts.context_RCW[r, own], start[r, own]
            moved = read(tower, now) - read(tower, before)
            torch.testing.assert_close(got_RKD[r, k], goal_KD[k] + moved)
            token = visual_RBKD[r, 2, k, None]
            moved = read(tower, torch.cat([token, now])) - read(tower, before)
            torch.testing.assert_close(seen_RBKD[r, 2, k], goal_KD[k] + moved)


def read(tower: TextTower, vectors_MW: torch.Tensor) -> torch.Tensor:
    """open_clip's tower on start token, vectors and end token, without any packing; [D]."""
    own = tower.tower
    start, end = (own.token_embedding(torch.tensor([token])) for token in tower.tokenize(""))
    x = torch.cat([start, vectors_MW, end])
    x = x + own.positional_embedding[: len(x)]
    x = own.transformer(x[None], attn_mask=own.attn_mask[: len(x), : len(x)].to(x.dtype))
    features: torch.Tensor = own.ln_final(x)[0, -1] @ own.text_projection
    return features


def test_a_network_with_orthogonal_texts_equals_the_oracle_in_outputs_and_gradients(
    tower: TextTower,
) -> None:
    model = model_of(tower, texts="orthogonal")
    features = torch.randn(1, 1, T, D, dtype=torch.float64)
    logits = model(features).logits_RBK
    logits[0, 0, 2].backward()
    context = model.fine.context_RCW
    assert context is not None
    assert context.grad is not None
    direction = torch.randn_like(context)
    values = []
    for step in (0, 1e-5, -1e-5):
        with torch.no_grad():
            context.add_(step * direction)
            texts = model.fine()[0].numpy(), model.coarse()[0].numpy()
            weights = {n: p.detach()[0].numpy() for n, p in model.kept().items()}
            options = oracle.Options(heads=3, tau=0.1)
            values.append(oracle.tgdfer(features[0, 0].numpy(), *texts, weights, options)[0])
            context.sub_(step * direction)
    np.testing.assert_allclose(logits[0, 0].detach(), values[0], atol=1e-9)
    got = float((context.grad * direction).sum())
    assert got == pytest.approx((values[1][2] - values[2][2]) / 2e-5, rel=1e-5)


def test_a_network_keeps_where_its_orthogonal_texts_began(tower: TextTower) -> None:
    one, other = (model_of(tower, seed, texts="orthogonal") for seed in (0, 1))
    assert {"fine.offset_RKD", "coarse.offset_RKD"} <= one.kept().keys()
    with torch.no_grad():
        for name, kept in other.kept().items():
            kept.copy_(one.kept()[name])
        features = torch.randn(1, 2, T, D, dtype=torch.float64)
        torch.testing.assert_close(other(features).logits_RBK, one(features).logits_RBK)


def test_more_classes_than_directions_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"3 features have no 4 orthogonal directions"):
        orthogonal_texts(torch.ones(4, 3))
