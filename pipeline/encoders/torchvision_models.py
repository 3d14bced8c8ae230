"""The name of a 3-D CNN of torchvision -> how it is described, built, and given its weights.

It makes one feature of a segment of several frames: what its classifier would read.
"""

import re
from typing import TYPE_CHECKING, Any

from cache.errors import RefusedError
from cache.identity import Preprocessing
from pipeline.config import FRAMES_MAX

if TYPE_CHECKING:
    import torch

MODELS = ("r3d_18", "mc3_18", "r2plus1d_18")
_DIM = 512
# Those of torchvision's weights, which were trained on Kinetics.
_PIXELS = Preprocessing(
    size_px=112,
    resize="shortest",
    interpolation="bilinear",
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)


def describe_torchvision(name: str) -> tuple[dict[str, Any], Preprocessing]:
    """(configuration, preprocessing) of ``MODEL/FRAMES``, such as ``r3d_18/4``.

    The whole picture is shown, not its centre.  Raises RefusedError for another model or number.
    """
    found = re.fullmatch(r"([\w.-]{1,99})/([0-9]{1,4})", name)
    if found is None or found[1] not in MODELS or not 1 <= int(found[2]) <= FRAMES_MAX:
        raise RefusedError(
            f"torchvision:{name}: expected one of {', '.join(MODELS)}, a slash and the number of "
            "frames of which it makes one feature, such as torchvision:r3d_18/4"
        )
    config = {"torchvision": found[1], "segment": int(found[2]), "embed_dim": _DIM}
    return config, _PIXELS


def build_torchvision(name: str) -> Any:
    """The model without its classifier and with random weights."""
    from torch import nn
    from torchvision.models import video

    model = getattr(video, name)(weights=None)
    model.fc = nn.Identity()
    return model


def without_fc(state: "dict[str, torch.Tensor]", _: Any) -> "dict[str, torch.Tensor]":
    """The weights of a model that was trained with a classifier."""
    return {name: t for name, t in state.items() if not name.startswith("fc.")}
