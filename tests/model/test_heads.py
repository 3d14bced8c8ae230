"""Heads of other publications against slow float64 references, outputs and gradients."""

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.errors import RefusedError
from pipeline.config import HeadConfig, MethodConfig, load_method
from pipeline.datasets.texts import ClassTexts, class_texts
from pipeline.model.heads.aen import groups_of
from pipeline.model.heads.choose import NETWORKS, build_network
from pipeline.model.heads.grace import log_motion_shares, log_shares, transported
from pipeline.model.heads.recurrent import BiLSTM
from pipeline.model.network import Network, NetworkSpec
from pipeline.model.text_tower import TextTower, load_text_tower
from support import oracle, peers
from support.stores import CLASSES, text_config, text_weights

T, D, B, R, TAU = 8, 16, 2, 2, 0.1
HEADS = [kind for kind in NETWORKS if kind != "tgdfer"]
DROPPING = ("head.dropout=0.4", "head.layers=2")
LAYERS = {
    "linear": 0,
    "mlp": 2,
    "bilstm": 2,
    "transformer": 2,
    "dfer_clip": 1,
    "emoclip": 2,
    "cliper": 0,
    "m3dfel": 1,
    "est": 2,
    "s2d": 2,
    "vadclip": 2,
    "grace": 2,
    "nr_dfernet": 2,
    "dpcnet": 1,
    "aen": 2,
    "logo_former": 2,
}
DIVIDING = ("m3dfel", "est", "nr_dfernet", "logo_former")
COUNTS = (4, 1, 3, 4, 4, 2, 4)  # phrases of classes
TEXTS = ClassTexts(
    CLASSES,
    tuple(
        ", ".join(text.split(", ")[:count])
        for text, count in zip(class_texts(CLASSES).descriptors, COUNTS, strict=True)
    ),
)
# features, weights -> logits, frame logits and, if the head has one, penalty
Reference = Callable[[np.ndarray, dict[str, np.ndarray]], tuple[Any, ...]]


@pytest.fixture(scope="module")
def tower() -> TextTower:
    config = text_config(D)
    return load_text_tower(text_weights(config), config)


def method_of(kind: str, *settings: str) -> MethodConfig:
    own = [f"head.kind={kind}", f"head.layers={LAYERS[kind]}", "head.hidden=12", "head.instance=2"]
    own += ["prompts.fine_text=descriptors", f"label.temperature={TAU}"]
    own += ["head.hidden=8"] * (kind == "s2d")  # which 8 attention heads divide
    return load_method("paper", [*own, *settings])


def network_of(kind: str, tower: TextTower, *seeds: int, settings: tuple[str, ...] = ()) -> Network:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    methods = [method_of(kind, *settings)] * len(seeds)
    spec = NetworkSpec(generators, tower, TEXTS, T, methods)
    return build_network(spec).double()


def learned_of(network: Network) -> dict[str, Tensor]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def reference_of(network: Network, kind: str, run: int) -> Reference:
    layers = LAYERS[kind]
    if kind in ("dfer_clip", "emoclip"):
        texts = network.prompts()["fine"]().detach()[run].numpy()
        compared = peers.dfer_clip if kind == "dfer_clip" else peers.emoclip
        return lambda x, weights: compared(x, weights, layers, texts, TAU)
    if kind == "grace":
        phrases = network.prompts()["fine"]().detach()[run].numpy().reshape(7, 4, D)
        texts = [own[:count] for own, count in zip(phrases, COUNTS, strict=True)]
        return lambda x, weights: peers.grace(x, weights, layers, texts, TAU)
    if kind == "vadclip":
        texts = network.prompts()["fine"]().detach()[run].numpy()
        return lambda x, weights: peers.vadclip(x, weights, layers, 2, texts, TAU)
    if kind == "cliper":
        texts = network.prompts()["fine"]().detach()[run].numpy().reshape(7, 5, D)
        return lambda x, _weights: peers.cliper(x, texts, TAU)
    if kind in DIVIDING:
        divided = getattr(peers, kind)
        return lambda x, weights: divided(x, weights, layers, instance=2)
    if kind == "dpcnet":
        return peers.dpcnet
    if kind == "aen":
        return lambda x, weights: peers.aen(x, weights, layers, groups=[0, 1, 2, 1, 0, 1, 1])
    if kind == "s2d":
        return lambda x, weights: peers.s2d(x, weights, layers)
    if kind == "linear":
        return peers.linear_probe
    plain = {"mlp": peers.mlp, "bilstm": peers.bilstm, "transformer": peers.former_dfer}[kind]
    return lambda x, weights: plain(x, weights, layers)


