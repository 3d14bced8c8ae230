"""Frames [frame, channel, height, width] -> features [frame, dim], by a frozen image encoder.

It is the image tower of a CLIP, a model of timm, or a 3-D CNN (of torchvision, or one of ours),
which makes one feature of several frames.  All but the first read no texts; those may be read by
the text tower of a CLIP beside them.

``find_encoder`` describes an encoder from its files alone, without importing torch; ``Encoder``
loads it.
"""

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache.errors import RefusedError
from cache.files import canonical_json, sha256
from cache.identity import EncoderIdentity, Preprocessing
from pipeline.archive import DTYPES
from pipeline.device import choose_device
from pipeline.encoders.cnn3d_models import build_cnn3d, describe_cnn3d, without_logits
from pipeline.encoders.timm_models import build_timm, describe_timm, without_classifier
from pipeline.encoders.torchvision_models import (
    build_torchvision,
    describe_torchvision,
    without_fc,
)
from pipeline.weights import (
    TENSORS,
    Digest,
    digest_weights,
    is_no_weight,
    read_config,
    read_weights,
    traced_with,
)

if TYPE_CHECKING:
    import torch

    from pipeline.kernels.pixels import PixelFormat

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Library = Literal["open_clip", "timm", "torchvision", "cnn3d"]

MINI = Path(__file__).parent / "mini"
LOCAL_DIR, TIMM = "local-dir:", "timm:"


class _Kind(NamedTuple):
    """Models that read no texts."""

    describe: Callable[[str], tuple[dict[str, Any], Preprocessing]]
    build: Callable[[str], Any]
    without_classifier: "Callable[[dict[str, torch.Tensor], Any], dict[str, torch.Tensor]]"


_KINDS: dict[Library, _Kind] = {
    "timm": _Kind(describe_timm, build_timm, without_classifier),
    "torchvision": _Kind(describe_torchvision, build_torchvision, without_fc),
    "cnn3d": _Kind(describe_cnn3d, build_cnn3d, without_logits),
}
_TEXTLESS = tuple(f"{kind}:" for kind in _KINDS)  # how their names begin
_CONFIG = "open_clip_config.json"
# OpenAI's weights: model -> the Hugging Face repository from which open_clip fetches them.
OPENAI = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
    "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B-16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L-14-336": "timm/vit_large_patch14_clip_336.openai",
}
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HUB_SECONDS = 2.0
_PIXELS = ("mean", "std", "interpolation", "resize_mode")
_QUICK_GELU = 1.702  # x sigmoid(1.702 x)
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder as its files describe it; nothing is loaded yet."""

    name: str  # what the identity records
    weights_path: Path
    config: dict[str, Any] = field(repr=False)  # open_clip's model_cfg, or a name
    preprocessing: Preprocessing
    hashed: str = TENSORS  # what its weights are hashed like
    text: "EncoderFiles | None" = None  # the CLIP that reads texts for another model

    def __post_init__(self) -> None:
        traced = traced_with(self.weights_path, _QUICK_GELU)  # which also checks the file
        if not self.is_clip:
            return
        _refuse_text_tower(self.name, self.config)
        if traced and not self.config.get("quick_gelu"):
            in_folder = self.name.startswith(LOCAL_DIR)
            remedy = f"set quick_gelu in {_CONFIG}" if in_folder else f"{self.name}-quickgelu"
            raise RefusedError(
                f"the weights {self.weights_path} were traced with QuickGELU, as OpenAI's are, "
                f"encoder {self.name} has GELU; use {remedy}"
            )

    @property
    def library(self) -> Library:
        """Whose model it is."""
        if "text_cfg" in self.config:  # whatever else a folder's configuration may have
            return "open_clip"
        return next(kind for kind in _KINDS if kind in self.config)

    @property
    def is_clip(self) -> bool:
        """Whether it is a model of open_clip, with an image and a text tower."""
        return self.library == "open_clip"

    @property
    def activation(self) -> str:
        """That of a CLIP; other models have the one that their library gives them."""
        if not self.is_clip:
            return "its library's"
        return "QuickGELU" if self.config.get("quick_gelu") else "GELU"

    @property
    def in_3d(self) -> bool:
        """Whether it reads segments of frames, and not pictures."""
        return "segment" in self.config

    @property
    def segment(self) -> int:
        """Frames of which it makes one feature."""
        return self.config.get("segment", 1)

    @property
    def text_config(self) -> dict[str, Any]:
        """What a store says of its text tower, but for the temperature, which the weights tell."""
        dim = self.config["embed_dim"]
        if self.text is not None:
            return self.text.text_config | {"features": dim}
        if not self.is_clip:
            return {"embed_dim": dim, "text_cfg": None}
        return {
            "model": self.name,
            "embed_dim": dim,
            "quick_gelu": bool(self.config.get("quick_gelu")),
            "text_cfg": self.config["text_cfg"],
        }

    @property
    def described(self) -> dict[str, Any]:
        """What the digest of its weights says of it beside them."""
        return self.config | ({"text": self.text.identity.weights_sha256} if self.text else {})

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What the store records about it; the text tower's sha256 is None until it is loaded."""
        return EncoderIdentity(
            name=self.name,
            weights_sha256=digest_weights(self.weights_path, self.described, self.hashed),
            activation=self.activation,
            dim=self.config["embed_dim"],
        )

    def hashed_like(self, stored: EncoderIdentity) -> "EncoderFiles":
        """The same encoder, to be compared with the one that a store was made with."""
        return replace(self, hashed=stored.weights_sha256)

    def check(self) -> None:
        """Raise RefusedError if the weights do not load into the model."""
        _load_model(self)
        if self.text:
            self.text.check()


