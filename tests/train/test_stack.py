"""Training R runs as one program."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.store import Store
from pipeline.config import MethodConfig, Run, effective, load_method, stack_key
from pipeline.model.heads.choose import NETWORKS
from pipeline.model.network import Network
from pipeline.model.text_tower import TextTower
from pipeline.train.features import CachedFeatures, TrainingData, load_training_data
from pipeline.train.records import Records
from pipeline.train.selection import Outcome
from pipeline.train.stack import Stack, build_model, train_stack
from pipeline.train.state import RunState
from support.rounding import ProductsAsDefined, check_rounding
from support.stores import random_store, write_store

FAST = ["optimiser.epochs=3", "optimiser.batch=10", "temporal.head_size=8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    # 43 videos: folds of 34 and 35 training videos, so a stack's runs differ in their steps.
    votes = [None if n % 2 else tuple(float(1 + (n + k) % 5) for k in range(7)) for n in range(43)]
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=43, votes=votes)


@pytest.fixture(scope="module")
def data(store: Store) -> TrainingData:
    return load_training_data(store, torch.device("cpu"))


def run(fold: str, seed: int, *settings: str) -> Run:
    return Run(method=load_method("paper", [*FAST, *settings]), fold=fold, seed=seed)


class InFloat64(CachedFeatures):
    def __call__(self, video_RB: torch.Tensor, view_RB: torch.Tensor) -> torch.Tensor:
        return super().__call__(video_RB, view_RB).double()


@pytest.fixture
def exact(store: Store, monkeypatch: pytest.MonkeyPatch) -> TrainingData:
    """Data that trains in float64: a few steps magnify float32's rounding a million times."""
    monkeypatch.setattr(Network, "to", lambda model, device: model.double())
    data = load_training_data(store, torch.device("cpu"))
    features = InFloat64(torch.from_numpy(store.load_features()))
    assert isinstance(data.tower, TextTower)
    return replace(data, features=features, tower=data.tower.double())


def check_equal_alone(data: TrainingData, runs: list[Run]) -> None:
    """Losses, predictions and parameters of a stack against every run trained alone."""
    for outcome in train_stack(data, runs):
        (alone,) = train_stack(data, [outcome.run])
        check_equal(outcome, alone)


def check_equal(one: Outcome, other: Outcome) -> None:
    np.testing.assert_allclose(
        one.selected.predictions.logits_NK, other.selected.predictions.logits_NK, atol=1e-7
    )
    for name, value in other.selected.parameters.items():
        torch.testing.assert_close(one.selected.parameters[name], value, atol=1e-9, rtol=1e-9)
    for ours, theirs in zip(one.epochs, other.epochs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
def test_a_stack_of_five_folds_and_three_seeds_equals_fifteen_single_runs(
    exact: TrainingData,
) -> None:
    # Batches of 17: folds with 34 training videos need 2 steps, those with 35 need 3.
    sizes = {len(train) for _, train, _ in exact.store.folds}
    assert sizes == {34, 35}
    runs = [run(fold, seed, "optimiser.batch=17") for fold in "12345" for seed in range(3)]
    check_equal_alone(exact, runs)


@pytest.mark.slow
def test_runs_of_a_stack_have_all_settings_of_their_own_that_change_no_operation(
    exact: TrainingData,
) -> None:
    settings = [
        [],
        ["optimiser.lr=0.03", "optimiser.momentum=0.5"],
        ["optimiser.lr_prompts=0.1", "optimiser.weight_decay=0.1"],
        ["optimiser.milestones=[1]", "optimiser.gamma=0.5"],
        ["optimiser.schedule=cosine", "optimiser.warm_up=0.3"],
        ["optimiser.label_smoothing=0.3", "optimiser.augment=false"],
        ["optimiser.views=1", "selection.rule=best_on_test"],
        ["selection.rule=best_on_val", "selection.validation_share=0.25"],
        ["label.temperature=0.07"],
        ["temporal.init=identity", "temporal.positions_std=0.5"],
        ["label.init=identity"],
        ["optimiser.loss=class_balanced", "optimiser.balance_beta=0.9"],
        ["optimiser.loss=logit_adjusted", "optimiser.adjust_tau=0.5", "optimiser.oversample=0.5"],
        ["optimiser.text_rarity=2", "optimiser.lr_prompts=0.1"],
        ["input.centre_text=true", "optimiser.average=ema"],
        ["optimiser.average=last_epochs", "optimiser.average_epochs=2"],
        ["optimiser.target=votes", "optimiser.label_smoothing=0.1"],
    ]
    check_equal_alone(exact, [run("1", 0, *own) for own in settings])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["layer_norm", "standardise", "whiten"])
