"""The ``--device`` option -> the device that both stages compute on."""

from typing import Literal

from cache.errors import RefusedError

_NO_MEMORY = ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED")  # of CUDA, cuBLAS and cuDNN


def device_kind(device: str) -> Literal["cpu", "cuda"]:
    """The kind of device that ``device`` names, whether or not it is available."""
    if device == "auto":
        device = choose_device(device)
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise RefusedError(f"--device {device}: expected auto, cpu or cuda")
    return "cuda" if device.startswith("cuda") else "cpu"


def choose_device(device: str) -> str:
    """``auto`` -> ``cuda`` if a GPU is available, else ``cpu``; ``cuda:1`` names one of several.

    Raises RefusedError for a device that is not available.
    """
    if device.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise RefusedError(f"--device {device}: expected auto, cpu or cuda")
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RefusedError(f"--device {device}: no CUDA device available; use --device cpu or auto")
    if device.startswith("cuda:"):
        known = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if device not in known:
            raise RefusedError(f"--device {device}: this machine has {', '.join(known)}")
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was too small for what raised ``error``.

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