def find_encoder(name: str = "mini", pretrained: str | None = None) -> EncoderFiles:
    """What is known about an encoder before loading it.

    ``name`` is ``mini`` (bundled), ``local-dir:FOLDER`` as open_clip saves them, an open_clip
    model name with ``pretrained`` a tag (fetched by open_clip if it is not on this machine), a file
    of weights, or a folder with one, or ``timm:MODEL``, ``torchvision:MODEL/FRAMES`` or
    ``cnn3d:MODEL/FRAMES`` with a file or a folder.  Of the last three, ``…+CLIP`` names a CLIP that
    reads texts, perhaps with its weights, ``…+CLIP=FILE``.  Raises RefusedError if anything is
    missing or does not fit together.
    """
    for text in filter(None, (name, pretrained)):
        if not text.isprintable():
            raise RefusedError(f"encoder {text!r} has control characters in its name; rename it")
    if name == "mini":
        return _in_folder(MINI, "mini")
    if name.startswith(LOCAL_DIR):
        folder = Path(name.removeprefix(LOCAL_DIR))
        return _in_folder(folder, LOCAL_DIR + folder.name)
    if name.startswith(_TEXTLESS):
        return _of_library(name, pretrained)
    config = _open_clip_config(name)
    _refuse_text_tower(name, config)
    weights = Path(pretrained or "openai")
    if pretrained is not None and os.path.isdir(weights):
        weights = _only_weights_in(weights)
    elif not _is_file(weights):
        weights, pixels = _fetch_tag(name, str(weights), config)
        return EncoderFiles(name, weights, config, _preprocessing(config, pixels))
    elif not os.path.exists(weights):
        raise RefusedError(f"no weights at {weights}; check --pretrained")
    # Other image towers than CLIP's own are of publishers with other habits.
    pixels = _published_pixels(name) if "timm_model_name" in config["vision_cfg"] else {}
    return EncoderFiles(name, weights, config, _preprocessing(config, pixels))


def _of_library(name: str, pretrained: str | None) -> EncoderFiles:
    """A model that reads no texts, and perhaps the CLIP that does."""
    own, _, text = name.partition("+")
    weights = _given_weights(name, pretrained)
    library, _, model = own.partition(":")
    config, pixels = _KINDS[cast(Library, library)].describe(model)
    clip = _text_encoder(text) if text else None
    return EncoderFiles(f"{own}+{clip.name}" if clip else own, weights, config, pixels, text=clip)


def _text_encoder(text: str) -> EncoderFiles:
    name, _, weights = (text, "", "") if text.startswith(LOCAL_DIR) else text.partition("=")
    if name.startswith(_TEXTLESS):
        raise RefusedError(f"{name} reads no texts; name a CLIP after the +, such as mini")
    return find_encoder(name, weights or None)


def choose_precision(precision: Precision, device: str) -> str:
    """``auto`` -> bf16 if the device has it natively, else fp16 on a GPU and fp32 on a CPU."""
    import torch

    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


