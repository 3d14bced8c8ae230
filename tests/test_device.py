"""Where the stages compute."""

import pytest
import torch

from cache.errors import RefusedError
from pipeline.device import choose_device


def test_unavailable_device_is_refused() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(RefusedError, match=r"--device tpu: expected auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(RefusedError, match=r"no CUDA device available; use --device cpu"):
            choose_device("cuda")
