"""Kernels against their definitions: outputs and every gradient, both measured from float64."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.kernels import Impl
from pipeline.kernels.gather import gather
from pipeline.kernels.head import frame_logits, visual_prompt
from pipeline.kernels.windows import (
    Factors,
    normalised_factors,
    projected_factors,
    window_attention,
)
from support.commands import ROOT, python

R, B = 2, 2
# Rounding that a kernel may add to the definition's error, relative to the largest value.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}

Operation = Callable[[Sequence[Tensor], Impl], Sequence[Tensor]]


@pytest.fixture(params=list(TOLERANCE), ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """What a kernel leaves unwritten shows as NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(2, 2).isnan().all()
        assert torch.zeros(1).new_empty(2, 2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between them, the axes stored in reverse."""
    gap = float("nan") if x.is_floating_point() else -1
    wide = torch.full((*x.shape[::-1], 2), gap, dtype=x.dtype, device=x.device)
    view = wide[..., 0].permute(*reversed(range(x.ndim)))
    return view.copy_(x)


def outputs_and_gradients(operation: Operation, inputs: list[Tensor], impl: Impl) -> list[Tensor]:
    """Outputs, then the gradients of their sum with random weights, which bfloat16 can hold."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = operation(leaves, impl)
    weights = [
        w.bfloat16().to(y) for w, y in zip(drawn(*(y.shape for y in outputs)), outputs, strict=True)
    ]
    if not inputs[0].is_contiguous():
        weights = [strided(w) for w in weights]
    gradients = torch.autograd.grad(outputs, leaves, weights)
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]
    return [y.detach() for y in outputs] + list(gradients)


def check(operation: Operation, inputs: list[Tensor]) -> None:
    """The kernel is as close to float64 as the definition in the same type."""
    exact = outputs_and_gradients(operation, [x.double() for x in inputs], "definition")
    plain = outputs_and_gradients(operation, inputs, "definition")
    with nan_in_new_memory():
        kernel = outputs_and_gradients(operation, inputs, "triton")
    for number, (e, p, k) in enumerate(zip(exact, plain, kernel, strict=True)):
        allowed = (p - e).abs().max() + TOLERANCE[inputs[0].dtype] * e.abs().max()
        assert k.shape == e.shape
        assert (k - e).abs().max() <= allowed, number


# T, w, stride, D, heads
WINDOWS = [
    (1, 1, 1, 24, 3),
    (4, 4, 4, 20, 1),
    (15, 3, 2, 40, 2),
    (16, 4, 1, 64, 2),
    (17, 5, 3, 24, 2),
    (32, 8, 4, 20, 1),
    (32, 20, 12, 24, 1),
    (70, 4, 1, 20, 2),  # more windows than are computed together
    pytest.param(16, 4, 1, 35, 5, marks=pytest.mark.slow),
]


def window_inputs(T: int, w: int, D: int) -> list[Tensor]:
    frames, places, scale, bias = drawn((R, B, T, 3 * D), (R, w, 3 * D), (R, B, T, w), (R, 3 * D))
    return [frames, places, scale.abs() + 0.5, bias]


@pytest.mark.parametrize(("T", "w", "stride", "D", "heads"), WINDOWS)
def test_window_attention_equals_its_definition(
    T: int, w: int, stride: int, D: int, heads: int, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = [x.to(device, dtype) for x in window_inputs(T, w, D)]
    check(lambda x, impl: [window_attention(Factors(*x), stride, heads, impl)], inputs)


def test_window_attention_reads_tensors_with_gaps(device: torch.device) -> None:
    inputs = [strided(x.to(device)) for x in window_inputs(16, 4, 24)]
    check(lambda x, impl: [window_attention(Factors(*x), 2, 3, impl)], inputs)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("T", "w", "stride", "D", "heads"), WINDOWS)
