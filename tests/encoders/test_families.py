"""Encoders of every family as their own libraries have them, and from videos to a trained run."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from torch.nn.functional import cosine_similarity
from torchvision.transforms._presets import VideoClassification
from typer.testing import CliRunner

import tgdfer
from cache.errors import RefusedError
from cache.store import Store
from cli.ablate import ablate
from cli.compare import compare
from pipeline.config import MethodConfig, PromptConfig, runs_of
from pipeline.datasets.texts import class_texts
from pipeline.datasets.videos import Fold, Video, VideoList
from pipeline.encoders.clip import Encoder, EncoderFiles, Precision, find_encoder
from pipeline.evaluate.baselines import logistic_regression, zero_shot
from pipeline.extract.live import open_live
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from pipeline.extract.reencode import compare_reencoded
from pipeline.model.prompts import Prompts
from pipeline.model.text_tower import TextTower, load_text_tower
from pipeline.predict.elsewhere import evaluate_elsewhere
from pipeline.predict.predictor import load_predictor
from pipeline.report.tables import TABLE3, TABLE4, fit
from pipeline.train.grid import check_runs, train_runs
from pipeline.train.record import Record
from pipeline.train.records import Records
from pipeline.train.trained import load_run, read_checkpoint
from pipeline.video.views import fit_for_evaluation
from support.sources import pictures, write_encoder, write_list

CLASSES = ("happiness", "sadness")
TEXT = {"vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TIMM = {"timm_model_name": "test_vit", "image_size": 160}
# The architectures of published models, with few layers of small width.
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "ViT-L-14-336": (
        {
            "embed_dim": 768,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 42, "layers": 2, "width": 64, "patch_size": 14},
            "text_cfg": {"context_length": 77, **TEXT},
        },
        "packed",
    ),
    "RN50": (
        {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 64,
                "layers": [1, 1, 1, 1],
                "width": 8,
                "patch_size": None,
            },
            "text_cfg": {"context_length": 77, **TEXT},
        },
        "packed",
    ),
    "PE-Core": (
        {
            "embed_dim": 48,
            "custom_text": True,
            "vision_cfg": {**TIMM, "timm_pool": "map", "timm_proj": None},
            "text_cfg": {"context_length": 32, **TEXT},
        },
        "packed",
    ),
    "SigLIP2": (  # with CLIP's tokenizer
        {
            "embed_dim": 64,
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": {**TIMM, "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": {
                **{"context_length": 32, **TEXT, "no_causal_mask": True, "pool_type": "last"},
                **{"proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        "padded",
    ),
    "MobileCLIP": (
        {
            "embed_dim": 40,
            "custom_text": True,
            "vision_cfg": {**TIMM, "timm_pool": "avg", "timm_proj": "linear"},
            "text_cfg": {"context_length": 32, **TEXT, "no_causal_mask": True},
        },
        "padded",
    ),
}


def write_family(folder: Path, family: str) -> str:
    """Random weights of a family; its pixels are squashed, with statistics of their own."""
    config, _ = FAMILIES[family]
    torch.manual_seed(0)
    own = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    state = kind(**json.loads(json.dumps(own))).state_dict()
    folder.mkdir()
    save_file({name: t.contiguous() for name, t in state.items()}, folder / "w.safetensors")
    pixels = {"mean": [0.5] * 3, "std": [0.4] * 3, "interpolation": "bilinear"}
    whole = {"model_cfg": config, "preprocess_cfg": pixels | {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return f"local-dir:{folder}"


Family = tuple[str, EncoderFiles, Any, Any]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Its layout of prompts, its files, open_clip's own model, and its preprocessing."""
    name = write_family(tmp_path_factory.mktemp("family") / request.param, request.param)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return FAMILIES[request.param][1], find_encoder(name), model.eval(), preprocess


def tower_of(files: EncoderFiles) -> TextTower:
    encoder = Encoder(files, "cpu", "fp32")
    return load_text_tower(encoder.text_weights, json.loads(encoder.text_config))


