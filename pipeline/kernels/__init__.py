"""GPU kernels, each beside its definition in plain PyTorch, which the CPU runs.

The data choose: ``auto`` takes the Triton kernel for float32 and bfloat16 on a CUDA device and the
definition for everything else. Kernels compute in float32 whatever they read and write.
"""

import os
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "definition", "triton"]


def runs_triton(impl: Impl, data: Tensor) -> bool:
    """Whether ``data`` go through the Triton kernel.

    Raises ValueError where ``triton`` is asked for and cannot run.
    """
    # Triton's interpreter runs kernels on the CPU, for tests.
    device = data.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    dtype = data.dtype in (torch.float32, torch.bfloat16)
    if impl == "triton" and not (device and dtype):
        raise ValueError(
            f"impl='triton' got {data.dtype} on {data.device}; expected float32 or bfloat16 on a "
            "CUDA device; choose impl='auto' or 'definition'"
        )
    return impl == "triton" or (impl == "auto" and data.is_cuda and dtype)
