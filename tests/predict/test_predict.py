"""Videos and trained runs -> predictions: the same as in training, of an ensemble, of windows."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from PIL import Image

from cache.errors import RefusedError
from pipeline.config import load_method
from pipeline.evaluate.influence import Influence
from pipeline.predict.pictures import BAR, COLOURS, GAP, LINE, SIZE
from pipeline.predict.prediction import (
    VideoPrediction,
    best_window,
    disagreement,
    refuse_unmeasured,
    scaled,
)
from pipeline.predict.predictor import Predictor, load_predictor
from pipeline.predict.sources import find_sources
from pipeline.predict.windows import Sliding
from pipeline.predict.written import PredictionFile
from pipeline.video import isolated
from support.commands import ROOT, tgdfer
from support.records import forge
from support.sources import pictures, write_encoder, write_folder, write_video
from support.trained import Trained

pytestmark = pytest.mark.slow  # it renders and trains

# It is killed by one video, and another is gone when a second process wants to decode it.
FAULTY_DECODER = """
import os, av
sound = av.open
def opened(path, *arguments, **options):
    if "killer" in path:
        os.abort()
    if "leaving" in path:
        if os.path.exists(path + ".first") and open(path + ".first").read() != str(os.getpid()):
            os.remove(path)
        open(path + ".first", "w").write(str(os.getpid()))
    return sound(path, *arguments, **options)