def encoded(
    files: EncoderFiles, frames_NHWC: np.ndarray, precision: Precision = "fp32"
) -> torch.Tensor:
    """Our preprocessing and our features."""
    frames_NCHW = torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2)
    fitted = [fit_for_evaluation(frame_CHW, files.preprocessing) for frame_CHW in frames_NCHW]
    return Encoder(files, "cpu", precision).encode(torch.stack(fitted)).float()


def test_features_are_those_of_open_clips_own_preprocessing_and_model(family: Family) -> None:
    _, files, model, preprocess = family
    frames = pictures(4, seed=3, height=200, width=260)
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
        expected = model.encode_image(images)
    assert cosine_similarity(encoded(files, frames), expected).min() >= 0.9999


def test_texts_are_read_as_open_clips_own_model_reads_them(family: Family) -> None:
    layout, files, model, _ = family
    tower = tower_of(files)
    assert tower.layout == layout
    texts = class_texts(CLASSES).of("descriptors")
    with torch.inference_mode():
        tokens = open_clip.tokenize(list(texts), tower.context_length)
        expected = model.encode_text(tokens)
    found = tower.encode_texts(texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_learned_context_of_a_tower_without_a_mask_sees_and_is_seen_by_the_whole_prompt(
    tmp_path: Path,
) -> None:
    """Context vectors that are the embeddings of words give the features of these words."""
    tower = tower_of(find_encoder(write_family(tmp_path / "MobileCLIP", "MobileCLIP")))
    prompts = Prompts([torch.Generator()], tower, CLASSES, True, PromptConfig(context_length=2))
    words = torch.tensor(tower.tokenize("a very")[1:-1])
    assert prompts.context_RCW is not None
    with torch.no_grad():
        prompts.context_RCW[0] = tower.embed(words).repeat(len(CLASSES), 1)
        found = prompts()[0]
    expected = tower.encode_texts([f"a very {name}" for name in CLASSES])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def write_timm(folder: Path, model: str) -> tuple[str, str]:
    """The name of an image model of timm, and a file of random weights, with a classifier."""
    torch.manual_seed(0)
    state = timm.create_model(model, num_classes=10).state_dict()
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "timm.safetensors")
    return f"timm:{model}", str(folder / "timm.safetensors")


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_efficientnet"])
def test_features_are_those_of_timms_own_preprocessing_and_model(
    model: str, tmp_path: Path
) -> None:
    files = find_encoder(*write_timm(tmp_path, model))
    own = timm.create_model(model, num_classes=10)
    own.load_state_dict(load_file(files.weights_path))
    own.reset_classifier(0)
    known = timm.data.resolve_data_config(pretrained_cfg=own.pretrained_cfg)
    preprocess = timm.data.create_transform(**known | {"crop_pct": 1.0})  # all of a cropped face
    frames = pictures(4, seed=3, height=200, width=260)
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
        expected = own.eval()(images)
    found = encoded(files, frames)
    assert cosine_similarity(found, expected).min() >= 0.9999
    low = encoded(files, frames, "bf16")
    assert cosine_similarity(low, expected).min() >= 0.99


def test_an_image_model_makes_a_store_for_what_needs_no_texts(tmp_path: Path) -> None:
    name, weights = write_timm(tmp_path, "test_vit")
    store = extracted(tmp_path, find_encoder(name, weights))
    assert store.load_features().shape == (12, 1, 4, 64)
    assert store.identity.encoder.name == "timm:test_vit"
    assert sorted(logistic_regression(store, "mean").rows) == [8, 9, 10, 11]
    remedy = "reads no texts, .* extract with an encoder of open_clip, .* tgdfer compare"
    for needs_texts in (lambda: zero_shot(store, "class"), lambda: trained(store, tmp_path)):
        with pytest.raises(RefusedError, match=remedy):
            needs_texts()
    commands = typer.Typer()
    commands.command()(compare)
    done = CliRunner().invoke(commands, ["--store", str(store.path), "--out", str(tmp_path)])
    assert done.exit_code == 0
    assert "left out: the store's encoder has no text tower" in done.stderr
    table = (tmp_path / "comparison.md").read_text()
    assert "| logistic regression, mean of frames " in table
    assert "| TG-DFER" not in table
    assert extracted(tmp_path, find_encoder(name, weights)).digest == store.digest  # found finished


