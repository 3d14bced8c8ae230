"""Training without a store: the same curve as from cached features, and a trained encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from cache.errors import RefusedError
from cache.store import open_store
from pipeline.config import Run, load_method
from pipeline.datasets.videos import Fold, Video, VideoList
from pipeline.encoders.clip import EncoderFiles, find_encoder
from pipeline.extract.live import open_live
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from pipeline.model.text_tower import find_text_tower
from pipeline.predict.predictor import find_own_encoder
from pipeline.train.code import code_files
from pipeline.train.features import TrainingData, load_training_data, targets_of
from pipeline.train.grid import check_runs, train_live
from pipeline.train.records import Records
from pipeline.train.selection import Outcome
from pipeline.train.stack import train_stack
from pipeline.train.trained import load_run, read_checkpoint
from support.sources import write_encoder, write_list

SETTINGS = ExtractSettings(views=1, frames=4, precision="fp32", device="cpu", batch_frames=8)
SHAPE = ["temporal.window=2", "prompts.context_length=2", "optimiser.batch=4"]
STILL = [*SHAPE, "optimiser.augment=false", "optimiser.epochs=3"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoList:
    root = tmp_path_factory.mktemp("videos")
    write_list(root, 10)
    paths = sorted(root.iterdir())
    videos = tuple(Video(path.stem, path, i // 2 % 2) for i, path in enumerate(paths))
    ids = tuple(video.id for video in videos)
    folds = (Fold("1", ids[:7], ids[7:]), Fold("2", ids[3:], ids[:3]))
    return VideoList("test", ("happiness", "sadness"), videos, folds)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return find_encoder(write_encoder(tmp_path_factory.mktemp("clip")))


def write_other(folder: Path, kind: str) -> EncoderFiles:
    """Random weights of a model without a text tower."""
    torch.manual_seed(0)
    if kind == "timm":
        name, model = "timm:test_efficientnet", timm.create_model("test_efficientnet")
    else:
        name, model = "torchvision:mc3_18/1", torchvision.models.video.mc3_18()
    save_file(dict(model.state_dict()), folder / "w.safetensors")
    return find_encoder(name, str(folder / "w.safetensors"))


def live(
    videos: VideoList, files: EncoderFiles, trained: bool = False, frames: int = 4
) -> TrainingData:
    settings = replace(SETTINGS, frames=frames)
    store, features, weights, config = open_live(videos, files, settings, trained)
    targets = torch.from_numpy(targets_of(store))
    usable = np.ones(len(store.ids), np.bool_)
    return TrainingData(store, features, targets, usable, find_text_tower(weights, config))


def train(data: TrainingData, *settings: str) -> Outcome:
    fold = data.store.folds[0][0]
    run = Run(method=load_method("paper", settings), fold=fold, seed=0)
    return train_stack(data, [run])[0]


def test_without_augmentation_the_loss_curve_is_that_of_cached_features(
    videos: VideoList, files: EncoderFiles, tmp_path: Path
) -> None:
    extract(videos, tmp_path / "s.zarr", files, SETTINGS)
    cached = load_training_data(open_store(tmp_path / "s.zarr"), torch.device("cpu"))
    one, other = train(live(videos, files), *STILL), train(cached, *STILL)
    losses = [[epoch["train_loss"] for epoch in outcome.epochs] for outcome in (one, other)]
    # The same frames in the same batch size give the same float16 features, to the bit.
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(
        one.selected.predictions.logits_NK, other.selected.predictions.logits_NK
    )


def test_augmented_steps_show_every_video_anew(videos: VideoList, files: EncoderFiles) -> None:
    features = live(videos, files).features
    rows = torch.zeros(1, 1, dtype=torch.int64)
    one, again, other = (features(rows, rows + view) for view in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (1, 1, 4, files.config["embed_dim"])
    features.prepare(rows, rows + 5)
    assert torch.equal(features(rows, rows + 5), one)
    features.prepare(rows, rows + 5)  # and then something else is asked for
    assert torch.equal(features(rows, rows + 6), other)


def test_training_the_encoder_changes_it_and_micro_batches_do_not_change_the_training(
    videos: VideoList, files: EncoderFiles
) -> None:
    settings = [*STILL, "optimiser.epochs=1", "optimiser.lr_encoder=1e-3"]
    whole = train(live(videos, files, trained=True), *settings)
    parts = train(live(videos, files, trained=True), *settings, "optimiser.micro_batch=1")
    assert whole.epochs[0]["train_loss"] == pytest.approx(parts.epochs[0]["train_loss"], rel=1e-4)
    np.testing.assert_allclose(
        whole.selected.predictions.logits_NK, parts.selected.predictions.logits_NK, atol=2e-2
    )
    frozen = train(live(videos, files), *STILL, "optimiser.epochs=1")
    assert not np.allclose(
        whole.selected.predictions.logits_NK, frozen.selected.predictions.logits_NK, atol=2e-2
    )


def test_trained_encoder_is_saved_and_its_store_serves_its_own_fold_only(
    videos: VideoList, files: EncoderFiles, tmp_path: Path
) -> None:
    data = live(videos, files, trained=True)
    fold = data.store.folds[0][0]
    settings = [*STILL, "optimiser.epochs=1", "optimiser.lr_encoder=1e-2"]
    run = Run(method=load_method("paper", settings), fold=fold, seed=0)
    train_live([run], data, Records(tmp_path / "runs", data.store), lambda epochs: None)
    (folder,) = (tmp_path / "runs").glob("*/encoder")
    tuned = find_encoder(f"local-dir:{folder}")
    assert tuned.identity.weights_sha256 != files.identity.weights_sha256
    settings_of_fold = ExtractSettings(
        views=1, frames=4, precision="fp32", device="cpu", batch_frames=8, fold=fold
    )
    extract(videos, tmp_path / "s.zarr", tuned, settings_of_fold)
    store = open_store(tmp_path / "s.zarr")
    stored = torch.from_numpy(store.load_features()[:1, 0]).float()
    with torch.no_grad():
        zero = torch.zeros(1, 1, dtype=torch.int64)
        torch.testing.assert_close(data.features(zero, zero)[0], stored, atol=2e-3, rtol=2e-3)
    load_run(folder.parent, store, other_code=True)  # which refuses a store of another encoder
    plain = load_method("paper", SHAPE)
    check_runs([Run(method=plain, fold=fold, seed=0)], store)
    other = store.folds[1][0]
    with pytest.raises(RefusedError, match=rf"encoder trained on fold {fold} and would leak"):
        check_runs([Run(method=plain, fold=other, seed=0)], store)
    with pytest.raises(RefusedError, match=r"cached features cannot; use --no-cached"):
        check_runs([run], store)


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_an_encoder_without_texts_is_trained_end_to_end_and_saved(
    videos: VideoList, tmp_path: Path, kind: str
) -> None:
    files, ids = write_other(tmp_path, kind), tuple(own.id for own in videos.videos[:4])
    few = replace(videos, videos=videos.videos[:4], folds=(Fold("1", ids[::2], ids[1::2]),))
    data, fold = live(few, files, trained=True, frames=1), "1"
    settings = ["head.kind=mlp", "optimiser.lr_encoder=1e-2", "optimiser.batch=4"]
    method = load_method("paper", [*settings, "optimiser.augment=false", "optimiser.epochs=1"])
    records = Records(tmp_path / "runs", data.store, code_files=code_files(live=True))
    train_live([Run(method=method, fold=fold, seed=0)], data, records, lambda epochs: None)
    (folder,) = (tmp_path / "runs").glob("*/encoder")
    before, after = (load_file(path) for path in (files.weights_path, folder / "model.safetensors"))
    still = {name for name in after if torch.equal(before[name], after[name])}
    assert not still  # neither weights nor the statistics of batch normalisation
    tuned = find_encoder(files.name, str(folder))
    extract(few, tmp_path / "s.zarr", tuned, replace(SETTINGS, frames=1, fold=fold))
    store = open_store(tmp_path / "s.zarr")
    zero = torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        features = data.features(zero, zero)[0]
    stored = torch.from_numpy(store.load_features()[:1, 0]).float()
    torch.testing.assert_close(features, stored, atol=2e-3, rtol=2e-3)
    load_run(folder.parent, store)
    assert find_own_encoder(read_checkpoint(folder.parent)).identity == tuned.identity
    extract(few, tmp_path / "other.zarr", files, replace(SETTINGS, frames=1))
    with pytest.raises(RefusedError, match=f"with encoder {files.name} and --pretrained {folder}"):
        load_run(folder.parent, open_store(tmp_path / "other.zarr"))


def test_prepended_visual_prompt_needs_tokens_as_wide_as_features(
    videos: VideoList, files: EncoderFiles
) -> None:
    with pytest.raises(RefusedError, match=r"feeds 16 features to .* tokens of width 8"):
        train(live(videos, files), *STILL, "label.visual_prompt=prepend")
