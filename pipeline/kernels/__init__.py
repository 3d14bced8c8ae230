"""GPU kernels, each beside its definition in plain PyTorch, which the CPU runs.

``auto`` runs the Triton kernel for data on a CUDA device in a dtype that it reads (not float64),
and the definition for everything else,
also where Triton is not installed. Kernels compute in float32.
"""

import os
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "definition", "triton"]


def runs_triton(
    impl: Impl, data: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
) -> bool:
    """Whether ``data`` is processed by the Triton kernel, which reads ``dtypes``.

    Raises ValueError if ``triton`` is asked for and cannot run.
    """
    readable = data.dtype in dtypes
    if impl == "auto":
        return data.is_cuda and readable and has_triton()
    # Triton's interpreter runs kernels on the CPU, for tests.
    available = (data.is_cuda or os.environ.get("TRITON_INTERPRET") == "1") and has_triton()
    if impl == "triton" and not (available and readable):
        raise ValueError(
            f"impl='triton' got {data.dtype} on {data.device}; expected "
            f"{' or '.join(map(str, dtypes))} on a CUDA device with Triton installed, "
            "or impl='auto'"
        )
    return impl == "triton"


@cache
def has_triton() -> bool:
    """Whether Triton is installed; says once if it is not."""
    if find_spec("triton") is None:
        warnings.warn(
            "Triton is not installed, so the GPU computes the plain definitions, which is slower; "
            "install it with: pip install triton",
            stacklevel=2,
        )
        return False
    return True
