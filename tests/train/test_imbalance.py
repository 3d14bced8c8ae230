"""Losses, draws and rates that even out rare and common classes, against NumPy in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.errors import RefusedError
from pipeline.config import OptimiserConfig, Run, load_method, stack_key
from pipeline.train.batches import epoch_batches
from pipeline.train.features import load_training_data
from pipeline.train.imbalance import (
    RARITY_MAX,
    class_counts,
    draw_chances,
    logit_shifts,
    loss_weights,
    prompt_rates,
)
from pipeline.train.stack import Stack
from pipeline.train.step import cross_entropy, intensity_aware
from support import oracle
from support.stores import CLASSES, write_store

# Of the 44 videos of a store; every third has none.
STORED_VOTES: list[Any] = [None if n % 3 == 0 else (5.0, n % 4, n % 3) for n in range(44)]
COUNTS = np.array([40.0, 10.0, 2.0])
# Of five videos: three with one label, two whose annotators disagree.
VOTES = np.array([[1, 0, 0], [0, 3, 0], [0, 0, 1], [2, 1, 1], [0, 1, 9]])
TRAINED = np.array([24, 6, 3])  # videos of each class that the runs of a stack are trained on
LOSSES_OF_A_STACK = [
    f"{loss} optimiser.target={target}"
    for loss in ("loss=cross_entropy", "loss=class_balanced", "loss=logit_adjusted")
    for target in ("hard", "votes")
]
LOSSES: list[dict[str, Any]] = [
    {"loss": "cross_entropy"},
    {"loss": "class_balanced", "balance_beta": 0.9},
    {"loss": "class_balanced", "balance_beta": 0.0},
    {"loss": "logit_adjusted", "adjust_tau": 0.7},
]


def stack_of(folder: Path, *settings: str) -> Stack:
    """A run for each setting of the optimiser, all on the same ``TRAINED`` videos."""
    features = np.random.default_rng(0).standard_normal((44, 2, 4, 8))
    labels = np.repeat([0, 1, 2], [32, 8, 4])
    store = write_store(
        folder / "s.zarr", features, labels, classes=CLASSES[:3], folds=4, votes=STORED_VOTES
    )
    methods = [
        load_method("paper", ["optimiser.batch=11", *f"optimiser.{own}".split()])
        for own in settings
    ]
    data = load_training_data(store, torch.device("cpu"))
    return Stack(data, [Run(method=method, fold="1", seed=0) for method in methods])


def test_every_loss_of_labels_and_votes_and_its_gradient_equal_the_oracle_for_every_run() -> None:
    configs = [OptimiserConfig(label_smoothing=s, **own) for own in LOSSES for s in (0.0, 0.2)]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(configs), len(VOTES), 3, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    target = torch.from_numpy(VOTES / VOTES.sum(1, keepdims=True)).expand(len(configs), -1, -1)
    smoothing = torch.tensor([config.label_smoothing for config in configs], dtype=torch.float64)
    weights, shifts = (
        torch.from_numpy(np.stack([value(config, COUNTS) for config in configs]))
        for value in (loss_weights, logit_shifts)
    )
    losses = cross_entropy(logits, target, smoothing, weights, shifts)
    losses.sum().backward()
    assert logits.grad is not None
    for r, config in enumerate(configs):
        given = (config.loss, config.balance_beta, config.adjust_tau, config.label_smoothing)
        for b, votes in enumerate(VOTES):
            own = logits[r, b].detach().numpy()
            assert losses[r, b].item() == pytest.approx(
                oracle.voted_loss(own, votes, COUNTS, *given), rel=1e-12
            )
            for k, step in enumerate(np.eye(3) * 1e-5):
                up, down = (
                    oracle.voted_loss(own + s, votes, COUNTS, *given) for s in (step, -step)
                )
                assert float(logits.grad[r, b, k]) == pytest.approx(
                    (up - down) / 2e-5, rel=1e-6, abs=1e-9
                )


@pytest.mark.parametrize("loss", ["focal", "intensity_aware"])
def test_losses_of_what_is_hard_and_their_gradients_equal_the_oracle(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(VOTES), 3, generator=generator, dtype=torch.float64) * 2
    logits.requires_grad_()
    share_NK = VOTES / VOTES.sum(1, keepdims=True)
    target = torch.from_numpy(share_NK).expand(2, -1, -1)
    gammas, smoothing = torch.tensor([1.0, 2.5]).double(), torch.tensor([0.0, 0.2]).double()
    ones, zeros = torch.ones(2, 3).double(), torch.zeros(2, 3).double()
    if loss == "focal":
        losses = cross_entropy(logits, target, smoothing, ones, zeros, gammas)
    else:
        losses = intensity_aware(logits, target)

    def expected(own: np.ndarray, r: int, share_K: np.ndarray) -> float:
        given = (float(gammas[r]), float(smoothing[r]))
        each = [
            oracle.focal_loss(own, k, *given)
            if loss == "focal"
            else oracle.intensity_aware_term(own, k)
            for k in range(3)
        ]
        return float(share_K @ each)

    losses.sum().backward()
    assert logits.grad is not None
    for r, b in np.ndindex(2, len(VOTES)):
        own, share_K = logits[r, b].detach().numpy(), share_NK[b]
        assert losses[r, b].item() == pytest.approx(expected(own, r, share_K), rel=1e-12)
        for k, step in enumerate(np.eye(3) * 1e-5):
            up, down = (expected(own + s, r, share_K) for s in (step, -step))
            assert float(logits.grad[r, b, k]) == pytest.approx((up - down) / 2e-5, abs=1e-9)


def test_a_video_that_is_certain_gives_finite_gradients_of_the_focal_loss() -> None:
    logits = torch.tensor([[[90.0, 0.0, -90.0]]], requires_grad=True)
    given = torch.eye(3)[None, :1], torch.zeros(1), torch.ones(1, 3), torch.zeros(1, 3)
    cross_entropy(logits, *given, torch.ones(1)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_videos_of_a_step_are_mixed_in_pairs_with_features_and_targets_alike(
    tmp_path: Path,
) -> None:
    stack = stack_of(tmp_path, "mixup=0.5 optimiser.target=votes", "mixup=0.8 optimiser.views=1")
    data, batches = stack.data, stack.steps()
    votes_NK = data.targets_2NK[1]
    for batch in batches:
        for r in range(2):
            valid = batch.weight_RB[r] > 0
            assert sorted(batch.other_RB[r][valid]) == sorted(batch.video_RB[r][valid])
            assert len(batch.mixed_RB[r].unique()) == 1
    assert len({float(batch.mixed_RB[r, 0]) for batch in batches for r in range(2)}) == 6
    batch = batches[0]
    share = batch.mixed_RB[..., None, None]
    own, other = (
        data.features(*rows)
        for rows in (
            (batch.video_RB, batch.view_RB),
            (batch.other_RB, batch.other_view_RB),
        )
    )
    with torch.no_grad():
        logits_RBK = stack.model((1 - share) * own + share * other).logits_RBK
    loss_R = stack.step(batch)
    log_p_BK = logits_RBK[0].double().log_softmax(1).numpy()
    mixed = float(batch.mixed_RB[0, 0])
    target_BK = (1 - mixed) * votes_NK[batch.video_RB[0]] + mixed * votes_NK[batch.other_RB[0]]
    assert float(loss_R[0]) == pytest.approx(-(target_BK.numpy() * log_p_BK).sum(), rel=1e-4)


def test_pairs_of_a_run_do_not_depend_on_the_stack(tmp_path: Path) -> None:
    alone = stack_of(tmp_path / "a", "mixup=0.8")
    beside = stack_of(tmp_path / "b", "mixup=0.3", "mixup=0.8")
    for own, both in zip(alone.steps(), beside.steps(), strict=True):
        assert torch.equal(own.other_RB[0], both.other_RB[1])
        assert torch.equal(own.mixed_RB[0], both.mixed_RB[1])
    assert stack_key(alone.runs[0].method) == stack_key(beside.runs[0].method)
    assert stack_key(load_method()) != stack_key(alone.runs[0].method)


def test_every_run_of_a_stack_trains_with_its_own_loss(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, *LOSSES_OF_A_STACK)
    batch = stack.steps()[0]
    labels_N = stack.data.store.labels
    asked: dict[str, list[Any]] = {"hard": [None] * 44, "votes": STORED_VOTES}
    with torch.no_grad():
        logits_RBK = stack.model(stack.data.features(batch.video_RB, batch.view_RB)).logits_RBK
    loss_R = stack.step(batch)
    for r, run in enumerate(stack.runs):
        config, expected = run.method.optimiser, 0.0
        given = (config.loss, config.balance_beta, config.adjust_tau, config.label_smoothing)
        for own_K, row in zip(logits_RBK[r].double().numpy(), batch.video_RB[r], strict=True):
            votes = asked[config.target][row] or np.eye(3)[labels_N[row]]
            expected += oracle.voted_loss(own_K, votes, TRAINED, *given)
        assert float(loss_R[r]) == pytest.approx(expected, rel=1e-4), config


def test_class_weights_favour_rare_classes_and_have_mean_one_over_the_videos() -> None:
    for beta in (0.0, 0.9, 0.999999):
        weights = loss_weights(OptimiserConfig(loss="class_balanced", balance_beta=beta), COUNTS)
        assert np.average(weights, weights=COUNTS) == pytest.approx(1)
    np.testing.assert_allclose(weights / weights[0], COUNTS[0] / COUNTS, rtol=1e-3)  # 1/n_k


def test_a_class_without_training_videos_has_finite_weights() -> None:
    counts = class_counts(np.array([0, 0, 0, 2]), 3)
    assert counts.tolist() == [3, 1, 1]
    assert np.isfinite(logit_shifts(OptimiserConfig(loss="logit_adjusted"), counts)).all()
    assert np.isfinite(loss_weights(OptimiserConfig(loss="class_balanced"), counts)).all()


@pytest.mark.parametrize(("oversample", "power"), [(0.5, 0.5), (1.0, 0.0)])
def test_oversampling_draws_classes_by_the_power_of_their_size(
    oversample: float, power: float
) -> None:
    labels = np.repeat([0, 1, 2], COUNTS.astype(int))
    rows = np.arange(len(labels)) + 7
    chances = draw_chances(OptimiserConfig(oversample=oversample), labels)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        batches = epoch_batches([rows], 13, [3], [generator], [chances])
        drawn.append(batches.video_SRB[batches.weight_SRB > 0])
        assert len(drawn[-1]) == len(rows)
    counts = np.bincount(np.concatenate(drawn) - 7, minlength=len(rows))
    shares = np.bincount(labels, weights=counts) / counts.sum()
    np.testing.assert_allclose(shares, COUNTS**power / (COUNTS**power).sum(), atol=0.01)
    for k in range(3):  # all videos of a class alike
        own = counts[labels == k]
        np.testing.assert_allclose(own / own.mean(), 1, atol=0.2)


def test_every_run_of_a_stack_draws_as_its_own_oversampling_says(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, "oversample=0", "oversample=1")
    drawn_RN = torch.cat([batch.video_RB for _ in range(200) for batch in stack.steps()], 1)
    once, alike = (np.bincount(labels) for labels in stack.data.store.labels[drawn_RN])
    np.testing.assert_array_equal(once, 200 * TRAINED)
    np.testing.assert_allclose(alike / alike.sum(), 1 / 3, atol=0.02)


def test_without_oversampling_the_random_draws_are_those_of_a_permutation() -> None:
    rows, labels = np.arange(20), np.arange(20) % 3
    assert draw_chances(OptimiserConfig(), labels) is None
    ours, theirs = (np.random.default_rng(4) for _ in range(2))
    batches = epoch_batches([rows], 20, [3], [ours], [None])
    np.testing.assert_array_equal(batches.video_SRB[0, 0], theirs.permutation(rows))
    np.testing.assert_array_equal(batches.view_SRB[0, 0], theirs.integers(1, 3, 20))


def test_rare_classes_learn_their_context_faster_up_to_a_limit() -> None:
    counts = np.array([400.0, 40.0, 4.0])
    np.testing.assert_array_equal(prompt_rates(OptimiserConfig(), counts), 1)
    rates = prompt_rates(OptimiserConfig(text_rarity=0.5), counts)
    np.testing.assert_allclose(rates, (148 / counts) ** 0.5)
    assert prompt_rates(OptimiserConfig(text_rarity=1), counts)[2] == RARITY_MAX


def test_rates_by_class_are_refused_where_contexts_are_shared() -> None:
    with pytest.raises(RefusedError, match=r"paper: optimiser\.text_rarity=0\.5 needs context"):
        load_method("paper", ["optimiser.text_rarity=0.5", "prompts.context=shared"])
    load_method("paper", ["prompts.context=shared"])


def test_rates_by_class_are_refused_where_no_context_is_learned() -> None:
    plain, rates = "prompts.fine_learnable=false", "optimiser.text_rarity=0.5"
    coarse = [plain, "prompts.coarse_learnable=true", rates]
    for settings in ([plain, rates], [*coarse, "label.fusion=none"]):
        with pytest.raises(
            RefusedError, match=r"but no prompt .*; set prompts\.fine_learnable=true"
        ):
            load_method("paper", settings)
    load_method("paper", [plain])
    load_method("paper", coarse)
