"""The name of a 3-D CNN that torchvision lacks -> how it is described, built, and given weights.

As those of torchvision, it makes one feature of a segment of several frames: what its classifier
would read.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache.errors import RefusedError
from cache.identity import Preprocessing
from pipeline.config import FRAMES_MAX

if TYPE_CHECKING:
    import torch

# As public ports to PyTorch name their classifiers: C3D's, P3D's, I3D's.
_CLASSIFIERS = ("fc8.", "fc.", "logits.")


@dataclass(frozen=True)
class _Model:
    dim: int
    frames: int | None  # of the only segments that it reads; None if it reads any
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODELS = {
    # x - mean of 0 to 255, by the means that public ports subtract
    "c3d": _Model(4096, 16, 112, (102 / 255, 98 / 255, 90 / 255), (1 / 255,) * 3),
    "i3d": _Model(1024, None, 224, (0.5,) * 3, (0.5,) * 3),
    "p3d63": _Model(2048, 16, 160, *_IMAGENET),
    "p3d199": _Model(2048, 16, 160, *_IMAGENET),
}
_P3D = {"p3d63": (3, 4, 6, 3), "p3d199": (3, 8, 36, 3)}


def describe_cnn3d(name: str) -> tuple[dict[str, Any], Preprocessing]:
    """(configuration, preprocessing) of ``MODEL/FRAMES``, such as ``i3d/16``.

    The whole picture is shown, not its centre.  Raises RefusedError for another model, or for a
    number of frames that it cannot read.
    """
    found = re.fullmatch(r"([\w.-]{1,99})/([0-9]{1,4})", name)
    if found is None or found[1] not in MODELS or not 1 <= int(found[2]) <= FRAMES_MAX:
        raise RefusedError(
            f"cnn3d:{name}: expected one of {', '.join(MODELS)}, a slash and the number of frames "
            "of which it makes one feature, such as cnn3d:i3d/16"
        )
    model, frames = MODELS[found[1]], int(found[2])
    if model.frames not in (None, frames):
        raise RefusedError(
            f"cnn3d:{name}: {found[1]} makes one feature of {model.frames} frames; use "
            f"cnn3d:{found[1]}/{model.frames}, or i3d, which reads any number"
        )
    config = {"cnn3d": found[1], "segment": frames, "embed_dim": model.dim}
    return config, Preprocessing(
        size_px=model.size_px,
        resize="shortest",
        interpolation="bilinear",
        mean=model.mean,
        std=model.std,
    )


def build_cnn3d(name: str) -> Any:
    """The model without its classifier and with random weights."""
    from pipeline.encoders.c3d import C3D
    from pipeline.encoders.i3d import I3D
    from pipeline.encoders.p3d import P3D

    if name in _P3D:
        return P3D(_P3D[name])
    return C3D() if name == "c3d" else I3D()


def without_logits(state: "dict[str, torch.Tensor]", _: Any) -> "dict[str, torch.Tensor]":
    """The weights of a model that was trained with a classifier."""
    return {name: t for name, t in state.items() if not name.startswith(_CLASSIFIERS)}
