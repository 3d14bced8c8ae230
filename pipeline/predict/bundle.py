"""Trained networks <-> one file that predicts on a machine that has neither store nor runs.

A bundle is a safetensors file.  Its metadata hold, under ``tgdfer``, a manifest in JSON and the
sha256 of the whole file, computed with zeros in its own place; its tensors are

- ``network.I.NAME``: the parameters of network I
- ``texts.I.fine``, ``texts.I.coarse``: its text features, [text, feature], if it reads texts
- ``probe.features``, ``probe.I.logits``: what it must predict, so that other code is found out
- ``encoder.NAME``: the encoder's weights, if they were asked for
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cache.errors import DamagedError, RefusedError
from cache.files import canonical_json, make_directories, write_files
from cache.identity import FrozenModel, Identity, refused
from cache.outside import open_outside, parse_json
from pipeline.archive import DTYPES
from pipeline.encoders.clip import Encoder, EncoderFiles
from pipeline.train.record import check_finished
from pipeline.weights import TENSORS, read_weights

if TYPE_CHECKING:
    import torch

    from pipeline.train.trained import Checkpoint, TrainedRun

SUFFIX = ".tgdfer"
EXPORT_AGAIN = "export it again with: tgdfer export"
_KEY, _NO_SHA256 = "tgdfer", "0" * 64
_HEADER_BYTES_MAX, _FILE_BYTES_MAX, _PART_BYTES = 8 << 20, 32 << 30, 1 << 20
_PROBES = 4
_PROBE_RELATIVE, _PROBE_ABSOLUTE = 1e-3, 1e-2  # errors of logits, across machines


class Network(FrozenModel):
    """One trained network, and how it did on the test videos of its fold."""

    name: str
    run: dict[str, Any]
    trained_on: str
    test_videos: int
    uar: str  # in per cent, with its 95 % interval over videos
    war: str


class Manifest(FrozenModel):
    """What a bundle holds besides tensors."""

    version: Literal[1] = 1
    sha256: str = _NO_SHA256
    classes: tuple[str, ...] = Field(min_length=2)
    texts: dict[Literal["class", "descriptors"], tuple[str, ...]]
    features: Identity  # how the features were made that the networks were trained on
    networks: tuple[Network, ...] = Field(min_length=1)
    encoder: dict[str, Any] | None = None  # open_clip's configuration, if the weights are here
    card: str = ""  # Markdown

    @model_validator(mode="after")
    def _complete(self) -> "Manifest":
        if len({own.name for own in self.networks}) < len(self.networks):
            raise ValueError("two networks have one name")
        counts = {kind: len(texts) for kind, texts in self.texts.items()}
        if counts != dict.fromkeys(("class", "descriptors"), len(self.classes)):
            raise ValueError(f"{counts} texts for {len(self.classes)} classes")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle whose sha256 was checked."""

    path: Path
    manifest: Manifest

    def checkpoints(self) -> "list[Checkpoint]":
        """Its networks; raises DamagedError if they are not what the manifest says."""
        from pipeline.config import Run
        from pipeline.datasets.texts import ClassTexts
        from pipeline.train.trained import Checkpoint

        own, tensors = self.manifest, self._tensors("network.")
        texts = ClassTexts(own.texts["class"], own.texts["descriptors"])
        found = []
        for number, network in enumerate(own.networks):
            prefix = f"network.{number}."
            with refused(f"{self.path}: settings of network {network.name}", DamagedError):
                run = Run.model_validate(network.run)
            given = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            found.append(
                Checkpoint(
                    network.name,
                    self.path,
                    run,
                    own.classes,
                    texts,
                    own.features,
                    given,
                    remedy=EXPORT_AGAIN,
                    trained_on=network.trained_on,
                )
            )
        return found

    def check(self, networks: "Mapping[str, TrainedRun]") -> None:
        """Raise RefusedError unless its networks predict what they did when they were exported."""
        probe = {name: tensor.numpy() for name, tensor in self._tensors("probe.").items()}
        names = {
            "probe.features",
            *(f"probe.{n}.logits" for n in range(len(self.manifest.networks))),
        }
        if missing := names - probe.keys():
            raise DamagedError(f"{self.path} has no {min(missing)}; {EXPORT_AGAIN}")
        for number, network in enumerate(self.manifest.networks):
            said = networks[network.name].predict(probe["probe.features"]).logits_NK
            expected = probe[f"probe.{number}.logits"]
            same = said.shape == expected.shape
            if not (same and np.allclose(said, expected, _PROBE_RELATIVE, _PROBE_ABSOLUTE)):
                raise RefusedError(
                    f"{self.path}: network {network.name} predicts something "
                    "else here than where it was exported; use the version of tgdfer that wrote it"
                )

    def unpack_encoder(self, folder: Path) -> bool:
        """Write the encoder into ``folder`` as open_clip does; False if it is not here."""
        from safetensors.torch import save_file

        if self.manifest.encoder is None:
            return False
        weights = self._tensors("encoder.")
        save_file(
            {name.removeprefix("encoder."): tensor for name, tensor in weights.items()},
            folder / "open_clip_model.safetensors",
        )
        (folder / "open_clip_config.json").write_bytes(canonical_json(self.manifest.encoder))
        return True

    def _tensors(self, prefix: str) -> "dict[str, torch.Tensor]":
        return {
            weight.name: _tensor(weight.dtype, weight.shape, weight.data)
            for weight in read_weights(self.path)
            if weight.name.startswith(prefix)
        }


