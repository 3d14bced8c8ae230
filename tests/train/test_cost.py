"""What a stack is said to cost, against what torch counts."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Run, load_method
from pipeline.datasets.texts import class_texts
from pipeline.train.cost import Rates, Sizes, bytes_of, kept_bytes, seconds_of, sizes_of, work_of
from pipeline.train.features import TrainingData, load_training_data
from pipeline.train.stack import Stack, learned_parameters
from support.stores import CLASSES, random_store

SETTINGS = [
    (),
    ("temporal.fine_depth=0", "temporal.coarse_depth=0"),
    ("temporal.fine_depth=0", "temporal.coarse_depth=3", "temporal.coarse_keys=4"),
    ("temporal.fine_depth=2", "temporal.window=8", "temporal.positions=per_window"),
    ("label.visual_prompt=concat", "temporal.mlp_ratio=4", "prompts.context=shared"),
    ("label.visual_prompt=none", "prompts.fine_learnable=false", "input.frames=8"),
    ("label.visual_prompt=prepend", "optimiser.batch=8"),
    ("prompts.fine_text=descriptors", "prompts.coarse_learnable=true"),
    ("head.kind=linear",),
    ("head.kind=mlp", "head.layers=3", "head.hidden=96"),
    ("head.kind=mlp",),
    ("head.kind=bilstm", "input.frames=8"),
    ("head.kind=transformer", "head.hidden=96"),
    ("head.kind=dfer_clip",),
    ("head.kind=emoclip", "prompts.fine_learnable=false"),
    ("head.kind=cliper", "prompts.context_length=4"),
    ("head.kind=s2d", "head.layers=2"),
    ("head.kind=vadclip", "prompts.fine_learnable=false"),
    ("head.kind=grace", "prompts.fine_text=descriptors", "prompts.fine_learnable=false"),
    ("head.kind=est", "head.layers=2"),
    ("head.kind=m3dfel", "head.layers=1", "head.hidden=48"),
    ("head.kind=nr_dfernet", "head.instance=2"),
    ("head.kind=dpcnet",),
    ("head.kind=aen",),
    ("head.kind=logo_former", "head.layers=2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    store = random_store(tmp_path_factory.mktemp("store") / "s.zarr", videos=60, dim=64)
    return load_training_data(store, torch.device("cpu"))


@pytest.fixture(scope="module")
def projected(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Frames of 512 features, and texts of 64."""
    path = tmp_path_factory.mktemp("projected") / "s.zarr"
    store = random_store(path, videos=60, dim=512, text_dim=64)
    return load_training_data(store, torch.device("cpu"))


def run(*settings: str, fold: str = "1") -> Run:
    return Run(method=load_method("paper", settings), fold=fold, seed=0)


@pytest.mark.parametrize("settings", SETTINGS, ids=",".join)
def test_work_and_memory_are_about_those_that_torch_counts(
    data: TrainingData, settings: tuple[str, ...]
) -> None:
    compare_with_torch(data, settings)


@pytest.mark.parametrize("settings", [(), ("head.kind=dfer_clip",), ("head.kind=mlp",)])
def test_the_projection_of_frames_to_texts_counts_where_there_is_one(
    projected: TrainingData, settings: tuple[str, ...]
) -> None:
    compare_with_torch(projected, settings)


def compare_with_torch(data: TrainingData, settings: tuple[str, ...]) -> None:
    stack, sizes = Stack(data, [run(*settings, fold=fold) for fold in "12"]), sizes_of(data.store)
    method = stack.runs[0].method
    batch = stack.steps()[0]
    with FlopCounterMode(display=False) as counter:
        stack.step(batch)
    assert 2e9 * work_of(method, sizes).gflop == pytest.approx(counter.get_total_flops(), rel=0.15)

    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {tensor.untyped_storage().data_ptr() for tensor in stack.model.parameters()}
    features = data.features(batch.video_RB, batch.view_RB)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = stack.model(features).logits_RBK  # which holds what was kept
    own = sum(size for place, size in kept.items() if place not in weights)
    assert 2 * kept_bytes(method, sizes) == pytest.approx(own, rel=0.1), len(logits)

    learned = sum(tensor[0].numel() for tensor in learned_parameters(stack.model).values())
    for more in ("optimiser.kind=adamw", "optimiser.average=ema"):
        copy = bytes_of([run(*settings, more)], sizes) - bytes_of(stack.runs, sizes)
        assert copy == pytest.approx(4 * learned, rel=0.15)


def test_seconds_grow_with_what_is_done() -> None:
    sizes = Sizes(16, 64, class_texts(CLASSES), 64, 2, {"1": (97, 24), "2": (40, 48)})
    one, other = (run("optimiser.epochs=7", fold=fold) for fold in "12")
    steps, work = Rates(1, 0, 0, 0), work_of(one.method, sizes)
    assert seconds_of([one], sizes, steps) == seconds_of([one, other], sizes, steps) == 7 * 3
    assert seconds_of([other], sizes, steps) == 7
    alone, both = (seconds_of(runs, sizes, Rates(0, 0, 2, 0)) for runs in ([one], [one, one]))
    assert alone == pytest.approx(7 * (3 + 24 / 48 / 3) * 2 * work.gflop)
    assert both == pytest.approx(2 * alone)


def test_micro_batches_need_less_memory() -> None:
    sizes = Sizes(16, 512, class_texts(CLASSES), 512, 12, {"1": (80, 20)})
    large, small = (load_method("paper", [f"optimiser.batch={n}"]) for n in (48, 12))
    whole, parts = (bytes_of([run(f"optimiser.micro_batch={n}")], sizes) for n in (0, 12))
    assert whole - parts == kept_bytes(large, sizes) - kept_bytes(small, sizes) > 0
