"""Videos in which faces are not cropped -> one prediction per person."""

import csv
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.predict.people import HEAD
from pipeline.predict.predictor import Predictor
from pipeline.predict.sources import find_sources
from pipeline.predict.windows import Sliding
from pipeline.predict.written import OVERLAYS, write_overlay
from support.commands import tgdfer
from support.crowds import Walk, compose, scripts, wall
from support.sources import pictures, write_folder, write_video
from support.trained import Trained

pytestmark = pytest.mark.slow  # it renders and trains


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people; the smaller one comes after 15 frames."""
    walks = (Walk(330, 170, 130), Walk(40, 40, 100, first=15))
    cast = list(zip(scripts(2, frames_min=45), walks, strict=True))
    return write_video(tmp_path_factory.mktemp("crowd") / "two.mp4", compose(cast, 45).frames)


def pasted(videos: list[Path], here: Path) -> list[Path]:
    """The videos, small and off-centre in larger frames."""
    paths = []
    for number, video in enumerate(videos):
        images = sorted(video.iterdir(), key=lambda path: int(path.stem))
        frames = np.stack([wall(number)] * len(images))
        for frame, image in zip(frames, images, strict=True):
            frame[190:302, 350:462] = np.asarray(Image.open(image).convert("RGB"))
        paths.append(write_video(here / f"{number}.mp4", frames))
    return paths


def test_small_face_is_right_if_cropped_and_wrong_in_the_whole_frame(
    trained: Trained, ensemble: Predictor, tmp_path: Path
) -> None:
    (name, network), *_ = ensemble.networks.items()
    first = replace(ensemble, networks={name: network})
    true = [first.classes[k] for k in trained.records[0].predictions()[1]]
    paths = pasted(trained.tested(), tmp_path)
    crop, whole = (
        [video.label for video in first.predict(paths, faces=faces)] for faces in ("crop", "whole")
    )
    assert first.predict(paths[0])[0].faces == "crop"  # by itself
    # This video was chosen because it is so; of all seven, 4 are right if cropped, and 1 if not.
    chosen = true.index("surprise")
    assert crop[chosen] == "surprise" != whole[chosen]
    right = [sum(map(str.__eq__, map(str, labels), true)) for labels in (crop, whole)]
    assert right[0] >= 3
    assert right[1] <= 2


def test_videos_that_are_face_crops_are_predicted_as_they_are(
    trained: Trained, ensemble: Predictor
) -> None:
    videos = trained.tested()
    whole, auto = (ensemble.predict(videos, faces=faces) for faces in ("whole", "auto"))
    for one, other in zip(whole, auto, strict=True):
        assert one.windows == other.windows
        assert other.faces == "whole"
        assert other.flags == (*one.flags, "not cropped: a face fills the frames")


def test_each_person_is_a_row_for_the_time_when_they_are_there(
    ensemble: Predictor, crowd: Path, tmp_path: Path
) -> None:
    first, second = ensemble.predict(crowd)
    assert [first.name, second.name] == [f"{crowd}#1", f"{crowd}#2"]
    assert first.faces == second.faces == "crop"
    assert first.frames == 45
    assert 27 <= second.frames <= 30
    shown = [moment.frame for moment in second.windows[0].frames]
    assert 15 <= shown[0] <= 20
    assert shown[-1] >= 42
    assert second.windows[0].start == pytest.approx((45 - second.frames) / 25)
    settings = ensemble.settings(Sliding(0.8, 0.4), faces="crop")
    notes: list[str] = []
    ((_, rows),) = ensemble.stream(
        find_sources([crowd]), settings, on_frames=lambda done, total, note: notes.append(note)
    )
    assert notes[-1] == "16 searched for faces"  # every third, and the last
    _, (video, encoded) = rows
    assert video.windows[0].start == second.windows[0].start
    both = ensemble.pictures(rows)  # decoded and cropped again
    for again in both:
        assert again.shape[0] == len(shown)
        assert again.std() > 30  # neither the wall nor black
    write_overlay(tmp_path, 0, video, encoded)
    (path,) = (tmp_path / OVERLAYS).iterdir()
    assert path.name.endswith("-two.mp4-2.mp4")
    with av.open(str(path)) as overlay:
        assert len(list(overlay.decode(video=0))) == second.frames


def test_video_without_a_face_says_so(ensemble: Predictor, tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.mp4", pictures(9))
    square = write_folder(tmp_path / "square", pictures(9, width=48))
    for faces in ("auto", "crop"):
        (video,) = ensemble.predict(wide, faces=faces)
        assert video.status == "failed"
        assert video.reason == "no face found; --faces whole predicts whole frames"
    (video,) = ensemble.predict(square)
    assert "not cropped: no face found in square frames" in video.flags
    assert ensemble.predict(square, faces="crop")[0].status == "failed"


def test_command_shows_who_is_cropped(crowd: Path, tmp_path: Path) -> None:
    done = tgdfer("faces", crowd, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["person", "#1", "#2"]
    assert done.stderr.startswith(f"next: tgdfer predict {crowd} --run RUN --faces crop")
    rows = list(csv.DictReader((tmp_path / "out/faces.csv").open()))
    assert tuple(rows[0]) == HEAD
    own = [row for row in rows if row["person"] == "1"]
    assert [int(row["frame"]) for row in own] == list(range(45))
    found = [int(row["frame"]) for row in own if row["found"] == "1"]
    assert all(frame % 3 == 0 or frame == 44 for frame in found)
    row = {name: float(value) for name, value in own[20].items()}
    assert row["seconds"] == pytest.approx(20 / 25)
    middle = (row["x"] + row["width"] / 2, row["y"] + row["height"] / 2)
    assert np.hypot(middle[0] - 395, middle[1] - 235) < 30
    assert row["crop_x"] + row["crop_side"] / 2 == pytest.approx(middle[0], abs=0.05)
    sheet = Image.open(tmp_path / "out/faces.png")
    assert sheet.size[0] == 4 * 320
    write_video(tmp_path / "nobody.mp4", pictures(9))
    done = tgdfer("faces", "nobody.mp4", "--out", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, "no face found")
