"""Frames [frame, channel, height, width] -> features [frame, dim], by a frozen CLIP image tower.

``find_encoder`` describes an encoder from its files alone, without importing torch; ``Encoder``
loads it.
"""

import difflib
import importlib.util
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cache.errors import RefusedError
from cache.files import canonical_json, sha256, sha256_file
from cache.identity import EncoderIdentity, Preprocessing
from pipeline.device import choose_device

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]

MINI = Path(__file__).parent / "mini"
LOCAL_DIR = "local-dir:"
_CONFIG = "open_clip_config.json"
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder as its files describe it; nothing is loaded yet."""

    name: str  # what the identity records
    model: str  # the name by which open_clip loads it
    weights_path: Path
    config: dict[str, Any] = field(repr=False)  # open_clip's model_cfg
    preprocessing: Preprocessing

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What the store records about it; the text tower's sha256 is None until it is loaded."""
        return EncoderIdentity(
            name=self.name,
            weights_sha256=sha256_file(self.weights_path),
            activation="QuickGELU" if self.config.get("quick_gelu") else "GELU",
            dim=self.config["embed_dim"],
        )


def find_encoder(name: str = "mini", pretrained: str | None = None) -> EncoderFiles:
    """What is known about an encoder before loading it.

    ``name`` is ``mini`` (bundled), ``local-dir:FOLDER`` as open_clip saves them, or an open_clip
    model name with ``pretrained`` a tag (fetched by open_clip if it is not on this machine) or a
    file of weights.  Raises RefusedError if anything is missing or does not fit together.
    """
    if name == "mini":
        return _in_folder(MINI, "mini")
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        return _in_folder(folder, LOCAL_DIR + folder.name)
    config = _open_clip_config(name)
    pretrained = pretrained or "openai"
    pixels: dict[str, Any] = {"mean": _OPENAI_MEAN, "std": _OPENAI_STD}
    if Path(pretrained).suffix:
        weights = Path(pretrained)
        if not weights.is_file():
            raise RefusedError(f"no weights at {weights}; check --pretrained")
    else:
        weights, pixels = _fetch_tag(name, pretrained, config)
    return EncoderFiles(name, name, weights, config, _preprocessing(config, pixels))


def choose_precision(precision: Precision, device: str) -> str:
    """``auto`` -> bf16 if the device has it natively, else fp16 on a GPU and fp32 on a CPU."""
    import torch

    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class Encoder:
    """A loaded encoder on a device, frozen."""

    def __init__(self, files: EncoderFiles, device: str, precision: Precision) -> None:
        import torch

        self.files = files
        self.device = torch.device(choose_device(device))
        self.precision = choose_precision(precision, self.device.type)
        model = _load_model(files)
        self.text_weights = _text_weights(model)
        self.text_config = canonical_json(
            {
                "model": files.name,
                "embed_dim": files.config["embed_dim"],
                "quick_gelu": bool(files.config.get("quick_gelu")),
                "text_cfg": files.config["text_cfg"],
                "logit_scale": float(model.logit_scale.detach().exp()),
            }
        )
        self._low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        # Convolutions are twice as fast in the channels-last layout.
        self.visual = model.visual.to(self.device, memory_format=torch.channels_last)
        self.visual.eval().requires_grad_(False)
        if self._low is not None:
            _compute_in(self._low, self.visual)
        mean, std = files.preprocessing.mean, files.preprocessing.std
        # (x / 255 - mean) / std as one multiplication and one subtraction per pixel
        self._scale_CHW = (1 / (255 * torch.tensor(std, device=self.device))).view(3, 1, 1)
        offset = torch.tensor(mean, device=self.device) / torch.tensor(std, device=self.device)
        self._offset_CHW = offset.view(3, 1, 1)

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What the store records about it, complete."""
        return self.files.identity.model_copy(update={"text_sha256": sha256(self.text_weights)})

    def encode(self, frames_NCHW: "torch.Tensor") -> "torch.Tensor":
        """Un-normalised ``encode_image`` of uint8 frames -> float16 [frame, dim] on the device.

        The exact bits depend on the number of frames in the call, so callers keep that fixed.
        """
        import torch

        autocast = torch.autocast(self.device.type, self._low, enabled=self._low is not None)
        with torch.inference_mode(), autocast:
            features_ND: torch.Tensor = self.visual(self._normalise(frames_NCHW))
            return features_ND.to(torch.float16)

    def encode_with_gradient(self, frames_NCHW: "torch.Tensor") -> "torch.Tensor":
        """Like ``encode``, but in float32 and with gradients for the image tower's weights."""
        features_ND: torch.Tensor = self.visual(self._normalise(frames_NCHW))
        return features_ND

    def as_files(self) -> dict[str, bytes]:
        """The encoder's present state, as the files of an open_clip ``local-dir``.

        The weights are a complete state dict, so that ``--pretrained FILE`` accepts them as well.
        """
        import torch
        from safetensors.torch import load, save

        state = load(self.text_weights)
        state |= {f"visual.{n}": t.contiguous() for n, t in self.visual.state_dict().items()}
        scale = json.loads(self.text_config)["logit_scale"]
        state["logit_scale"] = torch.tensor(scale).log()
        pixels = self.files.preprocessing
        config = {
            "model_cfg": self.files.config,
            "preprocess_cfg": {
                "mean": pixels.mean,
                "std": pixels.std,
                "interpolation": pixels.interpolation,
                "resize_mode": pixels.resize,
            },
        }
        return {
            "open_clip_config.json": canonical_json(config),
            "open_clip_model.safetensors": save(state),
        }

    def _normalise(self, frames_NCHW: "torch.Tensor") -> "torch.Tensor":
        pixels_NCHW = frames_NCHW.to(self.device, non_blocking=True).float()
        return pixels_NCHW.mul_(self._scale_CHW).sub_(self._offset_CHW)


