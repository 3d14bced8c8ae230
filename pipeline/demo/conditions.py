"""The scenes of a clean video -> the same scenes occluded, turned away, blurred or dark.

Person, movements, camera and noise stay the same, so that only the condition differs.

    frame        0 1 2 3 4 5 6 7
    hidden_30    o o o o o o o o     30 % of the face hidden in every frame
    passing_50   . . O O O O . .     60 % of the face hidden in half of the frames
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.face import SIZE_PX, Occluder, Person, Scene, draw_panel, face_mask

# In the order of increasing severity.
SEVERITIES: dict[str, tuple[int, ...]] = {
    "hidden": (15, 30, 45, 60),  # per cent of the visible face
    "passing": (25, 50, 75),  # per cent of the frames
    "yaw": (15, 30, 45, 60),  # degrees
    "blur": (1, 2, 4),  # standard deviation in pixels of a frame of 112 px
    "dark": (50, 25, 10),  # per cent of the brightness that is left
}
CLEAN = "clean"
# The names of the subsets: kind_severity.
CONDITIONS = (CLEAN, *(f"{kind}_{own}" for kind, each in SEVERITIES.items() for own in each))
PASSING_HIDES = 0.6  # of the visible face
# Five frames of 56 px are enough to fit an occluder to one per cent of the face.
FITTED_FRAMES, FITTED_PX, STEPS = 5, 56, 10
PANEL_MAX = 3.0  # half a side; hides the whole face wherever in it the middle is


def clean(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The scenes with the head frontal on average, in focus, and features clipped to the head."""
    turn = float(np.mean([scene.yaw for scene in scenes]))
    return tuple(replace(scene, yaw=scene.yaw - turn, blur_px=0.0, clip=True) for scene in scenes)


def impose(
    condition: str,
    person: Person,
    units_TU: NDArray[np.float64],
    scenes: Sequence[Scene],
    rng: np.random.Generator,
    size_px: int = SIZE_PX,
) -> tuple[Scene, ...]:
    """The scenes of a clean video under one of CONDITIONS.

    An ``rng`` in the same state gives all severities the same occluder, side and stretch of time.
    """
    panel, place, side = draw_panel(rng), rng.random(), float(rng.choice((-1, 1)))
    kind, _, text = condition.partition("_")
    severity = float(text or 0)
    if kind == "hidden":
        return _occlude(panel, severity / 100, person, units_TU, scenes)
    if kind == "passing":
        length = round(severity / 100 * len(scenes))
        start = round(place * (len(scenes) - length))
        some = slice(start, start + length)
        hidden = _occlude(panel, PASSING_HIDES, person, units_TU[some], scenes[some])
        return (*scenes[:start], *hidden, *scenes[start + length :])
    if kind == "yaw":
        return tuple(replace(own, yaw=own.yaw + side * np.radians(severity)) for own in scenes)
    if kind == "blur":
        return tuple(replace(scene, blur_px=severity * size_px / SIZE_PX) for scene in scenes)
    if kind == "dark":
        return tuple(_dim(scene, severity / 100) for scene in scenes)
    return tuple(scenes)


def _occlude(
    panel: Occluder,
    share: float,
    person: Person,
    units_TU: NDArray[np.float64],
    scenes: Sequence[Scene],
) -> tuple[Scene, ...]:
    """The scenes with the panel in the size that hides ``share`` of the face on average."""
    chosen = np.unique(np.linspace(0, len(scenes) - 1, FITTED_FRAMES).round().astype(int))
    low, high = 0.0, PANEL_MAX
    for _ in range(STEPS):
        panel = replace(panel, size=(low + high) / 2)
        shares = [
            _hidden_share(person, units_TU[t], replace(scenes[t], occluder=panel)) for t in chosen
        ]
        low, high = (low, panel.size) if np.mean(shares) > share else (panel.size, high)
    return tuple(replace(scene, occluder=panel) for scene in scenes)


def _hidden_share(person: Person, units_U: NDArray[np.float64], scene: Scene) -> float:
    """The share of the visible face that the scene's occluder hides."""
    bare = replace(scene, occluder=None)
    left, whole = (face_mask(person, units_U, own, FITTED_PX).sum() for own in (scene, bare))
    return float(1 - left / whole)


def _dim(scene: Scene, left: float) -> Scene:
    red, green, blue = scene.gain
    return replace(scene, gain=(left * red, left * green, left * blue))
