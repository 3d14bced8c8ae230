"""One rendered face: what must be the same, what must differ, what must stay in the frame."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo.face import (
    EXPRESSION_UNITS,
    HAIR_STYLES,
    UNITS,
    Person,
    Scene,
    draw_occluder,
    draw_person,
    expression_units,
    render_face,
)

PLAIN = Scene()


def person(seed: int = 0) -> Person:
    return draw_person(np.random.default_rng(seed))


def unit_vector(**intensities: float) -> np.ndarray:
    units_U = np.zeros(len(UNITS))
    for name, value in intensities.items():
        units_U[UNITS.index(int(name.removeprefix("au")))] = value
    return units_U


def rows_that_differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.flatnonzero((first != second).any(axis=(1, 2)))


def test_prototypes_are_the_units_that_facs_gives_them() -> None:
    assert EXPRESSION_UNITS == {
        "happiness": (6, 12),
        "sadness": (1, 4, 15),
        "neutral": (),
        "anger": (4, 5, 7, 23),
        "surprise": (1, 2, 5, 26),
        "disgust": (9, 15, 16),
        "fear": (1, 2, 4, 5, 20, 26),
    }
    for name, units in EXPRESSION_UNITS.items():
        on = {UNITS[i] for i in np.flatnonzero(expression_units(name))}
        assert on == set(units)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(EXPRESSION_UNITS)), st.floats(-0.8, 0.8))
def test_the_same_arguments_give_the_same_bytes(seed: int, name: str, yaw: float) -> None:
    scene = Scene(yaw=yaw, light=0.3, noise=4.0, noise_seed=seed, blur_px=0.7)
    digests = set()
    for _ in range(2):
        frame = render_face(person(seed), expression_units(name), scene)
        assert frame.shape == (112, 112, 3)
        assert frame.dtype == np.uint8
        digests.add(hashlib.sha256(frame.tobytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_moves_the_face_more_the_stronger_it_is(unit: int) -> None:
    rest = render_face(person(), unit_vector(), PLAIN).astype(int)
    moved = [
        np.abs(render_face(person(), unit_vector(**{f"au{unit}": v}), PLAIN) - rest).sum()
        for v in (0.3, 1.0)
    ]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize(
    ("unit", "top", "bottom"),
    [(1, 10, 45), (2, 10, 45), (4, 20, 55), (12, 50, 90), (15, 66, 96), (23, 70, 90)],
)
def test_a_movement_changes_its_own_part_of_the_face_only(unit: int, top: int, bottom: int) -> None:
    rest = render_face(person(3), unit_vector(), PLAIN)
    rows = rows_that_differ(rest, render_face(person(3), unit_vector(**{f"au{unit}": 1.0}), PLAIN))
    assert rows.min() >= top
    assert rows.max() <= bottom


def test_expressions_of_one_person_differ_from_each_other_and_identities_from_each_other() -> None:
    frames = [
        render_face(person(seed), expression_units(name), PLAIN).tobytes()
        for seed in range(3)
        for name in EXPRESSION_UNITS
    ]
    assert len(set(frames)) == len(frames)


def mouth_corner_minus_middle(name: str) -> float:
    """Height of the mouth's dark line at its ends against its middle, in px (down is positive)."""
    identity = person(11)
    rest = render_face(identity, unit_vector(), PLAIN).astype(int)
    frame = render_face(identity, expression_units(name), PLAIN).astype(int)
    change = np.abs(frame - rest).sum(2)[66:100]
    centre = np.arange(66, 100)
    ends = change[:, 38:44].sum(1) + change[:, 68:74].sum(1)
    middle = change[:, 53:59].sum(1)
    return float((centre * ends).sum() / ends.sum() - (centre * middle).sum() / middle.sum())


def test_a_smile_lifts_the_mouth_corners_and_fear_does_not() -> None:
    assert mouth_corner_minus_middle("happiness") < mouth_corner_minus_middle("fear")


@pytest.mark.parametrize("seed", range(6))
def test_a_dropped_jaw_stays_inside_the_frame(seed: int) -> None:
    scene = Scene(scale=1.06, shift_y=0.02)
    closed = render_face(person(seed), unit_vector(), scene)
    dropped = render_face(person(seed), unit_vector(au26=1.0), scene)
    assert rows_that_differ(closed, dropped).max() < 111


def test_hair_lies_over_the_lines_of_the_forehead() -> None:
    assert "fringe" in HAIR_STYLES
    fringed = next(p for p in map(person, range(60)) if p.hair_style == "fringe")
    rest = render_face(fringed, unit_vector(), PLAIN)
    raised = render_face(fringed, unit_vector(au1=1.0, au2=1.0), PLAIN)
    hair = np.abs(rest.astype(int) - fringed.hair).max(2) == 0
    assert hair.sum() > 300
    assert np.array_equal(rest[hair], raised[hair])


def test_an_occluder_hides_a_part_and_leaves_a_part() -> None:
    rest = render_face(person(), unit_vector(), PLAIN)
    for seed in range(20):
        occluder = draw_occluder(np.random.default_rng(seed))
        hidden = render_face(person(), unit_vector(), Scene(occluder=occluder))
        share = (hidden != rest).any(2).mean()
        assert 0.01 < share < 0.6