class _Checked(BaseModel):
    """Some of open_clip's settings; it knows others, which it checks itself."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


_Size = Annotated[int, Field(ge=1, le=1 << 16)]
_Layers = Annotated[int, Field(ge=1, le=512)]
_Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
_Std = Annotated[float, Field(ge=1e-3, le=1e3)]


class _VisionConfig(_Checked):
    image_size: int = Field(224, ge=1, le=4096)
    layers: _Layers | tuple[_Layers, ...] = 12
    width: _Size = 768
    head_width: _Size = 64
    patch_size: _Size | None = 16
    timm_model_name: str | None = Field(None, pattern=r"^[\w.-]+$")  # others would be fetched


class _TextConfig(_Checked):
    context_length: int = Field(77, ge=1, le=4096)
    vocab_size: int = Field(49408, ge=1, le=1 << 20)
    width: _Size = 512
    heads: _Size = 8
    layers: _Layers = 12


class _ModelConfig(_Checked):
    embed_dim: _Size
    quick_gelu: bool = False
    custom_text: bool = False
    vision_cfg: _VisionConfig
    text_cfg: _TextConfig


class _PixelConfig(_Checked):
    mean: tuple[_Mean, _Mean, _Mean] = _OPENAI_MEAN
    std: tuple[_Std, _Std, _Std] = _OPENAI_STD
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"


class _FolderConfig(_Checked):
    model_cfg: _ModelConfig
    preprocess_cfg: _PixelConfig = _PixelConfig()


class Encoder:
    """A loaded encoder on a device, frozen."""

    def __init__(self, files: EncoderFiles, device: str, precision: Precision) -> None:
        import torch
        from torch.nn.utils import convert_conv3d_weight_memory_format

        self.files = files
        self.device = torch.device(choose_device(device))
        self.precision = choose_precision(precision, str(self.device))
        model = _load_model(files)
        self.text_weights, self.text_config = _text_files(files, model)
        self._low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        # Convolutions are twice as fast in the channels-last layout.
        visual = model.visual if files.is_clip else model
        if files.in_3d:  # perhaps with layers in 2-D, which this leaves alone
            layout = torch.channels_last_3d
            self.visual = convert_conv3d_weight_memory_format(visual.to(self.device), layout)
        else:
            self.visual = visual.to(self.device, memory_format=torch.channels_last)
        self.visual.eval().requires_grad_(False)
        self._frozen = _frozen(self.visual) if files.is_clip else self.visual
        if self._low is not None:
            _compute_in(self._low, self._frozen)
            self.visual = self._frozen  # only float32 is trained
        mean, std = files.preprocessing.mean, files.preprocessing.std
        # (x / 255 - mean) / std as one multiplication and one subtraction per pixel
        self._scale_C = 1 / (255 * torch.tensor(std, device=self.device))
        self._offset_C = torch.tensor(mean, device=self.device) / torch.tensor(
            std, device=self.device
        )

    @cached_property
    def identity(self) -> EncoderIdentity:
        """What the store records about it, complete."""
        return self.files.identity.model_copy(update={"text_sha256": sha256(self.text_weights)})

    @property
    def pixel_format(self) -> "PixelFormat | None":
        """How views are made for it on its device; None on the CPU, where views are uint8."""
        return None if self.device.type == "cpu" else self.normalised

    @property
    def normalised(self) -> "PixelFormat":
        """The pixels that it reads, on its device."""
        import torch

        from pipeline.kernels.pixels import PixelFormat

        return PixelFormat(self._scale_C, self._offset_C, self._low or torch.float32)

    def blank(self, frames: int) -> "torch.Tensor":
        """A batch of zeros in the form of this encoder's views, [frame, channel, size, size]."""
        import torch

        form, size = self.pixel_format, self.files.preprocessing.size_px
        if form is None:
            return torch.zeros(frames, 3, size, size, dtype=torch.uint8)
        return torch.zeros(frames, 3, size, size, dtype=form.dtype, device=form.device)

    def encode(self, frames_NCHW: "torch.Tensor") -> "torch.Tensor":
        """Un-normalised ``encode_image`` of frames -> float16 [frame, dim] on the device.

        Of a 3-D model it is [segment, dim], of ``files.segment`` frames each.  The frames are
        uint8, or as ``pixel_format`` says.  The exact bits depend on the number of frames in the
        call, so callers keep that fixed.
        """
        import torch

        autocast = torch.autocast(self.device.type, self._low, enabled=self._low is not None)
        with torch.inference_mode(), autocast:
            features_ND: torch.Tensor = self._frozen(self._normalise(frames_NCHW))
            return features_ND.to(torch.float16)

    def make_trainable(self) -> None:
        """Prepare for ``encode_with_gradient``."""
        self.visual.requires_grad_(True)
        self._frozen = self.visual
        if self.files.is_clip:
            self.visual.set_grad_checkpointing(True)

    def encode_with_gradient(self, frames_NCHW: "torch.Tensor") -> "torch.Tensor":
        """Like ``encode``, but in float32 and with gradients for the image tower's weights.

        Where gradients are wanted, the batch normalisation of other models than CLIPs uses the
        statistics of the batch, and learns its own.  Nothing is dropped at random.
        """
        import torch

        if not self.files.is_clip:
            for module in self.visual.modules():
                if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
                    module.train(torch.is_grad_enabled())
        features_ND: torch.Tensor = self.visual(self._normalise(frames_NCHW))
        return features_ND

    def as_files(self) -> dict[str, bytes]:
        """The encoder's present state as files.

        Those of a CLIP are an open_clip ``local-dir``.  The weights are a complete state dict, so
        that ``--pretrained FILE`` accepts them, of a CLIP as of another model.
        """
        import torch
        from safetensors.torch import load, save

        if not self.files.is_clip:
            own = {n: t.contiguous() for n, t in self.visual.state_dict().items()}
            return {
                "model.json": canonical_json({"model_cfg": self.files.described}),
                "model.safetensors": save(own),
            }
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
        import torch

        pixels_NCHW = frames_NCHW
        if frames_NCHW.dtype == torch.uint8:
            pixels_NCHW = frames_NCHW.to(self.device, non_blocking=True).float()
            scale_CHW, offset_CHW = (x.view(3, 1, 1) for x in (self._scale_C, self._offset_C))
            pixels_NCHW.mul_(scale_CHW).sub_(offset_CHW)
        if not self.files.in_3d:
            return pixels_NCHW
        return pixels_NCHW.unflatten(0, (-1, self.files.segment)).transpose(1, 2)


