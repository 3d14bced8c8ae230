"""The set robust: every condition measured on pixels, and that nothing else differs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.store import open_store
from pipeline.demo.conditions import CONDITIONS, SEVERITIES
from pipeline.demo.face import DEPTH, UNITS, Person, Scene, draw_person, face_mask, render_face
from pipeline.demo.faces import (
    FacesSpec,
    PlannedVideo,
    Script,
    plan_folds,
    plan_videos,
    preview_faces,
    write_script,
)
from support.commands import tgdfer

SPEC = FacesSpec(videos=14, setting="robust", seed=5)
PLAN = plan_videos(SPEC)
BASES = (0, 3, 8)
QUIET = 12  # a video with little noise, which can be measured in the dark


def version(base: int, condition: str) -> PlannedVideo:
    return PLAN[base * len(CONDITIONS) + CONDITIONS.index(condition)]


def script(base: int, condition: str) -> Script:
    return write_script(SPEC, version(base, condition))


def frames(own: Script, noise: bool = False) -> np.ndarray:
    """Every fourth frame in float, without noise and slanting light unless ``noise``."""
    scenes = own.scenes if noise else [replace(s, noise=0.0, light=0.0) for s in own.scenes]
    drawn = zip(own.units_TU[::4], scenes[::4], strict=True)
    return np.stack([render_face(own.person, u, scene) for u, scene in drawn]).astype(float)


def hidden_shares(base: int, condition: str) -> np.ndarray:
    """Of every fourth frame, the share of the face that is painted in the colour of the panel."""
    clean, own = script(base, "clean"), script(base, condition)
    (occluder,) = {scene.occluder for scene in own.scenes} - {None}
    assert occluder is not None
    colour = np.clip(np.multiply(occluder.colour, own.scenes[0].gain), 0, 255)
    before, after = frames(clean), frames(own)
    # A pixel at the edge of the panel is a mixture of its colour and the one before.
    towards = colour - before
    covered_THW = ((after - before) * towards).sum(3) / np.maximum((towards**2).sum(3), 1)
    seen = zip(clean.units_TU[::4], clean.scenes[::4], strict=True)
    face_THW = np.stack([face_mask(clean.person, u, scene) for u, scene in seen])
    shares: np.ndarray = (covered_THW * face_THW).sum((1, 2)) / face_THW.sum((1, 2))
    return shares


def test_conditions_are_named_by_kind_and_severity() -> None:
    assert (
        *("clean", "hidden_15", "hidden_30", "hidden_45", "hidden_60"),
        *("passing_25", "passing_50", "passing_75", "yaw_15", "yaw_30", "yaw_45", "yaw_60"),
        *("blur_1", "blur_2", "blur_4", "dark_50", "dark_25", "dark_10"),
    ) == CONDITIONS


def test_mask_of_the_face_covers_its_features_and_neither_hair_nor_background() -> None:
    drawn = draw_person(np.random.default_rng(11))
    green, blue, red, white = (0, 255, 0), (0, 0, 255), (255, 0, 0), (255, 255, 255)
    person = replace(
        drawn, lip=green, hair=blue, background=red, iris=white, clothes=red, hair_style="fringe"
    )
    for yaw in (0.0, 0.5):
        scene = Scene(yaw=yaw, clip=True)
        frame = render_face(person, np.zeros(len(UNITS)), scene)
        mask_HW = face_mask(person, np.zeros(len(UNITS)), scene)
        assert (mask_HW[(frame == green).all(2)] == 1).all()
        for colour in (blue, red):
            assert (mask_HW[(frame == colour).all(2)] == 0).all()
            assert (frame == colour).all(2).sum() > 500
        skin = (frame == person.skin).all(2)
        assert mask_HW[skin].mean() > 0.95
        assert skin.sum() > 500


@pytest.mark.parametrize("severity", SEVERITIES["hidden"])
def test_occluder_hides_its_share_of_the_visible_face(severity: int) -> None:
    for base in BASES:
        shares = 100 * hidden_shares(base, f"hidden_{severity}")
        assert abs(shares.mean() - severity) < 2
        assert shares.min() > 0


@pytest.mark.parametrize("severity", SEVERITIES["passing"])
def test_passing_occluder_hides_sixty_per_cent_in_one_stretch_of_frames(severity: int) -> None:
    for base in BASES:
        scenes = script(base, f"passing_{severity}").scenes
        occluded = np.array([scene.occluder is not None for scene in scenes])
        assert occluded.sum() == round(severity / 100 * len(scenes))
        assert np.ptp(np.flatnonzero(occluded)) == occluded.sum() - 1
        shares = 100 * hidden_shares(base, f"passing_{severity}")
        np.testing.assert_array_equal(shares > 0, occluded[::4])
        assert abs(shares[occluded[::4]].mean() - 60) < 2


def mouth_off_centre(person: Person, scene: Scene) -> float:
    """Where the middle of the mouth is seen, in half head heights to the right of the head's."""
    lipstick = replace(person, lip=(255, 0, 255), mouth_width=0.08)
    scene = replace(scene, pitch=0.0, roll=0.0, noise=0.0, light=0.0, gain=(1.0, 1.0, 1.0))
    frame = render_face(lipstick, np.zeros(len(UNITS)), scene).astype(int)
    pink = np.minimum(frame[..., 0], frame[..., 2]) - frame[..., 1]
    x = np.nonzero(pink > 150)[1].mean() + 0.5
    return float((x / 112 - 0.5 - scene.shift_x) / (0.39 * scene.scale))