def test_heads_that_read_no_texts_need_no_text_tower(tmp_path: Path) -> None:
    name, weights = write_timm(tmp_path, "test_vit")
    store = extracted(tmp_path, find_encoder(name, weights))
    with pytest.raises(RefusedError, match=r"the heads of DFER-CLIP.* --set head.kind=mlp"):
        trained(store, tmp_path, "head.kind=dfer_clip")
    records = [
        trained(store, tmp_path, f"head.kind={kind}", "head.instance=2", "head.hidden=8")
        for kind in ("mlp", "bilstm", "transformer", "m3dfel", "est")
    ]
    for record in records:
        assert (record.ok, record.result and record.result["prompt_layout"]) == (True, None)
        said = load_run(record.folder, store).predict(store.load_features([0])[8:, 0])
        np.testing.assert_allclose(said.logits_NK, record.logits(), atol=1e-5)
    folders = [record.folder for record in records]
    evaluation = evaluate_elsewhere([read_checkpoint(folder) for folder in folders], store)
    expected = np.concatenate([record.logits().argmax(1) for record in records])
    np.testing.assert_array_equal(evaluation.predicted, expected)
    with pytest.raises(RefusedError, match="nothing is fetched; pass its weights"):
        load_predictor(folders)
    predictor = load_predictor(folders, pretrained=weights, device="cpu")
    (video,) = predictor.predict(video_list(tmp_path).videos[8].path, faces="whole")
    p_MK = [softmax(record.logits()[0]) for record in records]
    found = [video.probabilities[name] for name in CLASSES]
    np.testing.assert_allclose(found, np.mean(p_MK, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vitt", "timm has no model test_vitt; did you mean one of test_vit"),
        ("timm:hf-hub:someone/model", "timm has no model hf-hub:someone/model"),
        ("timm:test_vit.nobody", "Invalid pretrained tag"),
    ],
)
def test_image_models_that_timm_does_not_have_are_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=message):
        find_encoder(name, str(tmp_path / "w.safetensors"))


def test_an_image_model_needs_a_file_of_its_own_weights(tmp_path: Path) -> None:
    name, weights = write_timm(tmp_path, "test_vit")
    with pytest.raises(RefusedError, match="nothing is fetched; pass its weights: --pretrained"):
        find_encoder(name)
    with pytest.raises(
        RefusedError, match=r"do not load into timm:test_convnext: .* has the shape"
    ):
        find_encoder("timm:test_convnext", weights).check()


def write_video_model(folder: Path, model: str) -> str:
    """A file of random weights of a 3-D CNN, with a classifier."""
    torch.manual_seed(0)
    state = getattr(torchvision.models.video, model)(num_classes=7).state_dict()
    save_file(dict(state), folder / "video.safetensors")
    return str(folder / "video.safetensors")


@pytest.mark.parametrize("model", ["mc3_18", pytest.param("r2plus1d_18", marks=pytest.mark.slow)])
def test_features_are_those_of_torchvisions_own_preprocessing_and_model(
    model: str, tmp_path: Path
) -> None:
    files = find_encoder(f"torchvision:{model}/4", write_video_model(tmp_path, model))
    own = getattr(torchvision.models.video, model)(num_classes=7)
    own.load_state_dict(load_file(files.weights_path))
    own.fc = torch.nn.Identity()
    preprocess = VideoClassification(crop_size=(112, 112), resize_size=(112, 112))
    frames = pictures(8, seed=3, height=112, width=112)
    with torch.inference_mode():
        segments = torch.from_numpy(frames).permute(0, 3, 1, 2).unflatten(0, (2, 4))
        expected = own.eval()(preprocess(segments))
    found = encoded(files, frames)
    assert found.shape == (2, 512)
    assert cosine_similarity(found, expected).min() >= 0.9999


Segments = tuple[EncoderFiles, VideoList, Store]


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Segments:
    """Six videos of four segments, with texts read by a CLIP."""
    here = tmp_path_factory.mktemp("segments")
    name = f"torchvision:mc3_18/2+{write_encoder(here / 'clip')}"
    files = find_encoder(name, write_video_model(here, "mc3_18"))
    store = extracted(here, files, count=6)
    return files, video_list(here, 6), store


