"""The ``--device`` option -> the device that both stages compute on."""

import re
from typing import Literal

from cache.errors import RefusedError

# Of CUDA, of cuBLAS and cuDNN, and of a CPU.
_NO_MEMORY = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: ")


def check_device(device: str) -> str:
    """The name of a device, as it is; raises RefusedError if no machine has such a device."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
        raise RefusedError(
            f"--device {device}: expected auto, cpu or cuda, or cuda:1 for one of several"
        )
    return device


def device_kind(device: str) -> Literal["cpu", "cuda"]:
    """The kind of device that ``device`` names, whether or not it is available."""
    if check_device(device) == "auto":
        device = choose_device(device)
    return "cuda" if device.startswith("cuda") else "cpu"


def choose_device(device: str) -> str:
    """``auto`` -> ``cuda`` if a GPU is available, else ``cpu``; ``cuda:1`` names one of several.

    Raises RefusedError for a device that is not available.
    """
    check_device(device)
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if not torch.cuda.is_available():
        raise RefusedError(f"--device {device}: no CUDA device available; use --device cpu or auto")
    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise RefusedError(
            f"--device {device}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0"
        )
    return device


def free_on_gpu(device: str) -> int:
    """Bytes of its memory that nothing uses."""
    import torch

    return torch.cuda.mem_get_info(device)[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory was too small for what raised ``error``.

    Out of memory during the capture of a graph, the capture's own end fails as well, and only the
    context of that error tells why. Libraries that allocate for themselves raise no type of their
    own.
    """
    import torch

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.OutOfMemoryError):
            return True
        if isinstance(seen, RuntimeError) and any(sign in str(seen) for sign in _NO_MEMORY):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