def test_window_attention_equals_attention_to_copied_windows(
    norm: str, T: int, w: int, stride: int, D: int, heads: int
) -> None:
    shapes = (R, B, T, D), (R, w, D), (R, D), (R, D), (R, D, 3 * D), (R, 3 * D)

    def shared(x: Tensor, places: Tensor, gain: Tensor, shift: Tensor, *qkv: Tensor) -> Tensor:
        if norm == "post":
            return window_attention(projected_factors(x, places, *qkv), stride, heads)
        return window_attention(normalised_factors(x, places, gain, shift, *qkv), stride, heads)

    def copied(
        x: Tensor, places: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        starts = range(0, T - w + 1, stride)
        windows = torch.stack([x[:, :, start : start + w] for start in starts], 2)
        windows = windows + places[:, None, None]
        mixed = []
        for r in range(R):
            tokens = windows[r]
            if norm == "pre":
                tokens = F.layer_norm(tokens, (D,), gain[r], shift[r])
            qkv = F.linear(tokens, weight[r].T, bias[r]).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-2, -3) for part in qkv)
            mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))
        return torch.stack(mixed)

    inputs = [x.double().requires_grad_() for x in drawn(*shapes)]
    results = []
    for attention in (shared, copied):
        out = attention(*inputs)
        weights = drawn(out.shape)[0].double()
        gradients = torch.autograd.grad(out, inputs, weights, materialize_grads=True)
        results.append([out, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def taus(device: torch.device) -> Tensor:
    """A temperature for each of R runs."""
    return torch.tensor([0.1, 0.3], dtype=torch.float64, device=device)


# T, D, K
HEADS = [
    (1, 24, 7),
    (4, 40, 11),
    (15, 20, 7),
    (16, 64, 11),
    (17, 72, 7),
    (32, 130, 17),
    (16, 33, 7),
]


@pytest.mark.parametrize(("T", "D", "K"), HEADS)
def test_visual_prompt_and_its_weights_equal_their_definition(
    T: int, D: int, K: int, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = [x.to(device, dtype) for x in drawn((R, B, T, D), (R, K, D))]
    check(lambda x, impl: visual_prompt(x[0], x[1], taus(device), impl), inputs)


@pytest.mark.parametrize("videos", [1, B])
@pytest.mark.parametrize(("T", "D", "K"), HEADS)
def test_frame_logits_equal_their_definition(
    T: int, D: int, K: int, videos: int, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = [x.to(device, dtype) for x in drawn((R, B, T, D), (R, videos, K, D))]
    check(lambda x, impl: [frame_logits(x[0], x[1], taus(device), impl)], inputs)


def test_visual_prompt_and_frame_logits_read_tensors_with_gaps(device: torch.device) -> None:
    inputs = [strided(x.to(device)) for x in drawn((R, B, 16, 24), (R, 7, 24))]
    check(lambda x, impl: visual_prompt(x[0], x[1], taus(device), impl), inputs)
    inputs = [strided(x.to(device)) for x in drawn((R, B, 16, 24), (R, B, 7, 24))]
    check(lambda x, impl: [frame_logits(x[0], x[1], taus(device), impl)], inputs)


def test_a_frame_of_zeros_has_cosine_zero(device: torch.device) -> None:
    instances, fine = (x.to(device) for x in drawn((1, 1, 4, 24), (1, 7, 24)))
    instances[0, 0, 1] = 0
    labels = fine[:, None]
    assert (frame_logits(instances, labels, taus(device)[:1], "triton")[0, 0, 1] == 0).all()
    prompts, weights = visual_prompt(instances, fine, taus(device)[:1], "triton")
    expected = visual_prompt(instances, fine, taus(device)[:1], "definition")
    torch.testing.assert_close((prompts, weights), expected)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize(("T", "D"), [(1, 24), (15, 40), (16, 512)])
def test_gather_takes_views_of_videos(
    T: int, D: int, gaps: bool, dtype: torch.dtype, device: torch.device
) -> None:
    features = drawn((5, 3, T, D))[0].to(device, torch.float16)
    video, view = torch.tensor([[4, 0, 2], [1, 1, 3]]), torch.tensor([[0, 2, 1], [2, 0, 0]])
    expected = features[video.to(device), view.to(device)].to(dtype)
    if gaps:
        features, video, view = strided(features), strided(video), strided(view)
    with nan_in_new_memory():
        out = gather(features, video.to(device), view.to(device), dtype, "triton")
    assert out.dtype == dtype
    # Triton's interpreter truncates to bfloat16 where a GPU rounds.
    rtol = 2**-7 if device.type == "cpu" and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(out, expected, rtol=rtol, atol=0)
    assert torch.equal(gather(features, video.to(device), view.to(device), dtype), expected)


def test_gather_gives_nan_for_a_video_or_view_that_does_not_exist(device: torch.device) -> None:
    features = torch.zeros(5, 3, 4, 24, dtype=torch.float16, device=device)
    video, view = torch.tensor([[4, 5, -1, 4, 4]]), torch.tensor([[2, 0, 0, 3, -1]])
    out = gather(features, video.to(device), view.to(device), impl="triton")
    assert out[0].isnan().all(dim=(1, 2)).tolist() == [False, True, True, True, True]
    assert not out[0, 0].isnan().any()


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    instances, labels = drawn((1, 1, 4, 8), (1, 1, 7, 8))
    tau = taus(torch.device("cpu"))[:1]
    with pytest.raises(ValueError, match=r"got torch\.float64 .* expected torch\.float32 or"):
        frame_logits(instances.double(), labels.double(), tau, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"on cpu; expected .* on a CUDA device"):
        frame_logits(instances, labels, tau, "triton")


def test_kernels_compile_for_gpus_that_are_not_available() -> None:
    done = python(ROOT / "tests/support/compiled.py", env={"TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(name, capability) for name, capability, _ in lines} == {
        (f"_{name}", capability)
        for name in (
            "forward",
            "backward",
            "logits_forward",
            "logits_backward",
            "prompt_forward",
            "prompt_backward",
            "gather",
            "warp",
            "colour",
            "resize",
        )
        for capability in ("80", "90")
    }
    assert all(int(shared) <= 48 << 10 for *_, shared in lines)  # what every GPU has


def test_the_model_runs_on_a_cpu_without_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from pipeline.config import TemporalConfig\n"
        "from pipeline.model.temporal import TemporalNetwork\n"
        "from pipeline.model.tgdfer import TGDFER\n"
        "network = TemporalNetwork([torch.Generator()], 16, 8, [TemporalConfig()])\n"
        "print(network(torch.ones(1, 1, 16, 8)).isfinite().all())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "tensor(True)\n"


def test_a_missing_triton_is_said_once_and_the_definitions_are_computed() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from pipeline.kernels import has_triton\n"
        "print(has_triton(), has_triton())"
    )
    done = python("-c", script)
    assert done.stdout == "False False\n"
    assert done.stderr.count("Triton is not installed") == 1
