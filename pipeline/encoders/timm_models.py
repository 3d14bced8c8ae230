"""The name of an image model of timm -> how it is described, built, and given its weights.

Its features are what its classifier would read.
"""

import difflib
import re
from typing import TYPE_CHECKING, Any

from cache.errors import RefusedError
from cache.identity import Preprocessing

if TYPE_CHECKING:
    import torch


def describe_timm(name: str) -> tuple[dict[str, Any], Preprocessing]:
    """(configuration, preprocessing) of a model such as ``vit_base_patch16_dinov3.lvd1689m``.

    Pixels are those of the weights after the dot, by default of timm's first choice; the whole
    picture is shown, not its centre.  Raises RefusedError for a name that timm does not have, and
    for a model that does not make one feature vector of a square picture.
    """
    import timm
    import torch

    # Other names, such as hf-hub:…, would be fetched.
    if not re.fullmatch(r"[\w.-]{1,99}", name) or not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean one of {', '.join(near)}?" if near else ""
        raise RefusedError(f"timm has no model {name}{hint}")
    pixels = timm.data.resolve_data_config(pretrained_cfg=_published(name))
    _, height, width = pixels["input_size"]
    with torch.device("meta"), torch.inference_mode():
        shape = build_timm(name).eval()(torch.zeros(1, 3, height, width)).shape
    if height != width or len(shape) != 2:
        raise RefusedError(
            f"timm:{name} makes {list(shape)} of a picture of {height} x {width} pixels, expected "
            "one feature vector of a square; choose another model"
        )
    squash = pixels["crop_mode"] == "squash"
    preprocessing = Preprocessing(
        size_px=height,
        resize="squash" if squash else "shortest",
        interpolation=pixels["interpolation"],
        mean=pixels["mean"],
        std=pixels["std"],
    )
    return {"timm": name, "embed_dim": shape[1]}, preprocessing


def build_timm(name: str) -> Any:
    """The model without its classifier and with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0)


def without_classifier(state: "dict[str, torch.Tensor]", model: Any) -> "dict[str, torch.Tensor]":
    """The weights of a model that was trained with a classifier."""
    classifier = model.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else classifier
    own = model.state_dict()
    heads = tuple(f"{name}." for name in names)
    return {name: t for name, t in state.items() if name in own or not name.startswith(heads)}


def _published(name: str) -> dict[str, Any]:
    import timm

    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        raise RefusedError(f"timm:{name}: {error}") from error
    return known.to_dict() if known else {}
