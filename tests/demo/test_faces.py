"""The embedded set: what is written, that it is the same everywhere, and that it reads back."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from PIL import Image

from cache.errors import RefusedError
from cache.store import open_store
from pipeline.datasets.dfew import CLASSES
from pipeline.datasets.texts import class_texts
from pipeline.demo.face import UNITS, render_face
from pipeline.demo.faces import (
    FOLDS,
    NEUTRAL,
    FacesSpec,
    draw_order,
    ensure_faces,
    faces_folder,
    named_spec,
    plan_videos,
    read_faces,
    render_video,
    write_faces,
    write_script,
)
from support.commands import environment, tgdfer

SMALL = FacesSpec(videos=35, seed=5)
TINY = FacesSpec(videos=14, seed=5)


@pytest.fixture(scope="module")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces") / "set"
    write_faces(root, SMALL, workers=2)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_default_plan_has_dfews_imbalance_and_at_least_twenty_of_disgust() -> None:
    plan = plan_videos(FacesSpec())
    counts = np.bincount([video.label for video in plan])
    assert counts.tolist() == [146, 113, 149, 130, 88, 20, 54]
    assert len({video.subject for video in plan}) == 100


@pytest.mark.parametrize("videos", [35, 140, 700])
def test_every_class_is_in_every_test_fold_and_no_subject_is_in_two(videos: int) -> None:
    plan = plan_videos(FacesSpec(videos=videos))
    for fold in range(FOLDS):
        inside = [video for video in plan if video.fold == fold]
        assert {video.label for video in inside} == set(range(len(CLASSES)))
        subjects = {video.subject for video in inside}
        assert not subjects & {video.subject for video in plan if video.fold != fold}


def test_lengths_are_those_of_short_dfew_videos() -> None:
    spec = FacesSpec()
    lengths = [len(write_script(spec, video).labels_T) for video in plan_videos(spec)]
    assert min(lengths) >= 11
    assert max(lengths) <= 60
    assert 27 < np.mean(lengths) < 33


@pytest.mark.parametrize(("setting", "share"), [("easy", 0.4), ("mid", 0.7)])
def test_another_expression_never_comes_near_the_videos_own_peak(
    setting: Literal["easy", "mid"], share: float
) -> None:
    spec = FacesSpec(setting=setting)
    for video in plan_videos(spec)[:100]:
        script = write_script(spec, video)
        own_T = script.labels_T == video.label
        if video.label == NEUTRAL:
            assert script.intensities_T.max() <= share
        else:
            peak = script.intensities_T[own_T].max()
            assert peak <= 1.0
            assert script.intensities_T[~own_T].max(initial=0) <= share * peak / 0.9


def test_every_video_shows_its_label_and_most_show_something_else_too() -> None:
    spec = FacesSpec()
    shares = []
    for video in plan_videos(spec)[:200]:
        labels_T = write_script(spec, video).labels_T
        shares.append(float((labels_T == video.label).mean()))
    assert min(shares) > 0
    assert 0.3 < np.mean(shares) < 0.7


@pytest.mark.slow
def test_the_worker_count_changes_no_byte_of_any_file(tmp_path: Path) -> None:
    write_faces(tmp_path / "one", TINY, workers=1)
    write_faces(tmp_path / "two", TINY, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_seed_gives_other_pixels() -> None:
    other = FacesSpec(videos=14, seed=6)
    first = render_video(TINY, plan_videos(TINY)[0])
    assert not np.array_equal(first[0], render_video(other, plan_videos(other)[0])[0])


def test_the_set_reads_back_as_a_dfew_tree_with_the_truth_of_every_frame(small_root: Path) -> None:
    videos = read_faces(small_root)
    plan = plan_videos(SMALL)
    assert videos.name == "faces-seed5-videos35"
    assert videos.source == "Clip/clip_224x224"
    assert [video.id for video in videos.videos] == [video.id for video in plan]
    for video, planned in zip(videos.videos, plan, strict=True):
        script = write_script(SMALL, planned)
        assert video.label == planned.label
        assert video.subject == f"s{planned.subject:03d}"
        assert video.frame_labels is not None
        assert video.frame_intensities is not None
        np.testing.assert_array_equal(video.frame_labels, script.labels_T)
        np.testing.assert_allclose(video.frame_intensities, script.intensities_T, atol=1e-4)
        assert len(list(video.path.iterdir())) == len(script.labels_T)
    for name, ids in videos.subsets.items():
        assert ids == {video.id for video in plan if name in video.subsets}
    assert [len(fold.test) for fold in videos.folds] == [7] * 5


@pytest.mark.parametrize("source", ["original", "clip_224x224"])
def test_frames_survive_compression_in_both_forms(small_root: Path, source: str) -> None:
    video = read_faces(small_root, source).videos[3]
    drawn = render_video(SMALL, plan_videos(SMALL)[3]).astype(int)
    if source == "original":
        with av.open(str(video.path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    else:
        frames = [np.asarray(Image.open(path)) for path in sorted(video.path.iterdir())]
    assert len(frames) == len(drawn)
    assert np.abs(np.stack(frames) - drawn).mean() < 4  # grey levels


@pytest.mark.slow
def test_what_is_there_is_left_alone_and_what_is_missing_is_rendered(tmp_path: Path) -> None:
    root = tmp_path / "set"
    with pytest.raises(RefusedError, match="no face set here"):
        read_faces(root)
    write_faces(root, TINY, workers=1)
    before = digests(root)
    (root / "Clip/original/00003.mp4").unlink()
    kept = root / "Clip/original/00001.mp4"
    stamp = kept.stat().st_mtime_ns
    counts: list[tuple[int, int]] = []
    ensure_faces(root, TINY, 1, lambda done, total: counts.append((done, total)))
    assert counts == [(0, 1), (1, 1)]
    assert digests(root) == before
    assert kept.stat().st_mtime_ns == stamp
    write_faces(root, TINY, on_video=lambda done, total: pytest.fail("nothing was left to do"))


@pytest.mark.slow
def test_only_the_first_videos_are_rendered_where_only_they_are_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "set"
    few = ensure_faces(root, TINY, workers=1, limit=3)
    assert [video.id for video in few.videos] == ["00001", "00002", "00003"]
    assert sorted(path.stem for path in (root / "Clip/original").iterdir()) == [
        video.id for video in few.videos
    ]
    with pytest.raises(RefusedError, match="11 of 14 listed videos have no frames"):
        read_faces(root)
    whole = ensure_faces(root, TINY, workers=1)
    assert whole.first(3) == few


WRITE = """
import sys
from pathlib import Path
from pipeline.demo.faces import FacesSpec, write_faces
write_faces(Path(sys.argv[1]), FacesSpec(videos=14, seed=5), workers=1)
"""


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SMALL, "e566c49dead86a4a"),
        (FacesSpec(videos=35, setting="mid", seed=3), "cbce3ba7d00d417b"),
        (FacesSpec(videos=42, setting="long"), "c84ac53f46f096cf"),
    ],
)
def test_a_set_is_the_same_for_ever(tmp_path: Path, spec: FacesSpec, expected: str) -> None:
    plan = plan_videos(spec)
    found = hashlib.sha256()
    for video in plan[:4]:
        script = write_script(spec, video)
        for units_U, scene in list(zip(script.units_TU, script.scenes, strict=True))[::20]:
            found.update(render_face(script.person, units_U, scene).tobytes())
    write_faces(tmp_path, spec, limit=0)
    for path in sorted((tmp_path / "EmoLabel_DataSplit").rglob("*.*")):
        found.update(path.read_bytes())
    assert found.hexdigest()[:16] == expected, "raise FORMAT, which renders all sets anew"


def test_processes_that_render_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "both")]
    writers = [subprocess.Popen(command, env=environment()) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    write_faces(tmp_path / "one", TINY, workers=1)
    assert digests(tmp_path / "both") == digests(tmp_path / "one")


def test_set_is_kept_in_the_users_cache_folder_or_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"faces-{SMALL.digest()[:12]}"
    monkeypatch.delenv("TGDFER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert faces_folder(SMALL) == tmp_path / "xdg/tgdfer" / name
    monkeypatch.setenv("TGDFER_CACHE", str(tmp_path / "mine"))
    assert faces_folder(SMALL) == tmp_path / "mine" / name
    assert faces_folder() != faces_folder(SMALL)


def test_a_root_of_another_specification_is_refused_with_both_named(small_root: Path) -> None:
    with pytest.raises(RefusedError, match=r"'seed': 5.*'seed': 6"):
        write_faces(small_root, FacesSpec(videos=35, seed=6))


def test_a_root_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(RefusedError, match="holds other files"):
        write_faces(tmp_path, TINY)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("faces.json", "{", "faces.json is not valid JSON"),
        ("faces.json", "[" * 9999, "faces.json is not valid JSON: it is nested too deeply"),
        ("faces.json", "[]", "faces.json holds a list, expected a JSON object"),
        ("faces.json", "{}", "holds the face set None"),
        ("test(single-labeled)/set_1.csv", "1,1\n", r"set_1.csv was changed; delete .*start again"),
        ("truth.json", "{}", "truth.json was changed"),
        ("truth.json", None, "truth.json: cannot be read"),
        ("frames.csv", None, "frames.csv is missing; delete"),
    ],
)
def test_changed_lists_are_refused_and_nothing_is_rendered(
    small_root: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    lists = tmp_path / "EmoLabel_DataSplit"
    shutil.copytree(small_root / lists.name, lists)
    (lists / name).unlink()
    if content is not None:
        (lists / name).write_text(content)
    with pytest.raises(RefusedError, match=message):
        write_faces(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [lists.name]


def test_the_marker_holds_nothing_of_this_machine(small_root: Path) -> None:
    marker = json.loads((small_root / "EmoLabel_DataSplit/faces.json").read_text())
    assert marker["digest"] == SMALL.digest()
    for name in ("faces.json", "truth.json", "frames.csv"):
        text = (small_root / "EmoLabel_DataSplit" / name).read_text()
        assert str(small_root) not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"videos": 13}, "13 videos"),
        ({"setting": "hard"}, "expected 'easy', 'mid', 'long', 'robust' or 'people'"),
        ({"size_px": 111}, "even number"),
    ],
)
def test_a_specification_that_cannot_be_written_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        FacesSpec(**fields)


def test_names_of_sets_say_what_differs_from_the_embedded_one() -> None:
    specs = [FacesSpec(), FacesSpec(setting="mid"), FacesSpec(seed=7), SMALL]
    specs += [FacesSpec(videos=70, setting="mid", seed=3), FacesSpec(setting="robust")]
    specs += [FacesSpec(videos=112, setting="people", seed=2)]
    names = [spec.name for spec in specs]
    assert names == [
        "faces",
        "faces-mid",
        "faces-seed7",
        "faces-seed5-videos35",
        "faces-mid-seed3-videos70",
        "faces-robust",
        "faces-people-seed2-videos112",
    ]
    assert [named_spec(name) for name in names] == specs


@pytest.mark.parametrize(
    "name",
    [
        *("face", "faces-", "faces-hard", "faces-easy", "faces-seed0", "faces-seed07"),
        *("faces-people-videos15", "faces-robust-hidden", "faces-people-videos702"),
        *("faces-seed-1", "faces-videos700", "faces-videos3", "faces-seed7-mid", "faces-seed7\n"),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(RefusedError, match="faces"):
        named_spec(name)


def test_command_renders_and_extracts_a_named_set(tmp_path: Path) -> None:
    done = tgdfer(
        *("extract", "--dataset", "faces-mid-seed5-videos14", "--views", "1", "--limit", "7"),
        *("--root", "faces"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / "data/faces-mid-seed5-videos14-mini-first7.zarr")
    assert (store.name, len(store.ids)) == ("faces-mid-seed5-videos14", 7)
    again = tgdfer("store", "verify", "--canary", "1", store.path, "--root", "faces", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    wrong = tgdfer("extract", "--dataset", "faces-hard", cwd=tmp_path)
    assert (wrong.returncode, "setting 'hard'" in wrong.stderr) == (2, True), wrong.stderr


LONG = FacesSpec(videos=42, setting="long", seed=5)


def test_label_of_a_long_video_is_the_order_of_its_two_expressions() -> None:
    plan = plan_videos(LONG)
    assert np.bincount([video.label for video in plan]).tolist() == [7] * 6
    assert LONG.classes[0] == "happiness-anger"
    for video in plan:
        script = write_script(LONG, video)
        frames = len(script.scenes)
        assert 128 <= frames <= 192
        assert set(script.labels_T) == {-1}
        # Action units 12 and 26 belong to happiness and to surprise alone of the three.
        shown = {"happiness": script.units_TU[:, UNITS.index(12)]}
        shown["surprise"] = script.units_TU[:, UNITS.index(26)]
        first, second = LONG.classes[video.label].split("-")
        peaks = {name: int(units_T.argmax()) / frames for name, units_T in shown.items()}
        for name, low, high in ((first, 0, 0.5), (second, 0.5, 1)):
            if name in peaks:
                assert low < peaks[name] < high


def test_long_video_backwards_is_as_likely_for_the_opposite_order() -> None:
    rng = np.random.default_rng(0)
    one = LONG.classes.index("happiness-surprise")
    other = LONG.classes.index("surprise-happiness")
    resampled: dict[int, list[np.ndarray]] = {one: [], other: []}
    for label in resampled:
        for _ in range(1500):
            course_TK = draw_order(rng, label)
            at = np.linspace(0, len(course_TK) - 1, 32)
            resampled[label].append(course_TK[np.round(at).astype(int)])
    forward, backward = np.array(resampled[one]), np.array(resampled[other])[:, ::-1]
    scale = forward.std(0).max() / np.sqrt(1500)
    assert np.abs(forward.mean(0) - backward.mean(0)).max() < 6 * scale
    assert np.abs(forward.std(0) - backward.std(0)).max() < 0.05
    assert np.abs(forward.mean(0) - backward[:, ::-1].mean(0)).max() > 0.3


def test_long_set_is_extracted_with_its_own_classes(tmp_path: Path) -> None:
    done = tgdfer(
        *("extract", "--dataset", "faces-long-seed5-videos42", "--views", "1", "--limit", "2"),
        *("--frames", "128", "--root", "faces"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / "data/faces-long-seed5-videos42-mini-first2.zarr")
    assert (store.frames, store.classes) == (128, LONG.classes)
    assert len(class_texts(store.classes).of("class")) == 6