def _in_folder(folder: Path, name: str) -> EncoderFiles:
    config_path = folder / _CONFIG
    weights = _weights_in(folder)
    if not config_path.is_file() or len(weights) != 1:
        found = f"it has {', '.join(path.name for path in weights[:3])}" if weights else "has none"
        raise RefusedError(
            f"encoder {name}: {folder} needs {_CONFIG} and one weights file (.safetensors); {found}"
        )
    whole = read_config(config_path)
    try:
        _FolderConfig.model_validate_json(canonical_json(whole))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusedError(f"{config_path}: {where}: {first['msg']}; correct it") from error
    model = whole["model_cfg"]
    pixels = _preprocessing(model, whole.get("preprocess_cfg", {}))
    return EncoderFiles(name, weights[0], model, pixels)


def _given_weights(name: str, pretrained: str | None) -> Path:
    """The file of weights of a model for which nothing is fetched."""
    if pretrained is None:
        raise RefusedError(
            f"encoder {name}: nothing is fetched; pass its weights: --pretrained FILE"
        )
    weights = Path(pretrained)
    return _only_weights_in(weights) if os.path.isdir(weights) else weights


def _only_weights_in(folder: Path) -> Path:
    weights = _weights_in(folder)
    if len(weights) != 1:
        names = ", ".join(path.name for path in weights[:3]) or "none"
        raise RefusedError(f"--pretrained {folder}: expected one file of weights, found {names}")
    return weights[0]


