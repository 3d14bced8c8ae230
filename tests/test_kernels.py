"""Kernels against their definitions: outputs and every gradient, both measured from float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.kernels import Impl
from pipeline.kernels.windows import (
    Factors,
    normalised_factors,
    projected_factors,
    window_attention,
)

R, B = 2, 2
# Rounding that a kernel may add to the definition's error, relative to the largest value.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}

Operation = Callable[[Sequence[Tensor], Impl], Sequence[Tensor]]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run: in the interpreter, or compiled."""
    if request.param == "cuda":
        return request.getfixturevalue("gpu")
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels run compiled here")
    return torch.device("cpu")


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
    wide = torch.full((*x.shape[::-1], 2), float("nan"), dtype=x.dtype, device=x.device)
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