def published_of(network: Network, kind: str, run: int) -> dict[str, np.ndarray]:
    """The weights of one run, by the authors' names."""
    own = {name: p.detach()[run].double().numpy() for name, p in learned_of(network).items()}
    return peers.published(kind, own)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    alike, own = (
        torch.randn(R, B, frames, D, generator=generator, dtype=torch.float64) for frames in (1, T)
    )
    features = alike + own  # cosines of frames are about 0.5
    return features, torch.tensor([[0, 6], [3, 2]])


@pytest.mark.parametrize("kind", HEADS)
def test_logits_and_gradients_are_those_of_the_publication(tower: TextTower, kind: str) -> None:
    network = network_of(kind, tower, 0, 1)
    with torch.no_grad():  # far from the special values that layers start at
        for name, parameter in learned_of(network).items():
            torch.manual_seed(len(name))
            parameter.add_(torch.randn_like(parameter) * 0.3)
    features, targets = inputs()
    out = network(features)
    logits = out.logits_RBK.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
    penalty_RB = torch.zeros(R, B) if out.penalty_RB is None else out.penalty_RB
    (loss + penalty_RB.sum()).backward()
    for r in range(R):
        reference, weights = reference_of(network, kind, r), published_of(network, kind, r)
        for b in range(B):
            bag, frames, *penalty = reference(features[r, b].numpy(), weights)
            assert sum(penalty) == pytest.approx(penalty_RB[r, b].item(), rel=1e-9)
            np.testing.assert_allclose(out.logits_RBK[r, b].detach(), bag, atol=1e-9)
            np.testing.assert_allclose(out.frame_logits_RBTK[r, b].detach(), frames, atol=1e-9)
    check_gradients(network, kind, R - 1)


def check_gradients(network: Network, kind: str, run: int) -> None:
    """Central differences of the reference along a random direction of every module."""
    features, targets = inputs()

    def loss() -> float:
        reference, weights = reference_of(network, kind, run), published_of(network, kind, run)
        total = 0.0
        for b in range(B):
            logits, _, *penalty = reference(features[run, b].numpy(), weights)
            total += oracle.cross_entropy(logits, int(targets[run, b])) + sum(penalty)
        return total

    for module, own in groupby(learned_of(network).items(), key=lambda pair: module_of(pair[0])):
        moved = [(p, torch.randn(p.shape[1:], dtype=torch.float64)) for _, p in own]
        losses = []
        with torch.no_grad():
            for step in (2e-6, -4e-6):
                for parameter, direction in moved:
                    parameter[run] += step * direction
                losses.append(loss())
            for parameter, direction in moved:
                parameter[run] += 2e-6 * direction
        got = sum(float((p.grad[run] * d).sum()) for p, d in moved if p.grad is not None)
        assert got == pytest.approx((losses[0] - losses[1]) / 4e-6, rel=1e-5, abs=1e-7), module


def module_of(parameter: str) -> str:
    """A layer as a whole, or the module that holds a parameter."""
    layer = re.match(r".*layers\.\d+", parameter)
    return layer[0] if layer else parameter.rpartition(".")[0]


