"""The frozen encoder: what it computes, and what it refuses to load."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from cache.errors import RefusedError
from pipeline.encoders.clip import Encoder, find_encoder
from support.sources import SIZE_PX, write_encoder


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def noise(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def open_clips(name: str, frames: np.ndarray) -> np.ndarray:
    """What open_clip's own model makes of the frames."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        return open_clip.create_model(name).eval().encode_image(pixels).float().numpy()


def encoded(encoder: Encoder, frames_NHWC: np.ndarray) -> np.ndarray:
    return encoder.encode(torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2)).numpy()


def test_features_are_those_of_open_clips_encode_image(name: str) -> None:
    frames = noise(5)
    ours = encoded(Encoder(find_encoder(name), "cpu", "fp32"), frames)
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours, open_clips(name, frames), atol=2e-3)
    assert np.abs(np.linalg.norm(ours.astype(float), axis=1) - 1).min() > 0.01  # not normalised


def test_bfloat16_rounds_less_than_autocast_rounds_open_clips_encode_image(name: str) -> None:
    frames = noise(8)
    exact = open_clips(name, frames)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = open_clips(name, frames)
    low = encoded(Encoder(find_encoder(name), "cpu", "bf16"), frames)
    assert 0 < np.linalg.norm(low - exact) < np.linalg.norm(autocast - exact)


def test_a_row_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    encoder = Encoder(find_encoder(name), "cpu", "auto")
    frames = noise(16)
    others = np.concatenate([frames[:4], noise(12, seed=1)])
    assert np.array_equal(encoded(encoder, frames)[:4], encoded(encoder, others)[:4])


def test_text_tower_alone_gives_the_models_text_features(name: str) -> None:
    encoder = Encoder(find_encoder(name), "cpu", "fp32")
    weights, config = load_tensors(encoder.text_weights), json.loads(encoder.text_config)
    tower = open_clip.transformer.TextTransformer(
        output_dim=config["embed_dim"],
        act_layer=open_clip.transformer.QuickGELU,
        **config["text_cfg"],
    )
    tower.load_state_dict(weights)
    tokens = open_clip.tokenize(["a happy face", "a sad face"])
    with torch.inference_mode():
        expected = open_clip.create_model(name).eval().encode_text(tokens)
        assert torch.allclose(tower.eval()(tokens), expected, atol=1e-5)


def test_identity_follows_the_weights(name: str, tmp_path: Path) -> None:
    files = find_encoder(name)
    same = find_encoder(write_encoder(tmp_path / Path(name).name))
    other = find_encoder(write_encoder(tmp_path / "other", dim=8))
    assert files.identity == same.identity
    assert files.identity.weights_sha256 != other.identity.weights_sha256
    assert files.identity.activation == "QuickGELU"
    assert Encoder(files, "cpu", "fp32").identity.text_sha256


def test_finding_an_encoder_does_not_import_torch(name: str) -> None:
    code = (
        "import sys; from pipeline.encoders.clip import find_encoder\n"
        f"find_encoder({name!r}).identity; import pipeline.extract.loop\n"
        "assert 'torch' not in sys.modules and 'open_clip' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openai_weights_need_quickgelu() -> None:
    with pytest.raises(RefusedError, match="use --encoder ViT-B-32-quickgelu"):
        find_encoder("ViT-B-32", "openai")


def test_activation_other_than_configured_is_refused(tmp_path: Path) -> None:
    name = write_encoder(tmp_path / "timm")
    path = tmp_path / "timm/open_clip_config.json"
    config = json.loads(path.read_text())
    # Models of timm have GELU, whatever the configuration says.
    timm = {"timm_model_name": "vit_tiny_patch16_224", "image_size": SIZE_PX, "timm_pool": "token"}
    config["model_cfg"]["vision_cfg"] = timm
    path.write_text(json.dumps(config))
    model = open_clip.CLIP(**config["model_cfg"])
    save_file(model.state_dict(), tmp_path / "timm/w.safetensors")
    with pytest.raises(RefusedError, match="was built with GELU, its configuration says QuickGELU"):
        Encoder(find_encoder(name), "cpu", "fp32")


def test_unknown_encoders_tags_and_files_are_refused(tmp_path: Path) -> None:
    for arguments, message in {
        ("ViT-Z-1", "openai"): "has no encoder ViT-Z-1",
        ("ViT-B32-quickgelu", None): "did you mean one of ViT-B-32-quickgelu",
        ("ViT-B-32-quickgelu", "nonsense"): "known tags: openai",
        ("ViT-B-32-quickgelu", str(tmp_path / "w.safetensors")): "no weights at",
        (f"local-dir:{tmp_path}", None): "needs open_clip_config.json",
    }.items():
        with pytest.raises(RefusedError, match=message):
            find_encoder(*arguments)


def test_pickled_code_in_weights_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "weights.pt"
    torch.save({"visual.proj": Bomb()}, path)
    with pytest.raises(RefusedError, match="do not load"):
        Encoder(find_encoder("ViT-B-32-quickgelu", str(path)), "cpu", "fp32")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_are_refused(name: str) -> None:
    weights = find_encoder(name).weights_path
    with pytest.raises(RefusedError, match="do not load into ViT-B-32-quickgelu"):
        Encoder(find_encoder("ViT-B-32-quickgelu", str(weights)), "cpu", "fp32")


def test_cuda_is_refused_where_there_is_none(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RefusedError, match="no CUDA device"):
        Encoder(find_encoder(name), "cuda", "auto")