@pytest.mark.parametrize("severity", SEVERITIES["yaw"])
def test_head_is_turned_by_its_degrees_to_one_side(severity: int) -> None:
    sides = set()
    for base in range(0, SPEC.videos, 2):
        clean, own = script(base, "clean"), script(base, f"yaw_{severity}")
        person, drift_T = own.person, np.array([scene.yaw for scene in clean.scenes])
        assert np.abs(drift_T).max() < 0.24
        side = np.sign(own.scenes[0].yaw)
        for t in (0, len(drift_T) // 2):
            # On a turned ellipsoid, at the depth of the lips.
            depth = DEPTH * np.sqrt(1 - person.mouth_y**2) + 0.06
            expected = depth * np.sin(drift_T[t] + side * np.radians(severity))
            assert mouth_off_centre(person, own.scenes[t]) == pytest.approx(expected, abs=0.04)
        sides.add(side)
    assert sides == {-1, 1}


def test_clean_head_is_frontal_on_average_and_in_focus() -> None:
    for base in BASES:
        scenes = script(base, "clean").scenes
        assert np.mean([scene.yaw for scene in scenes]) == pytest.approx(0, abs=1e-12)
        assert {scene.blur_px for scene in scenes} == {0.0}
        assert {scene.occluder for scene in scenes} == {None}


def blurred(frame_HWC: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian filter, the slow way; the edge pixels are repeated."""
    reach = int(4 * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padding = [(reach, reach) if own == axis else (0, 0) for own in range(3)]
        padded = np.pad(frame_HWC, padding, mode="edge")
        size = frame_HWC.shape[axis]
        parts = [w * padded.take(range(k, k + size), axis) for k, w in enumerate(weights)]
        frame_HWC = np.sum(parts, axis=0)
    return frame_HWC


@pytest.mark.parametrize("severity", SEVERITIES["blur"])
def test_blur_is_gaussian_of_its_standard_deviation(severity: int) -> None:
    clean, own = frames(script(3, "clean"))[0], frames(script(3, f"blur_{severity}"))[0]
    error = {
        sigma: np.abs(blurred(clean, sigma * severity) - own).mean() for sigma in (0.8, 1, 1.25)
    }
    assert error[1] < 1  # grey levels
    assert error[1] < min(error[0.8], error[1.25])


@pytest.mark.parametrize("severity", SEVERITIES["dark"])
def test_dark_pictures_have_their_share_of_the_brightness_and_all_of_the_noise(
    severity: int,
) -> None:
    clean, own = (script(QUIET, name) for name in ("clean", f"dark_{severity}"))
    bright, dark = frames(clean), frames(own)
    unclipped = bright < 250
    ratio = dark[unclipped].mean() / bright[unclipped].mean()
    assert ratio == pytest.approx(severity / 100, abs=0.01)
    still = frames(replace(own, scenes=tuple(replace(s, noise=0.0) for s in own.scenes)), True)
    sigma = clean.scenes[0].noise
    grain = (frames(own, noise=True) - still)[(still > 3 * sigma).all(3)]  # black clips nothing
    assert len(grain) > 1000
    assert grain.std() == pytest.approx(sigma, rel=0.15)


def test_only_the_condition_differs_between_versions_of_a_video() -> None:
    changed = {
        **{"hidden": "occluder", "passing": "occluder"},
        **{"yaw": "yaw", "blur": "blur_px", "dark": "gain"},
    }
    for base in BASES[:2]:
        clean = script(base, "clean")
        for condition in CONDITIONS[1:]:
            video, own = version(base, condition), script(base, condition)
            same = (video.label, video.fold, video.subject)
            first = version(base, "clean")
            assert same == (first.label, first.fold, first.subject)
            assert own.person == clean.person
            np.testing.assert_array_equal(own.units_TU, clean.units_TU)
            np.testing.assert_array_equal(own.labels_T, clean.labels_T)
            np.testing.assert_array_equal(own.intensities_T, clean.intensities_T)
            field = changed[condition.split("_")[0]]
            for scene, before in zip(own.scenes, clean.scenes, strict=True):
                assert replace(scene, **{field: getattr(before, field)}) == before
            assert own.scenes != clean.scenes


def test_features_end_at_the_head_however_far_it_is_turned() -> None:
    red = (255, 0, 0)
    for seed in range(6):
        person = draw_person(np.random.default_rng(seed))
        person = replace(person, background=red, hair_style="bald", glasses="round")
        for yaw in (0.8, 1.05, -1.05):
            own = Scene(yaw=yaw, clip=True)
            plain_glasses = render_face(person, np.zeros(len(UNITS)), own)
            without = render_face(replace(person, glasses="none"), np.zeros(len(UNITS)), own)
            mask_HW = face_mask(person, np.zeros(len(UNITS)), own)
            assert (plain_glasses == without)[mask_HW == 0].all()
            assert (plain_glasses != without).any(2).sum() > 20
        stuck_out = render_face(person, np.zeros(len(UNITS)), Scene(yaw=1.05))
        assert (stuck_out != red)[mask_HW == 0].any()


def test_only_clean_videos_are_trained_on_and_all_versions_are_tested() -> None:
    spec = FacesSpec(videos=70, setting="robust")
    plan = {video.id: video for video in plan_videos(spec)}
    assert len(plan) == 70 * len(CONDITIONS)
    folds = plan_folds(spec, list(plan.values()))
    assert sorted(video_id for fold in folds for video_id in fold.test) == sorted(plan)
    for fold in folds:
        train, test = ([plan[i] for i in ids] for ids in (fold.train, fold.test))
        assert {video.subsets for video in train} == {("clean",)}
        assert len(train) + len(test) / len(CONDITIONS) == 70
        assert not {video.subject for video in train} & {video.subject for video in test}
        for condition in CONDITIONS:
            labels = [video.label for video in test if condition in video.subsets]
            assert labels == [video.label for video in test if "clean" in video.subsets]
            assert len(labels) == 14


@pytest.mark.slow
def test_command_extracts_all_versions_of_the_first_videos(tmp_path: Path) -> None:
    limit = str(len(CONDITIONS) + 1)
    done = tgdfer(
        *("extract", "--dataset", SPEC.name, "--views", "1", "--limit", limit, "--root", "faces"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / f"data/{SPEC.name}-mini-first{limit}.zarr")
    names = {name: np.flatnonzero(member).tolist() for name, member in store.subsets.items()}
    assert names == {c: [n] + [len(CONDITIONS)] * (n == 0) for n, c in enumerate(CONDITIONS)}
    expected = preview_faces(tmp_path / "faces", SPEC, limit=int(limit)).folds
    assert [(name, len(train), len(test)) for name, train, test in store.folds] == [
        (fold.name, len(fold.train), len(fold.test)) for fold in expected
    ]
    truth = store.frame_truth()
    assert truth is not None
    np.testing.assert_array_equal(truth[0][0], truth[0][len(CONDITIONS) - 1])
    features_ND = store.load_features([0])[:, 0].mean(1).astype(float)
    distances = np.linalg.norm(features_ND - features_ND[0], axis=1)
    far = {condition: float(distances[n]) for n, condition in enumerate(CONDITIONS)}
    for first, last in (("hidden_15", "hidden_60"), ("yaw_15", "yaw_60"), ("blur_1", "blur_4")):
        assert 0 < far[first] < far[last]
