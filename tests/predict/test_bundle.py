"""Bundles: the same predictions without runs and store; nothing changed is believed."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from cache.errors import DamagedError, RefusedError
from pipeline.encoders.clip import MINI
from pipeline.predict.bundle import read_bundle
from pipeline.predict.export import export
from pipeline.predict.predictor import Predictor, load_predictor
from support.commands import tgdfer
from support.sources import write_encoder
from support.trained import Trained

pytestmark = pytest.mark.slow  # it renders and trains


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.tgdfer"
    export(trained.folders, path, with_encoder=True)
    return path


def test_bundle_predicts_the_same_in_a_folder_without_runs_and_store(
    trained: Trained, ensemble: Predictor, bundle: Path, tmp_path: Path
) -> None:
    shutil.copy(bundle, tmp_path / "m.tgdfer")
    shutil.copytree(trained.tested()[0], tmp_path / "video")
    words = ("predict", "video", "--run", "m.tgdfer", "--device", "cpu", "--out", "out")
    done = tgdfer(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (video,) = json.loads((tmp_path / "out/predictions.json").read_text())["videos"]
    (expected,) = ensemble.predict(trained.tested()[0])
    assert video["windows"][0]["logits"] == {
        name: pytest.approx(logits) for name, logits in expected.windows[0].logits.items()
    }
    assert (video["label"], video["doubt"]) == (expected.label, pytest.approx(expected.doubt))


def test_bundle_brings_its_encoder_and_names_it(bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert read_bundle(bundle).unpack_encoder(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert (
        config["model_cfg"] == json.loads((MINI / "open_clip_config.json").read_text())["model_cfg"]
    )
    predictor = load_predictor([bundle], device="cpu")
    assert predictor.encoder.files.name.startswith("local-dir:")
    assert predictor.encoder.identity.weights_sha256 == manifest.features.encoder.weights_sha256
    assert predictor.encoder.identity.text_sha256 == manifest.features.encoder.text_sha256


def test_bundle_without_its_encoder_is_refused_with_another(
    trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "small.tgdfer"
    export(trained.folders[:1], path)
    assert not read_bundle(path).unpack_encoder(tmp_path)
    assert list(load_predictor([path], device="cpu").networks) == [trained.folders[0].name]
    other = write_encoder(tmp_path / "other", dim=64)
    with pytest.raises(RefusedError, match=r"(?s)trained with another encoder.*weights_sha256"):
        load_predictor([path], encoder=other)
    with pytest.raises(RefusedError, match="exists; remove it, or choose another name"):
        export(trained.folders[:1], path)


def test_bundle_with_any_byte_flipped_is_refused(bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    generator = random.Random(0)
    places = [*range(8), 8, end - 1, end, len(data) - 1]
    places += [generator.randrange(8, end) for _ in range(60)]
    places += [generator.randrange(end, len(data)) for _ in range(10)]
    path = tmp_path / "flipped.tgdfer"
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(RefusedError, match=r"damaged|no bundle|not valid|another version"):
            read_bundle(path)
    for size in (0, 7, 8, end, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(RefusedError, match=r"damaged|no bundle"):
            read_bundle(path)


def test_network_that_predicts_something_else_here_is_refused(
    trained: Trained, bundle: Path
) -> None:
    predictor = load_predictor(trained.folders, device="cpu")
    opened = read_bundle(bundle)
    opened.check(predictor.networks)
    swapped = dict(zip(predictor.networks, [*predictor.networks.values()][::-1], strict=True))
    with pytest.raises(RefusedError, match="predicts something else here"):
        opened.check(swapped)


def forge(path: Path, content: dict[str, object], tensors: dict[str, torch.Tensor]) -> Path:
    """A bundle with a sha256 that is right."""
    data = save(tensors, {"tgdfer": json.dumps(content | {"sha256": "0" * 64})})
    path.write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode()))
    return path


def test_bundle_that_is_not_complete_is_refused_whatever_its_sha256(
    bundle: Path, tmp_path: Path
) -> None:
    whole = read_bundle(bundle).manifest.model_dump(mode="json")
    tensors = {"probe.other": torch.zeros(3)}
    for changes, message in (
        ({"networks": []}, "networks: Tuple should have at least 1 item"),
        ({"networks": [whole["networks"][0]] * 2}, "two networks have one name"),
        ({"texts": {}}, "texts for 7 classes"),
        ({"classes": ["happiness"]}, "classes: Tuple should have at least 2 items"),
        ({"more": 1}, "Extra inputs"),
        ({"version": 2}, "another version of tgdfer"),
    ):
        with pytest.raises(RefusedError, match=message):
            read_bundle(forge(tmp_path / "f.tgdfer", whole | changes, tensors))
    opened = read_bundle(forge(tmp_path / "f.tgdfer", whole, tensors))
    (first, _) = opened.checkpoints()
    assert first.parameters == {}
    with pytest.raises(DamagedError, match=r"has no probe\.0\.logits; export it again"):
        opened.check(dict.fromkeys((first.name, "other")))  # type: ignore[arg-type]


def test_other_safetensors_are_no_bundle(trained: Trained, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is no bundle"):
        read_bundle(trained.folders[0] / "checkpoint.safetensors")
    content = read_bundle(bundle).manifest.model_copy(update={"sha256": "1" * 64})
    save_file(
        {"a": torch.zeros(1)}, tmp_path / "forged.tgdfer", {"tgdfer": content.model_dump_json()}
    )
    with pytest.raises(DamagedError, match="its sha256 is not the recorded one"):
        read_bundle(tmp_path / "forged.tgdfer")


def test_card_has_the_scores_of_each_network_and_says_what_was_not_measured(
    trained: Trained, bundle: Path
) -> None:
    card = bundle.with_suffix(".md").read_text(encoding="utf-8")
    assert read_bundle(bundle).manifest.card == card
    for record in trained.records:
        assert record.result is not None
        scores, recalls = [line for line in card.splitlines() if record.folder.name in line]
        assert f"| {100 * record.result['war']:.1f} [" in scores
        assert f"| {record.result['train_videos']} | 7 |" in scores
        for recall in filter(None, record.result["recalls"].values()):
            assert f"{100 * recall:.1f}" in recalls
    parts = (
        "faces: whole frames",
        "folds: 1, those of the data",
        "seeds: 0, 1",
        "epochs: 2; the reported",
    )
    for part in parts:
        assert part in card
    assert "- `optimiser.epochs = 2`" in card
    assert "What was not measured" in card


def test_folder_has_the_names_that_model_hubs_expect(trained: Trained, tmp_path: Path) -> None:
    files = export(trained.folders[:1], tmp_path / "hub")
    assert [path.name for path in sorted((tmp_path / "hub").iterdir())] == [
        "README.md",
        "model.tgdfer",
    ]
    assert files.card.read_text(encoding="utf-8").startswith("---\nlibrary_name: tgdfer\n")
    with pytest.raises(RefusedError, match=r"hub/model\.tgdfer exists"):
        export(trained.folders[:1], tmp_path / "hub")
    with pytest.raises(RefusedError, match="the name of a bundle ends in"):
        export(trained.folders[:1], tmp_path / "model.zip")


def test_command_exports(trained: Trained, tmp_path: Path) -> None:
    done = tgdfer("export", trained.folders[0], "new.tgdfer", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "next: tgdfer predict VIDEO --run new.tgdfer" in done.stderr
    again = tgdfer("export", trained.folders[0], "new.tgdfer", cwd=tmp_path)
    assert again.returncode == 2
    assert "new.tgdfer exists" in again.stderr