def test_runs_of_a_stack_scale_their_input_by_their_own_training_videos(
    exact: TrainingData, kind: str
) -> None:
    runs = [run(fold, 0, f"input.scale={kind}", "input.centre_text=true") for fold in "12"]
    check_equal_alone(exact, runs)
    first, second = (r.selected.parameters for r in train_stack(exact, runs))
    if kind != "layer_norm":
        rows = exact.store.folds[0][1]
        mean_D = exact.store.load_features([0])[rows].astype(np.float64).mean((0, 1, 2))
        np.testing.assert_allclose(first["input.mean_RD"], mean_D, atol=1e-6)
        assert not torch.equal(first["input.mean_RD"], second["input.mean_RD"])


@pytest.mark.slow
def test_runs_of_a_stack_weight_frames_by_a_quality_of_their_own(exact: TrainingData) -> None:
    scaled = "input.scale=standardise"
    runs = [run("1", 0, scaled, f"label.quality={quality}") for quality in (0.1, 3)]
    check_equal_alone(exact, runs)
    low, high = (outcome.selected.predictions.logits_NK for outcome in train_stack(exact, runs))
    assert np.abs(low - high).max() > 0.1


def test_some_frames_of_a_store_train_as_a_store_of_these_frames(
    exact: TrainingData, tmp_path: Path
) -> None:
    chosen = [1, 4, 8, 11, 14]  # the middles of five segments of 16
    store = exact.store
    some = write_store(tmp_path / "s.zarr", store.load_features()[:, :, chosen], store.labels)
    fewer = replace(exact, store=some, features=InFloat64(torch.from_numpy(some.load_features())))
    settings = ["input.scale=whiten", "selection.rule=best_on_test"]
    (outcome,) = train_stack(exact, [run("1", 0, *settings, "input.frames=5")])
    (expected,) = train_stack(fewer, [run("1", 0, *settings)])
    assert outcome.selected.predictions.frame_logits_NTK.shape == (9, 5, 7)
    check_equal(outcome, expected)


def first_step(data: TrainingData, precision: str) -> dict[str, torch.Tensor]:
    """Losses of four runs, and how far every parameter moves at rate 1: its gradient."""
    plain = ["optimiser.lr=1", "optimiser.lr_prompts=1", "optimiser.weight_decay=0"]
    settings = [*plain, f"optimiser.precision={precision}"]
    stack = Stack(data, [run(fold, seed, *settings) for fold in "12" for seed in (0, 1)])
    learned = {name: p for name, p in stack.model.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in learned.items()}
    loss_R = stack.step(stack.steps()[0])
    return {"loss": loss_R} | {name: start[name] - p.detach() for name, p in learned.items()}


def test_products_in_bfloat16_round_losses_and_gradients_as_their_definition_does(
    data: TrainingData,
) -> None:
    whole, low = first_step(data, "fp32"), first_step(data, "bf16")
    with ProductsAsDefined():
        defined = first_step(data, "bf16")
    assert {value.dtype for value in low.values()} == {torch.float32}
    check_rounding(low, defined, whole)


def test_the_mean_of_the_last_epochs_is_reported(data: TrainingData) -> None:
    name, ends = "temporal.join.weight_RIO", []
    own = run("1", 0, "optimiser.average=last_epochs", "optimiser.average_epochs=2")
    (outcome,) = train_stack(
        data, [own], keep=lambda stack: ends.append(stack.state(0).parameters[name])
    )
    (plain,) = train_stack(data, [run("1", 0)])
    assert torch.equal(ends[-1], plain.selected.parameters[name])  # training itself is the same
    torch.testing.assert_close(outcome.selected.parameters[name], (ends[1] + ends[2]) / 2)


