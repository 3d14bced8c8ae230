"""Networks as an ONNX graph, run by ONNX Runtime: what we predict, for any number of videos."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from cache.errors import RefusedError
from pipeline.config import load_method
from pipeline.datasets.texts import class_texts
from pipeline.model.heads.choose import build_network
from pipeline.model.network import NetworkSpec
from pipeline.model.text_tower import load_text_tower
from pipeline.predict import graph
from pipeline.predict.graph import check_onnx, write_graph
from pipeline.predict.prediction import ask
from pipeline.predict.predictor import Predictor
from pipeline.train.trained import TrainedRun
from support.trained import Trained

pytestmark = pytest.mark.slow  # it renders and trains


@pytest.fixture(scope="module")
def networks(trained: Trained, ensemble: Predictor) -> dict[str, TrainedRun]:
    """A trained network, one that uses half of the frames, and one that reads no text."""
    store, (name, first) = trained.store, next(iter(ensemble.networks.items()))
    tower = load_text_tower(store.text_weights, store.text_config)
    networks = {name: first}
    for other, settings in {
        "other": ["input.frames=8", "temporal.window=3"],
        "without texts": ["head.kind=mlp"],
    }.items():
        method = load_method("tuned", settings)
        texts, drawn = class_texts(store.classes), torch.Generator().manual_seed(1)
        spec = NetworkSpec([drawn], tower, texts, store.frames, [method])
        model = build_network(spec)
        run = first.run.model_copy(update={"method": method})
        networks[other] = replace(first, run=run, model=model)
    return networks


@pytest.fixture(scope="module")
def written(
    ensemble: Predictor, networks: dict[str, TrainedRun], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("graph") / "m.onnx"
    write_graph(path, networks, ensemble.data)
    return path


def test_onnx_runtime_predicts_what_we_do(
    trained: Trained, ensemble: Predictor, networks: dict[str, TrainedRun], written: Path
) -> None:
    session = onnxruntime.InferenceSession(written)
    features_NTD = trained.store.load_features()[:, 0]
    for few_NTD in (features_NTD[:1], features_NTD[:7]):
        logits_NMK, p_NK, influence_NT = session.run(None, {"features": np.float32(few_NTD)})
        ours = ask(networks, few_NTD)
        np.testing.assert_allclose(logits_NMK, ours.logits_MNK.transpose(1, 0, 2), atol=1e-4)
        np.testing.assert_allclose(p_NK, ours.p_NK, atol=1e-4)
        np.testing.assert_allclose(influence_NT, ours.influence_NT, atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(trained.store.classes)
    assert json.loads(about["networks"]) == list(networks)
    assert json.loads(about["features"]) == ensemble.data.model_dump(mode="json")


def test_graph_that_computes_something_else_is_not_kept(
    ensemble: Predictor,
    networks: dict[str, TrainedRun],
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = dict(reversed(networks.items()))
    monkeypatch.setattr(graph, "_traced", lambda *_: written.read_bytes())
    with pytest.raises(RefusedError, match="ONNX Runtime computes other logits than we do"):
        write_graph(tmp_path / "m.onnx", others, ensemble.data)
    assert not (tmp_path / "m.onnx").exists()


def test_networks_and_machines_that_cannot_are_refused(
    ensemble: Predictor, networks: dict[str, TrainedRun], tmp_path: Path
) -> None:
    method = load_method("paper", ["label.visual_prompt=prepend"])
    first = networks["other"]
    prepended = replace(first, run=first.run.model_copy(update={"method": method}))
    with pytest.raises(RefusedError, match="reads its visual prompts through the text tower"):
        write_graph(tmp_path / "m.onnx", {"n": prepended}, ensemble.data)
    check_onnx()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "find_spec", lambda name: None if name == "onnxscript" else 1)
        with pytest.raises(RefusedError, match="--onnx needs onnxscript; install with: pip"):
            check_onnx()
