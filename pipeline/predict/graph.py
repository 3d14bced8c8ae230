"""Trained networks -> one ONNX graph, from features of frames to what the ensemble predicts."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.errors import RefusedError
from cache.files import make_directories, write_files
from cache.identity import Identity
from pipeline.model.prompts import Prompts
from pipeline.predict.prediction import ask
from pipeline.train.trained import TrainedRun

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OUTPUTS = ("logits", "probabilities", "influence")
TOLERANCE = 1e-4  # of every output, against ours
_TRACED, _CHECKED = 3, (1, 5)  # videos in a batch


def check_onnx() -> None:
    """Raise RefusedError unless the packages are here that write and run ONNX."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise RefusedError(
            f"--onnx needs {', '.join(missing)}; install with: pip install {' '.join(missing)}"
        )


def write_graph(path: Path, networks: Mapping[str, TrainedRun], features: Identity) -> None:
    """Write the ensemble of named networks to ``path``, complete or not at all.

    Input ``features``: float32 [batch, T, D], as the encoder gives them. Outputs: ``logits``
    [batch, network, K], ``probabilities`` [batch, K], their mean, and ``influence`` [batch, T], as
    tgdfer predict has it, NaN for frames that no network uses. The metadata have, in JSON, the
    classes, the names of the networks and how the features were made.
    Raises RefusedError if ONNX Runtime computes anything else from the graph than we do.
    """
    _refuse_prepended(networks)
    about = {
        "classes": next(iter(networks.values())).classes,
        "networks": list(networks),
        "features": features.model_dump(mode="json"),
    }
    data = _traced(_Ensemble(list(networks.values())).eval(), about)
    _check(data, networks)
    make_directories(path.parent)
    write_files({path: data}, path.parent)


def _refuse_prepended(networks: Mapping[str, TrainedRun]) -> None:
    for name, network in networks.items():
        if network.run.method.visual_prompt == "prepend":
            raise RefusedError(
                f"network {name} reads its visual prompts through the text tower "
                "(label.visual_prompt=prepend), which no ONNX graph has; export without --onnx"
            )


class _KnownTexts(nn.Module):
    """Text features that do not change any more, in the place of the prompts."""

    texts: Tensor

    def __init__(self, prompts: Prompts) -> None:
        super().__init__()
        with torch.no_grad():
            self.register_buffer("texts", prompts())

    def forward(self) -> Tensor:
        return self.texts


class _Member(nn.Module):
    place_TU: Tensor

    def __init__(self, network: TrainedRun) -> None:
        super().__init__()
        self.model = deepcopy(network.model).cpu()
        for name, prompts in self.model.prompts().items():
            setattr(self.model, name, _KnownTexts(prompts))
        self.scale = network.run.method.influence_scale
        place_TU = torch.eye(self.model.frames)[:, self.model.chosen_T]
        self.register_buffer("place_TU", place_TU)

    def forward(self, features_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, K], influences [B, T, K], 0 for frames that it does not use)."""
        said = self.model(features_BTD[None])
        influence_BUK = said.frame_logits_RBTK[0] * self.scale
        return said.logits_RBK[0], self.place_TU @ influence_BUK


class _Ensemble(nn.Module):
    users_T: Tensor

    def __init__(self, networks: Sequence[TrainedRun]) -> None:
        super().__init__()
        members = [_Member(network) for network in networks]
        self.members = nn.ModuleList(members)
        self.register_buffer(
            "users_T", torch.stack([own.place_TU.sum(1) for own in members]).sum(0)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        said = [member(features) for member in self.members]
        logits_BMK = torch.stack([logits_BK for logits_BK, _ in said], 1)
        p_BK = logits_BMK.softmax(-1).mean(1)
        label_BT1 = p_BK.argmax(1)[:, None, None].expand(-1, features.shape[1], 1)
        influence_BTK = torch.stack([influence_BTK for _, influence_BTK in said]).sum(0)
        influence_BT = influence_BTK.gather(2, label_BT1)[:, :, 0] / self.users_T
        return logits_BMK, p_BK, influence_BT


def _traced(ensemble: _Ensemble, about: Mapping[str, Any]) -> bytes:
    example = torch.from_numpy(_features(ensemble.members[0].model, _TRACED))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own exporter
        program = torch.onnx.export(
            ensemble,
            (example,),
            input_names=["features"],
            output_names=OUTPUTS,
            dynamic_shapes={"features": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(own) for name, own in about.items()})
    data: bytes = program.model_proto.SerializeToString()
    return data


def _check(data: bytes, networks: Mapping[str, TrainedRun]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for count in _CHECKED:
        features_BTD = _features(next(iter(networks.values())).model, count)
        ours = ask(networks, features_BTD)
        expected = ours.logits_MNK.transpose(1, 0, 2), ours.p_NK, ours.influence_NT
        found = session.run(list(OUTPUTS), {"features": features_BTD})
        for name, own, other in zip(OUTPUTS, expected, found, strict=True):
            same = own.shape == other.shape
            if not (same and np.allclose(own, other, 0, TOLERANCE, equal_nan=True)):
                raise RefusedError(
                    f"ONNX Runtime computes other {name} than we do, so the graph was not kept; "
                    "export without --onnx"
                )


def _features(model: Any, count: int) -> NDArray[np.float32]:
    """Random features of ``count`` videos, as the encoder might give them to a network."""
    shape = (count, model.frames, model.size)
    return np.random.default_rng(0).standard_normal(shape, np.float32)