def test_segments_are_encoded_alike_into_a_store_again_and_in_training(segments: Segments) -> None:
    files, videos, store = segments
    (again,) = compare_reencoded(store, videos, Encoder(files, "cpu", "fp32"), 1)
    assert again.cosine > 0.9999
    _, live, _, _ = open_live(videos, files, SETTINGS, trained=False)
    kept_TD = torch.from_numpy(store.load_features()[3, 0]).float()
    found_TD = live(torch.tensor([[3]]), torch.tensor([[0]]))[0, 0]
    assert cosine_similarity(found_TD, kept_TD).min() > 0.9999
    assert cosine_similarity(kept_TD[0], kept_TD[3], dim=0) < 0.9999


def test_a_store_of_segments_trains_the_rows_of_tables_that_fit_it(
    segments: Segments, tmp_path: Path
) -> None:
    _, _, store = segments
    assert store.load_features().shape == (6, 1, 4, 512)
    # All 8 frames of a video in segments of 2, of which the second is recorded.
    assert store.load_frame_index()[0, 0].tolist() == [1, 3, 5, 7]
    base = tgdfer.load_method("paper", ["optimiser.epochs=1", "temporal.head_size=8"])
    assert_table3_trains(store, base, tmp_path)
    message = 'such as w8 s8: .* cover 4 frames.* --rows "w2 s2,w4 s4,w2 s1,w4 s1,w4 s2,w4 s3"'
    with pytest.raises(RefusedError, match=message):
        fit(TABLE4, store, base)
    assert [row.name for row in fit(TABLE4, store, base, ["w2 s1"]).rows] == ["w2 s1"]
    commands = typer.Typer()
    commands.command()(ablate)
    given = ["table3", "table4", "--store", str(store.path), "--rows", "a,w2 s1,w9"]
    refused = CliRunner().invoke(commands, given).exception
    assert "no row w9; --rows list shows" in str(refused)


def test_features_of_768_train_table_3(tmp_path: Path) -> None:
    store = extracted(tmp_path, find_encoder(write_family(tmp_path / "L", "ViT-L-14-336")), count=6)
    assert store.load_features().shape == (6, 1, 4, 768)
    base = tgdfer.load_method("paper", ["optimiser.epochs=1"])
    assert_table3_trains(store, base, tmp_path, "ae")  # others take half a minute


def assert_table3_trains(
    store: Store, base: MethodConfig, here: Path, names: str = "abcdefghijkl"
) -> None:
    """All rows fit, and those of these names train to the end."""
    rows = fit(TABLE3, store, base).rows
    assert [row.name for row in rows] == list("abcdefghijkl")
    methods = [row.method(base) for row in rows if row.name in names]
    runs, records = [runs_of(own, ["1"], [0])[0] for own in methods], Records(here, store)
    train_runs(runs, records, "cpu", workers=0)
    found = [records.find(run) for run in runs]
    assert all(record is not None and record.ok for record in found)


@pytest.mark.parametrize("name", ["r3d_18", "r3d_18/0", "resnet18/4", "r3d_18/x", "../r3d_18/4"])
def test_video_models_that_are_not_supported_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="expected one of r3d_18, mc3_18, r2plus1d_18, a slash"):
        find_encoder(f"torchvision:{name}", str(tmp_path / "w.safetensors"))


def test_an_image_model_with_the_text_tower_of_a_clip_trains_through_a_projection(
    tmp_path: Path,
) -> None:
    name, weights = write_timm(tmp_path, "test_vit")
    clip = write_encoder(tmp_path / "clip", dim=24)
    files = find_encoder(f"{name}+{clip}", weights)
    store = extracted(tmp_path, files)
    assert (store.dim, store.network_dim) == (64, 24)
    assert store.identity.encoder.name == "timm:test_vit+local-dir:clip"
    record = trained(store, tmp_path, "temporal.head_size=8")
    assert record.ok
    kept = load_run(record.folder, store).model.kept()
    assert kept["project.weight_RIO"].shape == (1, 64, 24)
    for kind in ("dfer_clip", "mlp", "est"):  # which reads texts, and which does not
        own = trained(store, tmp_path, f"head.kind={kind}", "head.instance=2")
        kept = load_run(own.folder, store).model.kept()
        assert ("project.weight_RIO" in kept) == (kind == "dfer_clip")
    with pytest.raises(RefusedError, match="texts are read by another encoder than its frames"):
        zero_shot(store, "class")
    again = find_encoder(
        f"{name}+{write_encoder(tmp_path / 'other/clip', dim=24, seed=1)}", weights
    )
    assert again.identity.name == files.identity.name
    assert again.identity != files.identity
    with pytest.raises(RefusedError, match="reads no texts; name a CLIP after the"):
        find_encoder(f"{name}+{name}", weights)