av.open = opened
"""


def test_predictions_of_the_test_videos_are_those_that_the_run_stored(
    trained: Trained, ensemble: Predictor
) -> None:
    videos = ensemble.predict(trained.tested())
    assert len(videos) == 7
    for record in trained.records:
        _, _, predicted = record.predictions()
        temperature = record.run.method.label.temperature
        for n, video in enumerate(videos):
            (window,) = video.windows
            logits_K = np.array(window.logits[record.folder.name])
            assert logits_K.argmax() == predicted[n]
            stored_K = record.frame_logits()[n].mean(0)
            np.testing.assert_allclose(logits_K, stored_K, atol=2e-3)
    influence_T = np.array([moment.influence for moment in videos[0].windows[0].frames])
    label = ensemble.classes.index(str(videos[0].label))
    stored_T = np.mean([record.frame_logits()[0, :, label] for record in trained.records], axis=0)
    np.testing.assert_allclose(influence_T, temperature * stored_T, atol=1e-4)


def test_ensemble_is_the_mean_and_its_doubt_the_disagreement(
    trained: Trained, ensemble: Predictor
) -> None:
    (video,) = ensemble.predict(trained.tested()[0])
    shares = []
    for logits in video.windows[0].logits.values():
        powers = [math.exp(value - max(logits)) for value in logits]
        shares.append([power / sum(powers) for power in powers])
    mean = [sum(column) / 2 for column in zip(*shares, strict=True)]
    np.testing.assert_allclose(list(video.probabilities.values()), mean, rtol=1e-9)

    def entropy(p: list[float]) -> float:
        return -sum(share * math.log(share) for share in p if share > 0)

    doubt = (entropy(mean) - sum(map(entropy, shares)) / 2) / math.log(2)
    assert video.doubt == pytest.approx(doubt)
    (alone,) = load_predictor(trained.folders[:1], device="cpu").predict(trained.tested()[0])
    assert alone.doubt is None


@pytest.mark.parametrize("kind", get_args(Influence))
def test_influence_by_any_measure_is_the_mean_of_the_networks(
    kind: Influence, trained: Trained, ensemble: Predictor
) -> None:
    (video,) = ensemble.predict(trained.tested()[0], faces="whole", influence=kind)
    label, expected = ensemble.classes.index(str(video.label)), []
    for record in trained.records:
        tau = record.run.method.label.temperature
        logits_TK, attention_TK = (
            array[0].astype(np.float64) for array in (record.frame_logits(), record.attention())
        )
        own_T, others_TK = logits_TK[:, label], np.delete(logits_TK, label, 1)
        powers_TK = np.exp(logits_TK)
        by_kind = {
            "logit": tau * own_T,
            "margin": tau * (own_T - others_TK.max(1)),
            "probability": powers_TK[:, label] / powers_TK.sum(1),
            "attention": attention_TK[:, label],
            "attention_value": tau * attention_TK[:, label] * (own_T - own_T.mean()),
        }
        expected.append(by_kind[kind])
    found = [moment.influence for moment in video.windows[0].frames]
    np.testing.assert_allclose(np.array(found, np.float64), np.mean(expected, axis=0), atol=1e-3)


def test_influence_that_cannot_be_measured_is_refused(ensemble: Predictor) -> None:
    with pytest.raises(RefusedError, match="influence loudness: expected one of logit, margin"):
        refuse_unmeasured(ensemble.networks, "loudness")  # type: ignore[arg-type]
    (name, network), *_ = ensemble.networks.items()
    method = load_method("paper", ["label.visual_prompt=none"])
    without = replace(network, run=network.run.model_copy(update={"method": method}))
    with pytest.raises(RefusedError, match=f"network {name} has none; choose logit, margin"):
        refuse_unmeasured({name: without}, "attention")
    refuse_unmeasured({name: without}, "margin")


def test_doubt_is_nothing_if_all_agree_and_one_if_each_is_sure_of_another() -> None:
    sure_MNK = np.eye(3)[:, None]
    assert disagreement(sure_MNK) == pytest.approx(1)
    assert disagreement(sure_MNK[:1].repeat(3, 0)) == pytest.approx(0)
    unsure_MNK = np.full((5, 1, 3), 1 / 3)
    assert disagreement(unsure_MNK) == pytest.approx(0)


def test_window_of_a_long_video_is_predicted_as_if_it_were_a_video(
    ensemble: Predictor, tmp_path: Path
) -> None:
    frames = pictures(50)
    path = write_folder(tmp_path / "long", frames, ".png")
    part = write_folder(tmp_path / "part", frames[25:45], ".png")
    sources, settings = find_sources([path]), ensemble.settings(Sliding(0.8, 0.2), faces="whole")
    counted: list[int] = []
    ((_, ((video, _),)),) = ensemble.stream(
        sources, settings, on_frames=lambda done, *_: counted.append(done)
    )
    assert [window.start for window in video.windows] == [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    shown = {moment.frame for window in video.windows for moment in window.frames}
    assert counted[-1] == len(shown)  # each frame is encoded once
    (alone,) = ensemble.predict(part, faces="whole")
    assert video.windows[5].logits == alone.windows[0].logits
    means = np.mean([[*own.probabilities.values()] for own in video.windows], axis=0)
    np.testing.assert_allclose([*video.probabilities.values()], means)


def test_times_are_those_of_the_file(ensemble: Predictor, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", pictures(20))
    (video,) = ensemble.predict(path, faces="whole")
    assert (video.frames, video.flags) == (20, ())
    assert video.seconds == pytest.approx(20 / 25)
    for moment in video.windows[0].frames:
        assert moment.seconds == pytest.approx(moment.frame / 25)


def test_command_writes_tables_strips_and_timelines_and_a_line_for_what_fails(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = trained.tested()[0]
    shutil.copytree(good, tmp_path / "good")
    (tmp_path / "bad.mp4").write_bytes(b"<html>")
    write_video(tmp_path / "leaving.mp4", pictures(25, width=48))
    spoil_decoder(tmp_path, monkeypatch)
    for earlier in ("strips/0004-old.png", "overlays/0002-bad.mp4.mp4", "strips/mine.png"):
        (tmp_path / "out" / earlier).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / earlier).touch()
    runs = [word for folder in trained.folders for word in ("--run", folder)]
    words = ["predict", "good", "bad.mp4", "leaving.mp4", *runs, "--device", "cpu", "--out", "out"]
    words += ["--influence", "margin"]
    done = tgdfer(*words, "--window", "0.5", "--overlay", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "not a video: begins with b'<html>'" in done.stdout
    assert "times estimated; not cropped: a face fills the frames\n" in done.stdout
    assert "2 videos could not be predicted" in done.stdout
    content = PredictionFile.model_validate_json((tmp_path / "out/predictions.json").read_bytes())
    assert content.influence == "margin"
    video, failed, left = content.videos
    assert (failed.name, failed.status, failed.label) == ("bad.mp4", "failed", None)
    assert (left.name, left.status, left.windows) == ("leaving.mp4", "failed", ())
    assert left.reason.startswith("FileNotFoundError")
    rows = list(csv.DictReader((tmp_path / "out/predictions.csv").open()))
    assert [row["status"] for row in rows] == ["ok", "failed", "failed"]
    assert float(rows[0][f"p_{video.label}"]) == max(video.probabilities.values())
    timeline = list(csv.DictReader((tmp_path / "out/timelines/0001-good.csv").open()))
    assert [row["label"] for row in timeline] == [window.label for window in video.windows]
    assert Image.open(tmp_path / "out/timelines/0001-good.png").size == (1000, 400)
    check_strip(video, tmp_path / "out/strips/0001-good.png", good)
    with av.open(str(tmp_path / "out/overlays/0001-good.mp4")) as overlay:
        assert len(list(overlay.decode(video=0))) == video.frames
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/*/*"))
    pictured = ["overlays/0001-good.mp4", "strips/0001-good.png", "strips/mine.png"]
    assert found == [*pictured, "timelines/0001-good.csv", "timelines/0001-good.png"]
    assert not (tmp_path / "out/.tmp").exists()


def spoil_decoder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "faulty").mkdir()
    (here / "faulty/sitecustomize.py").write_text(FAULTY_DECODER)
    monkeypatch.setenv("PYTHONPATH", f"{here / 'faulty'}:{ROOT}")
    monkeypatch.setattr(isolated, "_servers", {})  # decoders are forked from a faulty one


def check_strip(video: VideoPrediction, path: Path, source: Path) -> None:
    """The pictures are those of the frames, and purple and yellow show the extremes."""
    strip = np.asarray(Image.open(path).convert("RGB"))
    window = best_window(video)
    shares = scaled(window)
    for t, (moment, share) in enumerate(zip(window.frames, shares, strict=True)):
        left, top = t * (SIZE + GAP), 2 * LINE
        colour = strip[top + SIZE + BAR // 2, left + SIZE // 2]
        assert colour.tolist() == list(COLOURS(share, bytes=True)[:3])
        original = Image.open(sorted(source.iterdir())[moment.frame]).convert("RGB")
        expected = np.asarray(original.resize((SIZE, SIZE)), float)
        shown = strip[top : top + SIZE, left : left + SIZE]
        assert np.abs(shown - expected).mean() < 12
    assert COLOURS(0.0, bytes=True)[:3] == (68, 1, 84)  # purple
    assert COLOURS(1.0, bytes=True)[:3] == (253, 231, 36)  # yellow
    assert {0.0, 1.0} <= set(shares.tolist())


def test_video_that_kills_its_decoder_is_one_line_and_the_others_are_predicted(
    ensemble: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_decoder(tmp_path, monkeypatch)
    paths = [
        write_video(tmp_path / f"{name}.mp4", pictures(20)) for name in ("a", "killer", "b", "c")
    ]
    videos = ensemble.predict(paths, faces="whole")
    assert [video.status for video in videos] == ["ok", "failed", "ok", "ok"]
    assert videos[1].reason == "kills its decoder (SIGABRT)"
    assert videos[0].windows == videos[2].windows


def test_another_encoder_is_refused(trained: Trained, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "other", dim=64)
    with pytest.raises(RefusedError, match=r"(?s)trained with another encoder.*weights_sha256"):
        load_predictor(trained.folders, encoder)
    with pytest.raises(RefusedError, match="given twice"):
        load_predictor([trained.folders[0]] * 2)


def test_run_of_an_encoder_in_a_folder_asks_where_it_is(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / trained.folders[0].name
    shutil.copytree(trained.folders[0], copy)
    about = json.loads((copy / "run.json").read_text())
    about["store"]["encoder"]["name"] = "local-dir:mine"
    forge(copy, "run.json", json.dumps(about).encode())
    with pytest.raises(RefusedError, match="say where it is with --encoder local-dir:FOLDER"):
        load_predictor([copy])
    assert load_predictor([copy], encoder="mini", device="cpu").classes == trained.store.classes