def _in_folder(folder: Path, name: str) -> EncoderFiles:
    config_path = folder / _CONFIG
    weights = sorted(folder.glob("*.safetensors"))
    if not config_path.is_file() or len(weights) != 1:
        raise RefusedError(
            f"encoder {name}: {folder} needs {_CONFIG} and one weights file (.safetensors)"
        )
    config = json.loads(config_path.read_bytes())
    pixels = config.get("preprocess_cfg", {})
    model = config["model_cfg"]
    return EncoderFiles(
        name, f"{LOCAL_DIR}{folder}", weights[0], model, _preprocessing(model, pixels)
    )


def _open_clip_config(name: str) -> dict[str, Any]:
    # Found without importing open_clip, which takes five seconds.
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise RefusedError("open_clip is not installed; pip install open_clip_torch")
    folder = Path(package.origin).parent / "model_configs"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.json")]
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "ViT-B-32-quickgelu"
        raise RefusedError(f"open_clip has no encoder {name}; did you mean one of {near}?")
    config: dict[str, Any] = json.loads(path.read_bytes())
    return config


def _fetch_tag(name: str, tag: str, config: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    import open_clip

    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise RefusedError(f"encoder {name} has no weights tagged {tag}; known tags: {tags}")
    if bool(known.get("quick_gelu")) != bool(config.get("quick_gelu")):
        wanted = "QuickGELU" if known.get("quick_gelu") else "GELU"
        plain = name.removesuffix("-quickgelu")
        remedy = f"{plain}-quickgelu" if known.get("quick_gelu") else plain
        raise RefusedError(
            f"the weights {tag} were trained with {wanted}, which encoder {name} does not use; "
            f"use --encoder {remedy}"
        )
    try:
        path = Path(open_clip.download_pretrained(known))
    except Exception as error:
        raise RefusedError(
            f"could not fetch the weights {tag} of {name} ({type(error).__name__}); "
            "download them elsewhere and pass the file with --pretrained FILE"
        ) from error
    return path, known


def _preprocessing(config: dict[str, Any], pixels: dict[str, Any]) -> Preprocessing:
    size = config["vision_cfg"].get("image_size", 224)
    resize = pixels.get("resize_mode", "shortest")
    if not isinstance(size, int) or resize not in ("shortest", "squash"):
        raise RefusedError(f"image size {size} with resize mode {resize} is not supported")
    return Preprocessing(
        size_px=size,
        resize=resize,
        interpolation=pixels.get("interpolation", "bicubic"),
        mean=tuple(pixels.get("mean", _OPENAI_MEAN)),
        std=tuple(pixels.get("std", _OPENAI_STD)),
    )


def _load_model(files: EncoderFiles) -> Any:
    import open_clip

    pretrained = None if files.model.startswith(LOCAL_DIR) else str(files.weights_path)
    try:
        model = open_clip.create_model(
            files.model, pretrained=pretrained, require_pretrained=True, weights_only=True
        )
    except Exception as error:
        raise RefusedError(
            f"the weights {files.weights_path} do not load into {files.name}: "
            f"{str(error).splitlines()[0]}; pass safetensors or a plain state dict of this model"
        ) from error
    _check_activation(model, files)
    return model


def _compute_in(low: "torch.dtype", visual: Any) -> None:
    """Compute matrix products in ``low`` and the residual stream in float32.

    Weights are rounded once; autocast rounds them at every call, which takes half of the time on a
    CPU.  With the residual stream in float32 the features' error is half of autocast's.
    """
    import torch

    for module in visual.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.MultiheadAttention):
            module.to(low)
        if isinstance(module, torch.nn.MultiheadAttention):
            # One input of the weights' dtype selects the fused attention, three times faster.
            module.register_forward_pre_hook(
                lambda _, args: (args[0].to(low),) * 3 if args[0] is args[1] is args[2] else args
            )
    if hasattr(visual, "transformer"):
        # The residual stream takes the dtype of the first convolution's output.
        visual.conv1.register_forward_hook(lambda _, args, out: out.float())


def _check_activation(model: Any, files: EncoderFiles) -> None:
    expected = files.identity.activation
    other = {"QuickGELU": "GELU", "GELU": "QuickGELU"}[expected]
    if any(type(module).__name__ == other for module in model.modules()):
        raise RefusedError(
            f"encoder {files.name} was built with {other}, its configuration says {expected}"
        )


def _text_weights(model: Any) -> bytes:
    """The text tower as safetensors, under the names of open_clip's ``TextTransformer``."""
    import torch
    from safetensors.torch import save

    tower = model.text if hasattr(model, "text") else model
    if not hasattr(tower, "token_embedding"):
        raise RefusedError("the encoder's text tower is not CLIP's own; choose another encoder")
    tensors = {
        name: value.detach().to(torch.float32).contiguous()
        for name, value in tower.state_dict().items()
        if not name.startswith(("visual.", "logit_"))
    }
    data: bytes = save(tensors)
    return data