def _weights_in(folder: Path) -> list[Path]:
    """The safetensors of a folder; if it has none, other files of weights; or files of any kind."""
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise RefusedError(f"cannot read {folder}: {error.strerror}; check --encoder") from error
    known = [path for path in names if path.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    unnamed = [path for path in names if not path.suffix and path.is_file()]
    return [path for path in known if path.suffix == ".safetensors"] or known or unnamed


def _is_file(weights: Path) -> bool:
    """Whether ``--pretrained`` means a file, and not a tag."""
    return bool(weights.suffix) or len(weights.parts) > 1 or os.path.isfile(weights)


def _open_clip_config(name: str) -> dict[str, Any]:
    # Found without importing open_clip, which takes five seconds.
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise RefusedError("open_clip is not installed; pip install open_clip_torch")
    folder = Path(package.origin).parent / "model_configs"
    path = folder / f"{name}.json"
    if not re.fullmatch(r"[\w.-]{1,99}", name) or not path.is_file():
        known = [p.stem for p in folder.glob("*.json")]
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "ViT-B-32-quickgelu"
        raise RefusedError(f"open_clip has no encoder {name}; did you mean one of {near}?")
    config: dict[str, Any] = json.loads(path.read_bytes())
    return config


def _fetch_tag(name: str, tag: str, config: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    known = _known_tag(name, tag)
    if bool(known.get("quick_gelu")) != bool(config.get("quick_gelu")):
        wanted = "QuickGELU" if known.get("quick_gelu") else "GELU"
        plain = name.removesuffix("-quickgelu")
        remedy = f"{plain}-quickgelu" if known.get("quick_gelu") else plain
        raise RefusedError(
            f"the weights {tag} were trained with {wanted}, which encoder {name} does not use; "
            f"use --encoder {remedy}"
        )
    _refuse_unreachable(name, tag, *os.path.split(known.get("hf_hub", "")))
    import open_clip

    try:
        path = Path(open_clip.download_pretrained(known))
    except Exception as error:
        raise RefusedError(
            f"could not fetch the weights {tag} of {name} ({type(error).__name__}); "
            "download them elsewhere and pass the file with --pretrained FILE"
        ) from error
    return path, known


def _published_pixels(name: str) -> dict[str, Any]:
    """How the published weights of a model want their pixels; they agree, a file does not say."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    known = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    return {key: known[key] for key in _PIXELS if key in known}


def _known_tag(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of published weights; OpenAI's need no import, which takes seconds."""
    if tag == "openai" and (repository := OPENAI.get(name.removesuffix("-quickgelu"))):
        return {"hf_hub": f"{repository}/", "quick_gelu": True}
    import open_clip

    known: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise RefusedError(f"encoder {name} has no weights tagged {tag}; known tags: {tags}")
    return known


def _refuse_unreachable(name: str, tag: str, repository: str, file: str) -> None:
    """Refuse weights that are not on this machine if their server does not have them either.

    The library itself would go on trying for a minute.
    """
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    files = (file,) if file else _HUB_FILES
    if not repository:
        return
    if any(isinstance(try_to_load_from_cache(repository, own), str) for own in files):
        return
    if problem := _problem([hf_hub_url(repository, own) for own in files]):
        raise RefusedError(
            f"the weights {tag} of {name} are not on this machine, and {constants.ENDPOINT} "
            f"{problem}; where it does, fetch {' or '.join(files)} from "
            f"{constants.ENDPOINT}/{repository}, or the publisher's own file (OpenAI's are .pt), "
            "and pass it with --pretrained FILE"
        )


def _problem(urls: Sequence[str]) -> str:
    """What the server of these files fails to do; empty if it has one of them."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    problems = ["does not answer"]

    def ask() -> None:
        with suppress(Exception):  # of whichever library it uses
            headers, session = build_hf_headers(), get_session()
            for url in urls:
                status = session.head(url, headers=headers, timeout=_HUB_SECONDS).status_code
                problems[:] = [f"does not give them (HTTP {status})"] if status >= 400 else []
                if not problems:
                    return

    # The search for an address obeys no timeout.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_SECONDS)
    return "".join(problems)


def _refuse_text_tower(name: str, config: dict[str, Any]) -> None:
    """Refuse text towers that stage two cannot read, before a single video is decoded."""
    text, image = config["text_cfg"], config["vision_cfg"].get("timm_model_name", "MODEL")
    if text.get("hf_model_name") or text.get("embed_cls"):
        raise RefusedError(f"encoder {name}: its text tower is not CLIP's own; choose another")
    if tokenizer := text.get("hf_tokenizer_name"):
        raise RefusedError(
            f"encoder {name} reads texts by the tokenizer {tokenizer}, which is fetched from the "
            "Hugging Face hub and not supported, whatever the weights; choose a model with CLIP's "
            "own tokenizer, such as ViT-B-16 or PE-Core-B-16, or the image tower alone, with "
            f"weights as timm names them: --encoder {TIMM}{image} --pretrained FILE (and +CLIP "
            "after the model for methods that read texts)"
        )


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
    """open_clip's model with exactly the weights that the identity describes."""
    expected = files.identity.weights_sha256
    import torch

    try:
        # A wrong configuration can describe a model of any size, so it is first built without data.
        with torch.device("meta"):
            outline = _build(files)
        state, found = _read_state(files)
        state = _fit(state, outline, files)
        model = _build(files)
        model.load_state_dict(state)
    except RefusedError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RefusedError(
            f"the weights {files.weights_path} do not load into {files.name}: {reason[:500]}; "
            "pass safetensors or a plain state dict of this model"
        ) from error
    if not expected.startswith(TENSORS):
        found = digest_weights(files.weights_path, files.described, expected)
    if found != expected:
        raise RefusedError(f"the weights {files.weights_path} were changed meanwhile; start again")
    if files.is_clip:
        _check_activation(model, files)
    return model


def _build(files: EncoderFiles) -> Any:
    """The model of this configuration, as the library's own ``create_model`` chooses it."""
    if files.library != "open_clip":
        return _KINDS[files.library].build(files.config[files.library])
    import open_clip

    config = deepcopy(files.config)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False  # or it would be fetched
    if not config.pop("custom_text", False):
        return open_clip.CLIP(**config)
    return (open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP)(**config)


def _read_state(files: EncoderFiles) -> "tuple[dict[str, torch.Tensor], str]":
    """(the weights, the digest of the bytes that they were made of)."""
    import torch

    state, digest = {}, Digest(files.described)
    for weight in read_weights(files.weights_path):
        digest.add(weight)
        dtype = getattr(torch, DTYPES[weight.dtype][0])
        state[weight.name] = torch.frombuffer(weight.data, dtype=dtype).view(weight.shape)
        if not state[weight.name].isfinite().all():
            raise ValueError(f"{weight.name} holds a value that is not finite")
    return state, str(digest)


def _fit(
    state: "dict[str, torch.Tensor]", outline: Any, files: EncoderFiles
) -> "dict[str, torch.Tensor]":
    """The weights as this model wants them, by name and shape."""
    wanted = {n: t for n, t in outline.state_dict().items() if not is_no_weight(n)}
    count, given = (sum(t.numel() for t in tensors.values()) for tensors in (wanted, state))
    if count > 2 * given:
        raise ValueError(f"the model has {count} weights, the file {given}")
    if files.is_clip:
        state = _converted(state, outline)
    else:
        state = _KINDS[files.library].without_classifier(state, outline)
    for name in sorted(wanted.keys() | state.keys()):
        one, other = (list(x[name].shape) if name in x else None for x in (state, wanted))
        if one != other:
            raise ValueError(f"{name} has the shape {one} in the file, {other} in the model")
    return state


def _converted(state: "dict[str, torch.Tensor]", outline: Any) -> "dict[str, torch.Tensor]":
    """The weights after the conversions of open_clip's own loader."""
    import torch
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    wanted = outline.state_dict()
    state = convert_state_dict(outline, state)
    if not hasattr(outline, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    if "logit_bias" in wanted:
        state.setdefault("logit_bias", torch.zeros(()))
    for name in {"logit_scale", "logit_bias"} & wanted.keys() & state.keys():
        state[name] = state[name].reshape(wanted[name].shape)
    resize_pos_embed(state, outline)
    resize_text_pos_embed(state, outline)
    return state


def _frozen(visual: Any) -> Any:
    """What computes the same as a tower in evaluation, with less work if there is such a form."""
    from open_clip.modified_resnet import ModifiedResNet

    from pipeline.encoders.resnet import FrozenResNet

    return FrozenResNet(visual) if isinstance(visual, ModifiedResNet) else visual


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
    expected = files.activation
    other = {"QuickGELU": "GELU", "GELU": "QuickGELU"}[expected]
    if any(type(module).__name__ == other for module in model.modules()):
        raise RefusedError(
            f"encoder {files.name} was built with {other}, its configuration says {expected}"
        )


def _text_files(files: EncoderFiles, model: Any) -> tuple[bytes, bytes]:
    """``text.safetensors`` and ``text.json`` of a store; without a tower, no tensors and null."""
    from safetensors.torch import save

    config = files.text_config
    if config["text_cfg"] is None:
        return save({}), canonical_json(config)
    clip = _load_model(files.text) if files.text else model
    scale = float(clip.logit_scale.detach().exp())
    return _text_weights(clip), canonical_json(config | {"logit_scale": scale})


def _text_weights(model: Any) -> bytes:
    """The text tower as safetensors, under the names of open_clip's ``TextTransformer``."""
    import torch
    from safetensors.torch import save

    tower = model.text if hasattr(model, "text") else model
    tensors = {
        name: value.detach().to(torch.float32).contiguous()
        for name, value in tower.state_dict().items()
        if not name.startswith(("visual.", "logit_"))
    }
    data: bytes = save(tensors)
    return data