def video_list(here: Path, count: int = 12) -> VideoList:
    """Videos of two classes in one fold."""
    if not (here / "videos").exists():
        (here / "videos").mkdir()
        write_list(here / "videos", count, frames=8)
    paths = sorted((here / "videos").iterdir())
    videos = tuple(Video(path.stem, path, i // 2 % 2) for i, path in enumerate(paths))
    ids = tuple(video.id for video in videos)
    return VideoList("test", CLASSES, videos, (Fold("1", ids[:-4], ids[-4:]),))


SETTINGS = ExtractSettings(
    views=1, frames=4, batch_frames=4, precision="fp32", device="cpu", workers=1
)


def extracted(here: Path, files: EncoderFiles, count: int = 12) -> Store:
    extract(video_list(here, count), here / "s.zarr", files, SETTINGS)
    return tgdfer.open_store(here / "s.zarr")


def trained(store: Store, here: Path, *settings: str) -> Record:
    method = tgdfer.load_method("paper", ["optimiser.epochs=1", *settings])
    return tgdfer.train(store, method, ["1"], runs=here / "runs", device="cpu")[0]


def test_texts_too_long_for_a_short_tower_are_refused_before_training(tmp_path: Path) -> None:
    store = extracted(tmp_path, find_encoder(write_family(tmp_path / "PE-Core", "PE-Core")))
    for learnable, refused in ((True, True), (False, False)):
        settings = [f"prompts.fine_learnable={learnable}".lower(), "prompts.fine_text=descriptors"]
        runs = runs_of(tgdfer.load_method("paper", settings), ["1"], [0])
        message = "leaves 3 of the text tower's 32 positions, too few for prompts.context_length=8"
        with pytest.raises(RefusedError, match=message) if refused else nullcontext():
            check_runs(runs, store)


def test_any_model_goes_from_videos_to_a_trained_run(family: Family, tmp_path: Path) -> None:
    layout, files, _, _ = family
    store = extracted(tmp_path, files)
    assert store.load_features().shape == (12, 1, 4, files.config["embed_dim"])
    record = trained(store, tmp_path, "temporal.head_size=8")
    assert record.ok
    assert record.result is not None
    assert record.result["prompt_layout"] == layout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ViT-B-16-SigLIP2",
            "the tokenizer timm/ViT-B-16-SigLIP2.* choose a model with CLIP's own.* "
            r"--encoder timm:vit_base_patch16_siglip_224 --pretrained FILE \(and \+CLIP",
        ),
        ("coca_ViT-B-32", "its text tower is not CLIP's own"),
        ("xlm-roberta-base-ViT-B-32", "its text tower is not CLIP's own"),
    ],
)
def test_text_towers_that_cannot_be_read_are_refused_before_the_work(
    name: str, message: str, tmp_path: Path
) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "w.safetensors")
    for weights in (None, "webli", "no/file.pt", str(tmp_path / "w.safetensors")):
        with pytest.raises(RefusedError, match=message):
            find_encoder(name, weights)


def test_weights_in_a_file_get_the_pixels_of_the_published_ones(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "w.safetensors")
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        tags = open_clip.list_pretrained_tags_by_model(name)
        if "timm_model_name" in config["vision_cfg"]:
            known = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
            assert len({(own["mean"], own["std"], own["resize_mode"]) for own in known}) <= 1, name
    pixels = find_encoder("PE-Core-B-16", str(tmp_path / "w.safetensors")).preprocessing
    assert (pixels.mean, pixels.resize) == ((0.5, 0.5, 0.5), "squash")