def read_bundle(path: Path) -> Bundle:
    """Open a bundle, without torch; raises DamagedError if a single byte was changed."""
    with open_outside(path, "a bundle made by tgdfer export", _FILE_BYTES_MAX) as file:
        header = _read_header(path, file)
        about = parse_json(header[8:], f"{path}: its header").get("__metadata__")
        if not isinstance(about, dict) or not isinstance(about.get(_KEY), str):
            raise RefusedError(f"{path} is no bundle; make one with: tgdfer export")
        content = parse_json(about[_KEY], f"{path}: its manifest")
        if content.get("version") != 1:
            raise RefusedError(f"{path} was made by another version of tgdfer; update this one")
        with refused(f"{path} is damaged", DamagedError, EXPORT_AGAIN):
            manifest = Manifest.model_validate(content)
        zeros = header.replace(manifest.sha256.encode(), _NO_SHA256.encode())
        if _sha256(zeros, iter(lambda: file.read(_PART_BYTES), b"")) != manifest.sha256:
            raise DamagedError(
                f"{path} is damaged: its sha256 is not the recorded one; copy it again"
            )
    return Bundle(path, manifest)


def check_trained(path: Path) -> None:
    """Refuse what is neither a finished run nor a bundle, without torch."""
    if path.is_file():
        read_bundle(path)
    else:
        check_finished(path)


def write_bundle(
    path: Path,
    networks: "Mapping[str, TrainedRun]",
    encoder: Encoder,
    checkpoints: "Sequence[Checkpoint]",
    about: Sequence[Network],
    card: str,
    with_encoder: bool,
) -> None:
    """Write networks and what they need to ``path``, complete or not at all."""
    from safetensors.torch import save

    if with_encoder and not encoder.files.is_clip:
        raise RefusedError(
            f"a bundle holds encoders of open_clip only, not {encoder.files.name}; export without "
            "--with-encoder, and name it to tgdfer predict"
        )
    files, first = encoder.files, checkpoints[0]
    identity = replace(files, hashed=TENSORS).identity
    known = {"text_sha256": encoder.identity.text_sha256}
    manifest = Manifest(
        classes=first.classes,
        texts={"class": first.texts.classes, "descriptors": first.texts.descriptors},
        features=first.data.model_copy(update={"encoder": identity.model_copy(update=known)}),
        networks=tuple(about),
        encoder=_encoder_config(files) if with_encoder else None,
        card=card,
    )
    tensors = _network_tensors(list(networks.values()))
    if with_encoder:
        for weight in read_weights(files.weights_path):
            name = f"encoder.{weight.name}"
            tensors[name] = _tensor(weight.dtype, weight.shape, weight.data)
    data = save(tensors, {_KEY: manifest.model_dump_json()})
    end = 8 + int.from_bytes(data[:8], "little")
    digest = _sha256(data[:end], [data[end:]])
    make_directories(path.parent)
    head = data[:end].replace(_NO_SHA256.encode(), digest.encode())
    write_files({path: head + data[end:]}, path.parent)


def _network_tensors(networks: "Sequence[TrainedRun]") -> "dict[str, torch.Tensor]":
    import torch

    model = networks[0].model
    drawn = np.random.default_rng(0).standard_normal((_PROBES, model.frames, model.size))
    features_NTD = drawn.astype(np.float16)
    tensors = {"probe.features": torch.from_numpy(features_NTD)}
    for number, network in enumerate(networks):
        for name, kept in network.model.kept().items():
            tensors[f"network.{number}.{name}"] = kept[0].detach().cpu().contiguous()
        with torch.no_grad():
            for kind, prompts in network.model.prompts().items():
                tensors[f"texts.{number}.{kind}"] = prompts()[0].cpu().contiguous()
        logits_NK = network.predict(features_NTD).logits_NK
        tensors[f"probe.{number}.logits"] = torch.from_numpy(logits_NK.copy())
    return tensors


def _encoder_config(files: EncoderFiles) -> dict[str, Any]:
    """As open_clip writes it beside weights."""
    pixels = files.preprocessing
    return {
        "model_cfg": files.config,
        "preprocess_cfg": {
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "interpolation": pixels.interpolation,
            "resize_mode": pixels.resize,
        },
    }


def _read_header(path: Path, file: BufferedReader) -> bytes:
    """The length and the header of a safetensors file."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    header_bytes = int.from_bytes(length, "little")
    if not 0 < header_bytes <= min(size - 8, _HEADER_BYTES_MAX):
        raise RefusedError(f"{path} is no bundle; make one with: tgdfer export")
    return length + file.read(header_bytes)


def _sha256(header: bytes, parts: "Sequence[bytes] | Iterator[bytes]") -> str:
    digest = hashlib.sha256(header)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _tensor(dtype: str, shape: tuple[int, ...], data: bytearray) -> "torch.Tensor":
    import torch

    tensor: torch.Tensor = torch.frombuffer(data, dtype=getattr(torch, DTYPES[dtype][0]))
    return tensor.view(shape)
