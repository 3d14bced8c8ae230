"""Where the stages compute."""

import pytest
import torch

from cache.errors import RefusedError
from pipeline.device import choose_device, is_out_of_memory


def test_unavailable_device_is_refused() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(RefusedError, match=r"--device tpu: expected auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(RefusedError, match=r"no CUDA device available; use --device cpu"):
            choose_device("cuda")


def test_memory_that_was_too_small_is_recognised_behind_the_error_it_causes() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(1 << 50)
    assert is_out_of_memory(on_cpu.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(RefusedError("the note says CUDA error: out of memory"))
    with pytest.raises(RuntimeError) as captured:
        _capture_without_memory()
    assert is_out_of_memory(captured.value)


def _capture_without_memory() -> None:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")