def test_the_moving_average_of_every_step_is_reported(data: TrainingData) -> None:
    own = run("1", 0, "optimiser.average=ema", "optimiser.average_decay=0.4")
    stack = Stack(data, [own])
    name = "temporal.join.weight_RIO"
    weight = dict(stack.model.named_parameters())[name]
    expected, n = weight.detach()[0].double(), 0
    for _ in range(2):
        for batch in stack.steps():
            stack.step(batch)
            decay = min(0.4, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * weight.detach()[0].double()
            n += 1
        stack.histories[0].epochs.append({"epoch": 0.0})  # the next epoch's keys and shares
    assert n == 8
    latest = weight.detach().clone()
    with stack._evaluated():
        torch.testing.assert_close(weight[0].double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(weight, latest)


@pytest.mark.parametrize(
    ("kind", "average"), [("sgd", "none"), ("adamw", "ema"), ("sgd", "last_epochs")]
)
def test_stack_resumes_from_its_states_as_if_never_interrupted(
    data: TrainingData, kind: str, average: str
) -> None:
    rules = ("rule=last", "rule=best_on_test", "rule=best_on_val", "tested_on=held_out")
    settings = ["optimiser.epochs=5", "selection.validation_share=0.25", "input.scale=whiten"]
    settings += [f"optimiser.kind={kind}", f"optimiser.average={average}"]
    settings += ["optimiser.average_epochs=4", "temporal.dropout=0.2", "prompts.texts=orthogonal"]
    runs = [run("2", 3, *settings, f"selection.{rule}") for rule in rules]
    whole = train_stack(data, runs)
    kept: list[list[RunState]] = []
    train_stack(data, runs, keep=lambda stack: kept.append([stack.state(r) for r in range(4)]))
    assert [states[0].epoch for states in kept] == [1, 2, 3, 4, 5]
    done: list[int] = []
    resumed = train_stack(data, runs, done.append, states=kept[1])
    assert done == [2, 1, 1, 1]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.epochs == theirs.epochs
        assert ours.epoch == theirs.epoch
        np.testing.assert_array_equal(
            ours.selected.predictions.logits_NK, theirs.selected.predictions.logits_NK
        )
        assert all(
            torch.equal(ours.selected.parameters[name], value)
            for name, value in theirs.selected.parameters.items()
        )


def test_a_run_resumes_alone_from_its_state_in_a_stack_with_averages(exact: TrainingData) -> None:
    runs = [run("2", 0), run("2", 0, "optimiser.average=ema")]
    kept: list[list[RunState]] = []
    train_stack(exact, runs, keep=lambda stack: kept.append([stack.state(r) for r in range(2)]))
    for own, state in zip(runs, kept[0], strict=True):
        (resumed,) = train_stack(exact, [own], states=[state])
        (whole,) = train_stack(exact, [own])
        check_equal(resumed, whole)
    assert not any(name.startswith("average") for name in kept[0][0].moments)


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(data: TrainingData) -> None:
    first, second, other = (train_stack(data, [run("2", seed)])[0] for seed in (0, 0, 1))
    assert all(
        torch.equal(first.selected.parameters[name], second.selected.parameters[name])
        for name in first.selected.parameters
    )
    np.testing.assert_array_equal(
        first.selected.predictions.logits_NK, second.selected.predictions.logits_NK
    )
    assert not np.array_equal(
        first.selected.predictions.logits_NK, other.selected.predictions.logits_NK
    )


@pytest.mark.slow
def test_network_learns_what_can_be_learned(data: TrainingData) -> None:
    (outcome,) = train_stack(data, [run("1", 0, "optimiser.epochs=30")])
    assert outcome.epochs[-1]["train_loss"] < 0.05
    assert outcome.epochs[-1]["test_war"] > 0.9
    assert outcome.selected.predictions.logits_NK.shape == (9, 7)
    assert len(outcome.split.train) == 34


@pytest.mark.slow
def test_runs_with_adamw_dropout_and_averages_equal_their_runs_alone(
    exact: TrainingData,
) -> None:
    common = ["optimiser.kind=adamw", "optimiser.lr=1e-3", "optimiser.batch=17"]
    common += ["optimiser.average=ema", "temporal.dropout=0.3"]
    settings = [[], ["optimiser.momentum=0.5"], ["optimiser.average_decay=0.5"]]
    settings += [["temporal.dropout=0.1"]]
    check_equal_alone(exact, [run(fold, 0, *common, *own) for fold in "12" for own in settings])


# EST's norms follow the layers; DPCNet is almost linear, and so is AEN's part on the frames, which
# has to agree with the rest.
RATES = {"est": 0.005, "vadclip": 0.005, "linear": 0.2, "dpcnet": 0.1, "aen": 0.05}
OWN = {"s2d": ["head.hidden=8"]}  # which 8 attention heads divide
HEADS = tuple(kind for kind in NETWORKS if kind != "tgdfer")


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_runs_of_every_head_equal_their_runs_alone(exact: TrainingData, head: str) -> None:
    common = [f"head.kind={head}", "head.dropout=0.3", "optimiser.epochs=2", "optimiser.batch=17"]
    common += OWN.get(head, [])
    own = ["optimiser.lr=1e-3", "optimiser.kind=adamw", "input.scale=standardise"]
    runs = [run(fold, seed, *common, *own) for fold, seed in (("1", 0), ("2", 1))]
    runs.append(run("1", 0, *common, *own, "optimiser.label_smoothing=0.2"))
    check_equal_alone(exact, runs)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["tower=random", "texts=permuted", "texts=orthogonal"])
def test_runs_of_a_stack_share_a_control_of_the_texts_and_equal_their_runs_alone(
    exact: TrainingData, control: str
) -> None:
    settings = [f"prompts.{control}", "prompts.coarse_learnable=true"]
    runs = [run(fold, seed, *settings) for fold in "12" for seed in (0, 1)]
    check_equal_alone(exact, runs)
    with pytest.raises(ValueError, match="must share everything that shapes"):
        train_stack(exact, [runs[0], run("1", 0, "prompts.coarse_learnable=true")])


IDLE = [
    (
        ["temporal.fine_depth=0"],
        ["window=8", "stride=2", "positions=per_window", "merge=last"],
    ),
    (["temporal.coarse_depth=0"], ["coarse_keys=4"]),
    (
        ["temporal.fine_depth=0", "temporal.coarse_depth=0"],
        ["norm=post", "head_size=4", "mlp_ratio=1.0", "dropout=0.5", "positions_std=3.0"],
    ),
    (
        ["temporal.fine_depth=0", "temporal.coarse_depth=0"],
        ["init=identity", "residual=true"],
    ),
    (
        ["prompts.fine_learnable=false"],
        ["context_length=3", "context=shared", "position=front", "optimiser.lr_prompts=1.0"],
    ),
    (["label.fusion=none"], ["prompts.coarse_text=descriptors"]),
    (["label.visual_prompt=none"], ["weighting=linear", "scope=shared"]),
    (["label.pooling=mean_logits"], ["top_k=2"]),
    (["optimiser.schedule=cosine"], ["milestones=[1]", "gamma=0.5"]),
    (["optimiser.average=none"], ["average_decay=0.5", "average_epochs=2"]),
    (["optimiser.loss=cross_entropy"], ["balance_beta=0.5", "adjust_tau=0.5"]),
    (["optimiser.loss=class_balanced"], ["focal_gamma=1.5", "intensity=0.5"]),
    (["optimiser.augment=false"], ["views=1"]),
    (["selection.rule=last"], ["validation_share=0.3"]),
    (["head.kind=tgdfer"], ["layers=2", "hidden=5", "dropout=0.5", "instance=2"]),
    (["head.kind=mlp"], ["instance=2", "prompts.texts=permuted", "optimiser.lr_prompts=1.0"]),
    (["head.kind=linear"], ["layers=2", "hidden=5", "dropout=0.5", "instance=2"]),
    (
        ["head.kind=cliper", "prompts.fine_learnable=false"],
        ["prompts.fine_learnable=true", "prompts.position=middle", "prompts.texts=permuted"],
    ),
    (["head.kind=mlp"], ["label.temperature=0.5", "input.centre_text=true"]),
    (
        ["head.kind=dfer_clip", "temporal.head_size=8"],
        ["prompts.coarse_learnable=true", "label.pooling=top_k", "temporal.dropout=0.5"],
    ),
]


@pytest.mark.parametrize(("settings", "idle"), IDLE)
def test_what_counts_as_without_effect_changes_nothing(
    data: TrainingData, settings: list[str], idle: list[str]
) -> None:
    table = settings[0].partition(".")[0]
    changed = [key if "." in key.partition("=")[0] else f"{table}.{key}" for key in idle]
    one, other = run("1", 0, *settings), run("1", 0, *settings, *changed)
    assert effective(one.method) == effective(other.method) != other.method
    assert stack_key(one.method) == stack_key(other.method)
    one_said, other_said = (train_stack(data, [own])[0].selected for own in (one, other))
    np.testing.assert_array_equal(one_said.predictions.logits_NK, other_said.predictions.logits_NK)


@pytest.mark.parametrize(
    "settings",
    [
        ["average=ema", "average_decay=0.5", "loss=class_balanced", "balance_beta=0.5"],
        ["average=last_epochs", "average_epochs=2", "loss=logit_adjusted", "adjust_tau=0.5"],
        ["average=none", "loss=focal", "focal_gamma=1.5", "mixup=0.3"],
        ["average=none", "loss=intensity_aware", "intensity=0.5"],
    ],
)
def test_what_has_an_effect_counts_as_such(settings: list[str]) -> None:
    own = [f"optimiser.{setting}" for setting in [*settings, "views=1", "lr_prompts=1.0"]]
    own += ["label.pooling=top_k", "label.top_k=2", "label.scope=shared", "label.weighting=linear"]
    own += ["selection.rule=best_on_val", "selection.validation_share=0.3"]
    own += ["temporal.window=8", "temporal.stride=2", "temporal.coarse_keys=4"]
    own += ["prompts.coarse_text=descriptors", "prompts.context=shared"]
    method = load_method("paper", own)
    assert effective(method) == method


POOLINGS = ["mean_logits", "mean_feature", "mean_probability", "top_k", "log_sum_exp", "attention"]
VISUAL_PROMPTS = ["none", "add", "prepend", "concat"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [f"label.pooling={kind}" for kind in POOLINGS]
    + [f"label.visual_prompt={kind}" for kind in VISUAL_PROMPTS]
    + ["label.weighting=linear", "label.scope=shared"],
)
def test_one_batch_is_learned_to_zero_loss(data: TrainingData, setting: str) -> None:
    # All 34 training videos in one batch, the same view every time.
    same = ["optimiser.batch=34", "optimiser.augment=false", "optimiser.milestones=[]"]
    (outcome,) = train_stack(data, [run("1", 0, *same, "optimiser.epochs=80", setting)])
    assert outcome.epochs[0]["train_loss"] > 1
    assert outcome.epochs[-1]["train_loss"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_one_batch_to_zero_loss(data: TrainingData, head: str) -> None:
    same = ["optimiser.batch=34", "optimiser.augment=false", "optimiser.schedule=cosine"]
    fast = ["optimiser.kind=adamw", f"optimiser.lr={RATES.get(head, 0.02)}", "optimiser.epochs=40"]
    fast += ["head.layers=1"]
    kind = [f"head.kind={head}", *OWN.get(head, [])]
    (outcome,) = train_stack(data, [run("1", 0, *same, *fast, *kind)])
    assert outcome.epochs[0]["train_loss"] > 1
    assert outcome.epochs[-1]["train_loss"] < (0.2 if head == "aen" else 0.02)


def test_what_a_head_adds_to_the_loss_is_trained(data: TrainingData) -> None:
    stack = Stack(data, [run("1", 0, "head.kind=dpcnet", "optimiser.batch=34")])
    batch = stack.steps()[0]
    with torch.no_grad():
        out = stack.model(data.features(batch.video_RB, batch.view_RB))
    labels = torch.from_numpy(data.store.labels[batch.video_RB[0]])
    loss = torch.nn.functional.cross_entropy(out.logits_RBK[0], labels, reduction="sum")
    assert out.penalty_RB is not None
    assert out.penalty_RB.min() > 0
    torch.testing.assert_close(stack.step(batch), loss[None] + out.penalty_RB.sum(1))


def test_learning_rate_decays_after_each_milestone(data: TrainingData) -> None:
    # With a factor of almost nothing, training stands still after the first milestone.
    still = ["optimiser.milestones=[1]", "optimiser.gamma=1e-9"]
    (short,) = train_stack(data, [run("1", 0, "optimiser.epochs=1")])
    (long,) = train_stack(data, [run("1", 0, *still)])
    (free,) = train_stack(data, [run("1", 0)])
    name = "temporal.join.weight_RIO"
    assert (long.selected.parameters[name] - short.selected.parameters[name]).abs().max() < 1e-6
    assert (free.selected.parameters[name] - short.selected.parameters[name]).abs().max() > 1e-3


def test_prompts_and_network_have_their_own_learning_rates(data: TrainingData) -> None:
    settings = ["optimiser.epochs=1", "optimiser.lr_prompts=1e-12", "optimiser.weight_decay=0"]
    (outcome,) = train_stack(data, [run("1", 0, *settings)])
    start = dict(build_model(data, [outcome.run]).named_parameters())
    context = start["fine.context_RCW"][0]
    assert torch.allclose(outcome.selected.parameters["fine.context_RCW"], context, atol=1e-9)
    weight = start["temporal.join.weight_RIO"][0]
    assert not torch.allclose(
        outcome.selected.parameters["temporal.join.weight_RIO"], weight, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_context_of_every_class_moves_at_its_own_rate(data: TrainingData, kind: str) -> None:
    common = ["optimiser.weight_decay=0", f"optimiser.kind={kind}"]
    stack = Stack(data, [run("1", 0, *common, f"optimiser.text_rarity={t}") for t in (0, 1)])
    context = dict(stack.model.named_parameters())["fine.context_RCW"]
    start = context.detach().clone()
    stack.step(stack.steps()[0])
    moved = (context.detach() - start).unflatten(1, (7, -1)).norm(dim=(2, 3))
    counts = np.bincount(data.store.labels[data.store.folds[0][1]], minlength=7)
    assert len(set(counts)) > 1
    np.testing.assert_allclose(moved[1] / moved[0], counts.mean() / counts, rtol=1e-3)


def test_a_run_that_diverges_says_so_and_leaves_the_others_alone(exact: TrainingData) -> None:
    sound = run("1", 0, "optimiser.epochs=8")
    # Every step multiplies the parameters by about a million.
    growth = ["optimiser.lr=1000", "optimiser.weight_decay=1000", "optimiser.milestones=[]"]
    diverging = run("1", 0, "optimiser.epochs=8", *growth)
    broken, beside = train_stack(exact, [diverging, sound])
    assert broken.diverged
    (alone,) = train_stack(exact, [sound])
    check_equal(beside, alone)


def test_a_stack_is_freed_without_a_garbage_collection(data: TrainingData) -> None:
    gc.disable()  # a GPU's memory is needed at once, when a stack is halved
    try:
        stack = Stack(data, [run("1", 0)])
        stack.train_epoch()
        parts = [weakref.ref(part) for part in (stack, stack.model)]
        del stack
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


def test_runs_of_different_methods_are_not_stacked(data: TrainingData) -> None:
    with pytest.raises(ValueError, match="must share everything that shapes"):
        train_stack(data, [run("1", 0), Run(method=MethodConfig(), fold="1", seed=0)])


def test_selection_reports_the_network_of_its_epoch(data: TrainingData) -> None:
    settings = ["optimiser.epochs=6", "optimiser.lr=0.1"]
    (best,) = train_stack(data, [run("1", 0, *settings, "selection.rule=best_on_test")])
    scores = [epoch["test_war"] for epoch in best.epochs]
    assert best.epoch == 1 + int(np.argmax(scores))
    labels = data.store.labels[best.split.test]
    assert (best.selected.predictions.logits_NK.argmax(1) == labels).mean() == pytest.approx(
        max(scores)
    )
    (last,) = train_stack(data, [run("1", 0, *settings)])
    assert last.epoch == 6
    assert last.epochs == best.epochs


def test_validation_videos_are_not_trained_on(data: TrainingData) -> None:
    settings = ["selection.rule=best_on_val", "selection.validation_share=0.25"]
    (outcome,) = train_stack(data, [run("1", 0, *settings)])
    train, test = data.store.folds[0][1:]
    assert set(outcome.split.train) < set(train)
    assert 6 <= len(train) - len(outcome.split.train) <= 11
    assert outcome.split.test.tolist() == test.tolist()
    assert {"val_uar", "val_war"} <= set(outcome.epochs[0])


def test_scores_on_held_out_videos_are_not_called_those_of_a_test(
    data: TrainingData, tmp_path: Path
) -> None:
    settings = ["selection.tested_on=held_out", "selection.validation_share=0.25"]
    (outcome,) = train_stack(data, [run("1", 0, *settings)])
    folder = Records(tmp_path, data.store).write(outcome, seconds=1.0)
    columns = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert columns == ["epoch", "train_loss", "held_out_uar", "held_out_war"]
    result = json.loads((folder / "result.json").read_text())
    assert result["held_out_videos"] == len(outcome.split.test)
    assert not [name for name in result if name.startswith("test")]


def test_label_smoothing_and_fewer_views_change_the_training(tmp_path: Path) -> None:
    store = random_store(tmp_path / "s.zarr", videos=20, views=3)
    data = load_training_data(store, torch.device("cpu"))
    changes = ("label_smoothing=0", "label_smoothing=0.2", "views=1", "views=2")
    stack = train_stack(data, [run("1", 0, f"optimiser.{change}") for change in changes])
    plain, smooth, one, both = (outcome.epochs[0]["train_loss"] for outcome in stack)
    assert smooth != pytest.approx(plain, rel=1e-2)
    assert one != pytest.approx(plain, rel=1e-2)
    assert both == pytest.approx(plain, rel=1e-4)  # two are all that the store has