def test_dfer_clip_gives_the_peer_s_logits_in_float32_at_its_own_size() -> None:
    config = text_config(512)
    tower = load_text_tower(text_weights(config), config)
    method = load_method("dfer-clip", ["head.kind=dfer_clip"])
    spec = NetworkSpec([torch.Generator()], tower, class_texts(CLASSES), 16, [method])
    network = build_network(spec)
    x_TD = torch.randn(16, 512)
    texts = network.prompts()["fine"]().detach()[0].double().numpy()
    weights = published_of(network, "dfer_clip", 0)
    assert weights["temporal_net.temporal_transformer.layers.0.1.fn.fn.net.0.weight"].shape == (
        1024,
        512,
    )
    bag, _ = peers.dfer_clip(x_TD.double().numpy(), weights, 1, texts, 0.01)
    with torch.no_grad():
        np.testing.assert_allclose(network(x_TD[None, None]).logits_RBK[0, 0], bag, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_lstm_equals_torch_s_outputs_and_gradients(layers: int) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(R)]
    ours = BiLSTM(generators, 5, HeadConfig(kind="bilstm", layers=layers, hidden=3)).double()
    x = torch.randn(R, B, T, 5, dtype=torch.float64, requires_grad=True)
    states = ours(x)
    states.square().sum().backward()
    assert x.grad is not None
    for r in range(R):
        theirs = torch.nn.LSTM(5, 3, layers, batch_first=True, bidirectional=True).double()
        theirs.load_state_dict(published_lstm(ours, r))
        given = x.detach()[r].clone().requires_grad_()
        expected, _ = theirs(given)
        expected.square().sum().backward()
        assert given.grad is not None
        torch.testing.assert_close(states[r], expected, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(x.grad[r], given.grad, atol=1e-12, rtol=1e-9)
        for name, grad in published_lstm(ours, r, grads=True).items():
            found = theirs.get_parameter(name).grad
            torch.testing.assert_close(found, grad, atol=1e-12, rtol=1e-9)


def published_lstm(ours: BiLSTM, run: int, grads: bool = False) -> dict[str, Tensor]:
    """The weights of a run by torch's names, or their gradients."""
    values = {name: p.grad if grads else p.detach() for name, p in ours.named_parameters()}
    own = {name: value[run].numpy() for name, value in values.items() if value is not None}
    found = peers.published_lstm(oracle.part(own, "layers."))
    return {n.removeprefix("lstm."): torch.from_numpy(value.copy()) for n, value in found.items()}


@pytest.mark.parametrize("kind", HEADS)
def test_a_run_in_a_stack_begins_drops_and_predicts_as_alone(tower: TextTower, kind: str) -> None:
    features, keys_R = inputs()[0], torch.tensor([7, 4_000_000_000])
    both = network_of(kind, tower, 0, 1, settings=DROPPING)
    with both.dropping(keys_R):
        stacked = both(features).logits_RBK
    dropped = (stacked - both(features).logits_RBK).abs().min() > 0
    assert dropped == (kind not in ("linear", "cliper"))  # which have no layer to drop from
    for r in range(R):
        alone = network_of(kind, tower, r, settings=DROPPING)
        for name, parameter in learned_of(alone).items():
            assert torch.equal(parameter[0], learned_of(both)[name][r]), name
        with alone.dropping(keys_R[r : r + 1]):
            own = alone(features[r : r + 1]).logits_RBK[0]
        torch.testing.assert_close(own, stacked[r], atol=1e-12, rtol=1e-9)


def test_cliper_s_texts_are_its_template_and_what_it_learned(tower: TextTower) -> None:
    network = network_of("cliper", tower, 0, settings=("prompts.context_length=4",))
    token = torch.tensor(tower.tokenize("x")[1])
    context_RCW = network.get_parameter("fine.context_RCW")
    assert context_RCW.shape == (1, 7 * 5 * 4, tower.width)
    with torch.no_grad():
        context_RCW[:, :4] = tower.embed(token)
    expected = tower.encode_texts(["an ID photo of x x x x"])
    texts_KD = network.prompts()["fine"]()[0]
    torch.testing.assert_close(texts_KD[:1], expected, atol=1e-12, rtol=1e-9)
    assert (texts_KD[1:] - expected).abs().amax(1).min() > 1e-3


def test_transport_meets_the_shares_of_frames_and_nearly_those_of_phrases() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(1, 2, 3, 9, 4, generator=generator, dtype=torch.float64) / 2
    frames_RBT = torch.rand(1, 2, 9, generator=generator, dtype=torch.float64).log_softmax(2)
    phrases_KM = log_shares([4, 1, 3])
    plan = transported(cosines, frames_RBT, phrases_KM) * frames_RBT.exp()[:, :, None, :, None]
    rows, columns = plan.sum(4), plan.sum(3)
    torch.testing.assert_close(rows, frames_RBT.exp()[:, :, None].expand(-1, -1, 3, -1))
    assert (columns - phrases_KM.exp()).abs().max() < 1e-2
    assert (columns[:, :, 1, 1:] == 0).all()
    for b in range(2):
        expected = peers.sinkhorn(cosines[0, b, 0].numpy(), frames_RBT[0, b].exp().numpy())
        np.testing.assert_allclose(plan[0, b, 0], expected, atol=1e-14)


def test_grace_permutes_the_texts_of_classes_and_not_their_phrases(tower: TextTower) -> None:
    fixed = "prompts.fine_learnable=false"
    real = network_of("grace", tower, 0, settings=(fixed,))
    permuted = network_of("grace", tower, 0, settings=(fixed, "prompts.texts=permuted"))
    texts, others = (own.prompts()["fine"]()[0] for own in (real, permuted))
    torch.testing.assert_close(others, texts.roll(-4, 0), atol=1e-12, rtol=1e-9)
    shares, others = (own.get_buffer("log_share_KM") for own in (real, permuted))
    assert torch.equal(others, shares.roll(-1, 0))


def test_frames_that_move_can_weigh_more() -> None:
    x_RBTD = torch.tensor([[[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [3.0, 14.0]]]])
    share_T = log_motion_shares(x_RBTD, torch.tensor([2.0]))[0, 0].exp()
    moved_T = torch.tensor([0.0, 5.0, 0.0, 10.0]) / 3.75
    torch.testing.assert_close(share_T, (2 * moved_T).softmax(0))
    still = log_motion_shares(torch.ones(1, 1, 1, 2), torch.tensor([2.0]))
    assert still.exp().tolist() == [[[1.0]]]


def test_nr_dfernet_hears_neutral_snippets_in_training_and_where_there_are_no_others(
    tower: TextTower,
) -> None:
    network, (features, _) = network_of("nr_dfernet", tower, 0, 1), inputs()
    bias_R = learned_of(network)["classifier.bias_RO"][:, 2]
    others = [0, 1, 3, 4, 5, 6]
    with torch.no_grad():
        snippets_NK = network(features).frame_logits_RBTK[1, 0, ::2]
        lead_N = snippets_NK[:, others].amax(1) - snippets_NK[:, 2]
        bias_R += torch.stack([torch.tensor(100.0), lead_N.median() + 1e-6])
        out = network(features)
        with network.dropping(torch.zeros(R)):
            learned = network(features).logits_RBK
    snippets_RBNK = out.frame_logits_RBTK[:, :, ::2]
    is_neutral = snippets_RBNK.argmax(3) == CLASSES.index("neutral")
    assert is_neutral[0].all()
    assert is_neutral[1, 0].sum() == 2
    torch.testing.assert_close(learned, snippets_RBNK.mean(2))
    torch.testing.assert_close(out.logits_RBK[0], learned[0])
    expected = snippets_RBNK[1, 0, ~is_neutral[1, 0]].mean(0)
    torch.testing.assert_close(out.logits_RBK[1, 0], expected)


def test_emotions_are_grouped_and_a_class_of_another_name_is_a_group_of_its_own() -> None:
    assert groups_of(CLASSES) == [0, 1, 2, 1, 0, 1, 1]
    assert groups_of(("boredom", "fear", "calm", "anxiety", "sleep")) == [0, 1, 2, 1, 3]


def test_heads_that_the_features_do_not_fit_are_refused() -> None:
    for settings, message in (
        (["head.kind=transformer"], "8 attention heads, which do not divide 100 features"),
        (["head.kind=m3dfel", "head.hidden=6"], r"divide 12 features.*another head\.hidden"),
        (["head.kind=s2d"], r"divide 25 features.*another head\.hidden"),
        (["head.kind=m3dfel", "head.instance=5"], r"head\.instance=5 does not divide the 16"),
        (["head.kind=m3dfel", "head.instance=16"], "two or more instances"),
    ):
        with pytest.raises(RefusedError, match=message):
            load_method("paper", settings).head.refuse_misfit(16, 100)
    for kind in HEADS:
        load_method("paper", [f"head.kind={kind}"]).head.refuse_misfit(16, 512)


def test_rarity_of_a_class_cannot_change_the_rate_of_texts_that_a_head_does_not_read() -> None:
    with pytest.raises(RefusedError, match=r"head\.kind=cliper reads several texts of a class"):
        load_method("paper", ["head.kind=cliper", "optimiser.text_rarity=1"])
    with pytest.raises(RefusedError, match=r"head\.kind=mlp reads no text; set head\.kind=tgdfer"):
        load_method("paper", ["head.kind=mlp", "optimiser.text_rarity=1"])
