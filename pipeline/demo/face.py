"""Person, action units, scene -> one rendered face frame."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE_PX = 112
DEPTH = 0.62  # of the head, from its outline to its front, in half head heights
SUPERSAMPLING = 3  # drawn at 336 px, averaged 3 x 3 down to 112 px

# Facial Action Coding System numbers, in the order of every units_U array; 45 is a blink.
UNITS = (1, 2, 4, 5, 6, 7, 9, 12, 15, 16, 20, 23, 26, 45)

# Emotional FACS, as prototypes that each video varies.
EXPRESSION_UNITS: dict[str, tuple[int, ...]] = {
    "happiness": (6, 12),
    "sadness": (1, 4, 15),
    "neutral": (),
    "anger": (4, 5, 7, 23),
    "surprise": (1, 2, 5, 26),
    "disgust": (9, 15, 16),
    "fear": (1, 2, 4, 5, 20, 26),
}
# In fear the jaw drops less and the brows rise less than in surprise; 4 and 20 set it apart.
PROTOTYPE_STRENGTH = {("fear", 26): 0.5, ("fear", 1): 0.9, ("fear", 2): 0.5, ("fear", 4): 0.6}

Colour = tuple[int, int, int]
Points = NDArray[np.float64]
HAIR_STYLES = ("short", "parted", "fringe", "long", "bald")
OCCLUDERS = ("hand", "mask", "dark_glasses", "bar")


@dataclass(frozen=True)
class Person:
    """What stays the same in every frame of a person; lengths in half head heights."""

    width: float
    jaw: float
    chin: float
    eye_gap: float
    eye_size: float
    eye_y: float
    brow_y: float
    brow_width: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    mouth_bias: float
    lip_upper: float
    lip_lower: float
    hairline: float
    age: float
    stubble: float
    skin: Colour
    hair: Colour
    iris: Colour
    lip: Colour
    clothes: Colour
    background: Colour
    hair_style: str
    glasses: str


@dataclass(frozen=True)
class Occluder:
    """A thing in front of the face; place and size in half head heights, angle in radians."""

    kind: str
    x: float
    y: float
    size: float
    angle: float
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """What changes from frame to frame besides the face's muscles; angles in radians.

    ``shift_x`` and ``shift_y`` are fractions of the frame; ``light`` is the contrast between the
    lit and the dark side; ``noise`` is a standard deviation in grey levels. With ``clip``, features
    end at the outline of the head; without it, some stick out of a head that is turned far.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    light: float = 0.0
    light_angle: float = 0.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur_px: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0
    occluder: Occluder | None = None
    clip: bool = False


def render_face(
    person: Person, units_U: NDArray[np.floating], scene: Scene, size_px: int = SIZE_PX
) -> NDArray[np.uint8]:
    """Draw one frame: uint8 RGB [size_px, size_px, 3].

    ``units_U`` holds the intensity in [0, 1] of each of UNITS. A pure function: the same
    arguments give the same bytes.
    """
    au = {unit: float(value) for unit, value in zip(UNITS, units_U, strict=True)}
    drawing = _Drawing(person, scene, size_px)
    _draw_behind(drawing, person)
    outline_N2 = _draw_outline(drawing, person, au)
    with drawing.on_head():
        _draw_cheeks(drawing, person, au, outline_N2)
        _draw_nose(drawing, person, au)
        _draw_folds(drawing, person, au)
        _draw_mouth(drawing, person, au)
        for side in (-1, 1):
            _draw_eye(drawing, person, au, side)
        for side in (-1, 1):
            _draw_brow(drawing, person, au, side)
    _draw_hair(drawing, person)
    with drawing.on_head():
        _draw_glasses(drawing, person)
    if scene.occluder is not None:
        _draw_occluder(drawing, scene.occluder, person)
    return _finish(drawing.paint(), scene)


def face_mask(
    person: Person, units_U: NDArray[np.floating], scene: Scene, size_px: int = SIZE_PX
) -> NDArray[np.float32]:
    """How much of every pixel shows the face, float32 [size_px, size_px] in [0, 1].

    The face is what is within the outline of the head, without the hair in front of it and without
    what the scene's occluder hides.
    """
    au = {unit: float(value) for unit, value in zip(UNITS, units_U, strict=True)}
    drawing = _Drawing(replace(person, background=(0, 0, 0)), scene, size_px)
    _draw_outline(drawing, person, au)
    _draw_hair(drawing, person)
    if scene.occluder is not None:
        _draw_occluder(drawing, scene.occluder, person)
    for number, shape in enumerate(drawing.shapes):
        shape.colour = (0, 0, 0) if number else (255, 255, 255)  # the outline comes first
    mask_HW: NDArray[np.float32] = np.asarray(drawing.paint(), np.float32)[:, :, 0] / np.float32(
        255
    )
    return mask_HW


def expression_units(name: str) -> NDArray[np.float32]:
    """Units of an expression's prototype at full intensity, float32 [len(UNITS)]."""
    units_U = np.zeros(len(UNITS), np.float32)
    for unit in EXPRESSION_UNITS[name]:
        units_U[UNITS.index(unit)] = PROTOTYPE_STRENGTH.get((name, unit), 1.0)
    return units_U


def draw_person(rng: np.random.Generator, tone: float | None = None) -> Person:
    """A person drawn at random; ``tone`` is that of the skin, from 0 (light) to 1, if given."""
    drawn = float(rng.beta(1.2, 1.6))
    skin = _mix((250, 218, 190), (92, 58, 40), drawn if tone is None else tone)
    skin = _jitter(rng, skin, 8)
    hair_base = ((34, 26, 22), (70, 46, 30), (120, 82, 48), (196, 160, 104), (150, 150, 150))
    hair = _jitter(rng, hair_base[int(rng.choice(5, p=(0.38, 0.27, 0.15, 0.1, 0.1)))], 10)
    irises = ((60, 38, 24), (92, 66, 36), (72, 104, 140), (84, 112, 72))
    return Person(
        width=rng.uniform(0.70, 0.82),
        jaw=rng.uniform(0.10, 0.34),
        chin=rng.uniform(0.93, 1.03),
        eye_gap=rng.uniform(0.31, 0.37),
        eye_size=rng.uniform(0.145, 0.18),
        eye_y=rng.uniform(-0.16, -0.10),
        brow_y=rng.uniform(0.20, 0.27),
        brow_width=rng.uniform(0.045, 0.085),
        brow_tilt=rng.uniform(-0.03, 0.03),
        nose_length=rng.uniform(0.36, 0.44),
        nose_width=rng.uniform(0.11, 0.17),
        mouth_y=rng.uniform(0.53, 0.59),
        mouth_width=rng.uniform(0.23, 0.29),
        mouth_bias=rng.uniform(-0.02, 0.025),
        lip_upper=rng.uniform(0.035, 0.065),
        lip_lower=rng.uniform(0.05, 0.085),
        hairline=rng.uniform(-0.80, -0.70),
        age=rng.uniform(0.0, 1.0),
        stubble=float(rng.uniform(0.1, 0.35) if rng.random() < 0.25 else 0.0),
        skin=skin,
        hair=hair,
        iris=irises[int(rng.choice(4, p=(0.4, 0.25, 0.2, 0.15)))],
        lip=_mix(skin, _jitter(rng, (178, 62, 66), 14), rng.uniform(0.35, 0.7)),
        clothes=_random_colour(rng),
        background=_random_colour(rng),
        hair_style=str(rng.choice(HAIR_STYLES, p=(0.3, 0.22, 0.16, 0.24, 0.08))),
        glasses=str(rng.choice(("none", "round", "square"), p=(0.8, 0.1, 0.1))),
    )


def draw_occluder(rng: np.random.Generator) -> Occluder:
    """A random occluder that leaves part of the face visible."""
    return Occluder(
        kind=str(rng.choice(OCCLUDERS, p=(0.4, 0.15, 0.15, 0.3))),
        x=rng.uniform(-0.5, 0.5),
        y=rng.uniform(0.15, 0.9),
        size=rng.uniform(0.8, 1.15),
        angle=rng.uniform(-1.2, 1.2),
        colour=_random_colour(rng),
    )


def draw_panel(rng: np.random.Generator) -> Occluder:
    """A panel of no size at a random place in the face."""
    return Occluder(
        kind="panel",
        x=rng.uniform(-0.5, 0.5),
        y=rng.uniform(-0.5, 0.8),
        size=0.0,
        angle=rng.uniform(-np.pi, np.pi),
        colour=_random_colour(rng),
    )


@dataclass
class _Shape:
    points: Points
    colour: Colour
    width: float  # 0: a filled polygon; else a line, in half head heights
    depth: float  # distance from the head's surface, outwards
    clipped: bool  # nothing of it is seen outside the outline of the head


@dataclass
class _Drawing:
    """Shapes collected in face coordinates, so that one projection serves the whole frame."""

    person: Person
    scene: Scene
    size_px: int
    shapes: list[_Shape] = field(default_factory=list)
    clipping: bool = False
    outline: int = 0  # which of the shapes is the outline of the head

    def fill(self, points: Points, colour: Colour, depth: float = 0.0) -> None:
        self.shapes.append(_Shape(points, colour, 0.0, depth, self.clipping))

    def line(self, points: Points, colour: Colour, width: float, depth: float = 0.0) -> None:
        self.shapes.append(_Shape(points, colour, width, depth, self.clipping))

    def fill_head(self, points: Points, colour: Colour) -> None:
        self.outline = len(self.shapes)
        self.fill(points, colour)

    @contextmanager
    def on_head(self) -> Iterator[None]:
        """What is drawn meanwhile ends at the outline of the head, if the scene says so."""
        self.clipping = self.scene.clip
        yield
        self.clipping = False

    def paint(self) -> Image.Image:
        """Project every point, draw the shapes in order and average down to the frame's size."""
        canvas_px = self.size_px * SUPERSAMPLING
        image = Image.new("RGB", (canvas_px, canvas_px), self.person.background)
        lengths = [len(shape.points) for shape in self.shapes]
        depth_N = np.repeat([shape.depth for shape in self.shapes], lengths)
        points_N2 = self._project(np.concatenate([s.points for s in self.shapes]), depth_N)
        flat = [part.ravel().tolist() for part in np.split(points_N2, np.cumsum(lengths)[:-1])]
        for clipped, group in groupby(zip(self.shapes, flat, strict=True), lambda p: p[0].clipped):
            before = image.copy() if clipped else image
            self._draw(ImageDraw.Draw(image), group)
            if clipped:
                head = Image.new("1", image.size)
                ImageDraw.Draw(head).polygon(flat[self.outline], fill=1)
                image = Image.composite(image, before, head)
        return image.reduce(SUPERSAMPLING)

    def _draw(self, pen: ImageDraw.ImageDraw, shapes: Iterable[tuple[_Shape, list[float]]]) -> None:
        unit_px = self._unit_px()
        for shape, flat in shapes:
            if shape.width:
                width_px = max(1, round(shape.width * unit_px))
                pen.line(flat, fill=shape.colour, width=width_px, joint="curve")
            else:
                pen.polygon(flat, fill=shape.colour)

    def _unit_px(self) -> float:
        # Half a head is .39 of the frame, so that a dropped jaw still fits into it.
        return 0.39 * self.scene.scale * self.size_px * SUPERSAMPLING

    def _project(self, points_N2: Points, depth_N: NDArray[np.float64]) -> Points:
        """Turn the head, an ellipsoid with shapes at a depth above its surface, into pixels."""
        scene, x_N, y_N = self.scene, points_N2[:, 0], points_N2[:, 1]
        radius_N = np.minimum((x_N / self.person.width) ** 2 + y_N**2, 1) ** 0.5
        z_N = DEPTH * np.sqrt(1 - radius_N**2) + depth_N
        cos, sin = np.cos(scene.yaw), np.sin(scene.yaw)
        # A turned ellipsoid's outline is wider than the outline turned; no brow may stick out.
        outline = np.hypot(cos, sin * DEPTH / self.person.width)
        turned_x = x_N * (cos + (outline - cos) * radius_N**8) + z_N * sin
        if scene.clip:  # what has turned away, such as the farther end of the hair
            edge_N = self.person.width * outline * np.sqrt(np.maximum(1 - y_N**2, 0))
            turned_x = np.where(radius_N < 1, np.clip(turned_x, -edge_N, edge_N), turned_x)
        turned_y = y_N * np.cos(scene.pitch) + (z_N - 0.3) * np.sin(scene.pitch)
        cos, sin = np.cos(scene.roll), np.sin(scene.roll)
        rolled = np.stack([turned_x * cos - turned_y * sin, turned_x * sin + turned_y * cos], 1)
        canvas_px = self.size_px * SUPERSAMPLING
        centre = np.array([0.5 + scene.shift_x, 0.49 + scene.shift_y]) * canvas_px
        pixels_N2: Points = rolled * self._unit_px() + centre
        return pixels_N2


_CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 25)), np.sin(np.linspace(0, 2 * np.pi, 25))], 1
)
_ACROSS = np.linspace(-1, 1, 13)


def _ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    return _CIRCLE * (radius_x, radius_y) + (x, y)


def _curve(*points: tuple[float, float]) -> Points:
    """The points as given, except that three become a smooth line (quadratic Bezier)."""
    if len(points) != 3:
        return np.array(points, float)
    t_N = np.linspace(0, 1, 8)[:, None]
    first, middle, last = (np.array(point) for point in points)
    curve_N2: Points = (1 - t_N) ** 2 * first + 2 * t_N * (1 - t_N) * middle + t_N**2 * last
    return curve_N2


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """``first`` moved towards ``second`` by ``share`` in [0, 1]."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _jitter(rng: np.random.Generator, colour: Colour, amount: int) -> Colour:
    red, green, blue = np.clip(np.add(colour, rng.integers(-amount, amount + 1, 3)), 0, 255)
    return int(red), int(green), int(blue)


def _random_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(20, 235, 3)
    return int(red), int(green), int(blue)


def _shade(person: Person, strength: float) -> Colour:
    """The colour of skin in a fold: darker and redder."""
    red, green, blue = person.skin
    return _mix(person.skin, (round(red * 0.42), round(green * 0.32), round(blue * 0.3)), strength)


def _draw_behind(drawing: _Drawing, person: Person) -> None:
    """Neck, shoulders, the hair behind the head, ears."""
    width = person.width
    if person.hair_style == "long":
        back = np.array([(-1.18, 1.5), (-1.2, 0.0), (-1.0, -0.8), (-0.5, -1.18), (0, -1.26)])
        back = np.concatenate([back, back[::-1] * (-1, 1)]) * (width, 1)
        drawing.fill(back, _mix(person.hair, (0, 0, 0), 0.25), depth=-0.35)
    neck = 0.62 * width
    drawing.fill(
        np.array([(-neck, 0.5), (neck, 0.5), (neck, 1.6), (-neck, 1.6)]),
        _shade(person, 0.3),
        -0.3,
    )
    shoulders = [(-0.45, 1.22), (0.45, 1.22), (1.7, 1.5), (1.7, 2.2), (-1.7, 2.2), (-1.7, 1.5)]
    drawing.fill(np.array(shoulders), person.clothes, -0.3)
    for side in (-1, 1):
        drawing.fill(_ellipse(side * width * 1.0, -0.02, 0.11, 0.22), _shade(person, 0.12), -0.15)


def _draw_outline(drawing: _Drawing, person: Person, au: dict[int, float]) -> Points:
    """The head, lengthened by a dropped jaw; returns its outline."""
    angle_N = np.linspace(0, 2 * np.pi, 49)
    x_N, y_N = person.width * np.cos(angle_N), np.sin(angle_N)
    low_N = np.maximum(y_N, 0)
    x_N = x_N * (1 + person.jaw * low_N * (1 - low_N) - 0.12 * low_N)
    y_N = np.where(y_N > 0, y_N * (person.chin + 0.12 * au[26]), y_N * 1.05)
    outline_N2: Points = np.stack([x_N, y_N], 1)
    drawing.fill_head(outline_N2, person.skin)
    return outline_N2


def _draw_cheeks(
    drawing: _Drawing, person: Person, au: dict[int, float], outline_N2: Points
) -> None:
    """Stubble and flush."""
    if person.stubble:
        x_N, y_N = outline_N2.T
        low = y_N > 0.3 + 0.35 * np.abs(x_N)
        beard = np.concatenate([np.stack([x_N[low], y_N[low]], 1), [(0, 0.36)]])
        drawing.fill(beard, _mix(person.skin, person.hair, person.stubble))
    flush = _mix(person.skin, (222, 96, 84), 0.12 + 0.13 * au[6])
    for side in (-1, 1):
        cheek_y = 0.24 - 0.07 * au[6]
        drawing.fill(_ellipse(side * 0.46, cheek_y, 0.19, 0.14 + 0.02 * au[6]), flush)


def _draw_nose(drawing: _Drawing, person: Person, au: dict[int, float]) -> None:
    """Bridge, tip and wings; unit 9 lifts and widens them and wrinkles the bridge."""
    tip_y = person.eye_y + person.nose_length - 0.045 * au[9]
    wing = person.nose_width * (1 + 0.22 * au[9])
    soft, dark = _shade(person, 0.28), _shade(person, 0.85)
    side_line = _curve((0.07, person.eye_y + 0.02), (0.06, tip_y - 0.15), (wing * 0.95, tip_y))
    drawing.line(side_line, soft, 0.03, 0.1)
    bridge = _mix(person.skin, (255, 250, 240), 0.2)
    drawing.line(_curve((0, person.eye_y + 0.04), (0, 0.1), (0, tip_y - 0.05)), bridge, 0.05, 0.14)
    under = _curve((-wing, tip_y - 0.02), (0, tip_y + 0.1), (wing, tip_y - 0.02))
    drawing.line(under, _shade(person, 0.55), 0.03, 0.16)
    for side in (-1, 1):
        drawing.fill(_ellipse(side * wing * 0.52, tip_y + 0.015, 0.038, 0.02), dark, 0.16)
        wing_line = _curve(
            (side * wing * 0.85, tip_y - 0.09),
            (side * wing * 1.3, tip_y - 0.03),
            (side * wing, tip_y + 0.02),
        )
        drawing.line(wing_line, _shade(person, 0.35 + 0.5 * au[9]), 0.024, 0.12)
    if au[9] > 0.05:
        for step in range(3):
            y = person.eye_y + 0.03 + 0.065 * step
            half = 0.1 - 0.012 * step
            wrinkle = _curve((-half, y - 0.03), (0, y + 0.035), (half, y - 0.03))
            drawing.line(wrinkle, _shade(person, 0.8 * au[9]), 0.022, 0.14)


def _draw_folds(drawing: _Drawing, person: Person, au: dict[int, float]) -> None:
    """Forehead lines (1, 2), frown lines (4), nasolabial folds (9, 12, 20), crow's feet (6)."""
    brow_top = person.eye_y - person.brow_y - 0.09
    top = person.hairline + 0.1
    raised = max(au[1], au[2])
    for step in range(3):
        y = brow_top - 0.05 - step * (brow_top - 0.05 - top) / 2.6
        # Unit 1 alone bends the middle of the line up; with unit 2 the whole line rises.
        half = 0.2 + 0.24 * au[2]
        strength = (0.62 - 0.1 * step) * raised + 0.12 * person.age
        middle = y - 0.07 * (au[1] - au[2]) - 0.03
        drawing.line(_curve((-half, y), (0, middle), (half, y)), _shade(person, strength), 0.022)
    if au[4] > 0.05:
        for side in (-1, 1):
            frown = _curve(
                (side * 0.055, person.eye_y - 0.08),
                (side * 0.035, person.eye_y - 0.18),
                (side * 0.06, person.eye_y - 0.29),
            )
            drawing.line(frown, _shade(person, 0.9 * au[4]), 0.028, 0.05)
    fold = 0.14 * person.age + 0.62 * max(au[12], 0.9 * au[9]) + 0.2 * au[20]
    outward = 0.07 * au[12] + 0.03 * au[20]
    for side in (-1, 1):
        line = _curve(
            (side * (person.nose_width + 0.03), 0.2 - 0.04 * au[9]),
            (side * (0.31 + outward + 0.05 * au[9]), 0.28),
            (side * (0.36 + outward), 0.52 - 0.05 * au[12]),
        )
        drawing.line(line, _shade(person, fold), 0.026)
        if au[6] > 0.05:
            for step in (-1, 0, 1):
                feet = _curve(
                    (side * 0.56, person.eye_y + 0.02),
                    (side * 0.66, person.eye_y + 0.07 * step),
                )
                drawing.line(feet, _shade(person, 0.55 * au[6]), 0.018)


def _draw_mouth(drawing: _Drawing, person: Person, au: dict[int, float]) -> None:
    """Lips and the inside of the mouth; corners and middle define two arcs across the width."""
    half = person.mouth_width * (
        1 + 0.34 * au[12] + 0.36 * au[20] - 0.14 * au[23] - 0.2 * au[26] * (1 - au[20])
    )
    gap = 0.36 * au[26] + 0.11 * au[16] + 0.07 * au[12] + 0.05 * au[20]
    middle_y = person.mouth_y - 0.05 * au[9] - 0.07 * au[26] - 0.02 * au[20] + 0.012 * au[12]
    corner_y = (
        person.mouth_y
        + person.mouth_bias
        - 0.145 * au[12]
        + 0.125 * au[15]
        + 0.1 * au[20]
        + 0.11 * au[26] * (1 - 0.3 * au[20])
    )
    # A stretched mouth (20) is a slot with square corners, a dropped jaw (26) an oval.
    power = 2.0 + 3.0 * au[20]
    bow_N = 1 - np.abs(_ACROSS) ** power
    x_N = half * _ACROSS
    top_N = corner_y + (middle_y - corner_y) * bow_N
    bottom_N = corner_y + (middle_y + gap - corner_y) * bow_N
    press = 1 - 0.7 * au[23] - 0.25 * au[20] - 0.2 * au[12]
    lip_N = np.sqrt(np.maximum(1 - _ACROSS**2, 0))
    cupid_N = 1 - 0.25 * np.exp(-((_ACROSS / 0.18) ** 2))
    upper_N = top_N - person.lip_upper * press * lip_N * cupid_N
    lower_N = bottom_N + person.lip_lower * (press + 0.25 * au[16]) * lip_N
    drawing.fill(_between(x_N, upper_N, lower_N), person.lip, 0.06)
    if gap > 0.015:
        _draw_mouth_inside(drawing, x_N, top_N, bottom_N, au)
    seam = _mix(person.lip, (40, 10, 14), 0.75)
    drawing.line(np.stack([x_N, top_N], 1), seam, 0.024 - 0.006 * au[26], 0.06)
    corners = 0.25 + 0.5 * max(au[15], au[12], au[20], au[23])
    for side in (-1, 1):
        pull = 0.05 * (au[15] - au[12])
        tick = _curve((side * half, corner_y), (side * (half + 0.045), corner_y + pull))
        drawing.line(tick, _shade(person, corners), 0.026)
    chin_y = float(lower_N[6]) + 0.06
    under = _curve((-0.12, chin_y), (0, chin_y + 0.03), (0.12, chin_y))
    drawing.line(under, _shade(person, 0.25 + 0.35 * au[23] + 0.2 * au[15]), 0.028)


def _draw_mouth_inside(
    drawing: _Drawing,
    x_N: NDArray[np.float64],
    top_N: NDArray[np.float64],
    bottom_N: NDArray[np.float64],
    au: dict[int, float],
) -> None:
    drawing.fill(_between(x_N, top_N, bottom_N), (58, 18, 22), 0.05)
    room_N = bottom_N - top_N
    inner = slice(1, -1)
    if au[12] + au[20] > 0.1:
        teeth_N = top_N + np.minimum(room_N, 0.06)
        drawing.fill(_between(x_N[inner], top_N[inner], teeth_N[inner]), (240, 236, 226), 0.05)
    if au[16] + 0.7 * au[20] > 0.1:
        teeth_N = bottom_N - np.minimum(room_N * 0.6, 0.055)
        drawing.fill(_between(x_N[inner], teeth_N[inner], bottom_N[inner]), (232, 226, 212), 0.05)
    if au[26] > 0.35 and au[20] < 0.3:
        tongue_N = bottom_N - 0.3 * room_N
        drawing.fill(_between(x_N[2:-2], tongue_N[2:-2], bottom_N[2:-2]), (168, 72, 78), 0.05)


def _between(
    x_N: NDArray[np.float64], top_N: NDArray[np.float64], bottom_N: NDArray[np.float64]
) -> Points:
    return np.concatenate([np.stack([x_N, top_N], 1), np.stack([x_N, bottom_N], 1)[::-1]])


def _draw_eye(drawing: _Drawing, person: Person, au: dict[int, float], side: int) -> None:
    """White, iris, then the lids over them, so that the lids clip the iris."""
    x, y, half = side * person.eye_gap, person.eye_y, person.eye_size
    squint = max(au[7], 0.6 * au[6], 0.75 * au[9])
    upper = 0.088 + 0.062 * au[5] - 0.022 * squint - 0.02 * au[1] * au[4] * (1 - au[5])
    lower = 0.062 + 0.008 * au[5] - 0.042 * squint
    # A blink brings the upper lid down to the lower one.
    upper = upper * (1 - au[45]) - lower * 0.9 * au[45]
    arch_N = 1 - _ACROSS**2
    x_N = x + half * _ACROSS
    # Sad upper lids slope: the inner corner (towards the nose) is drawn up by 1 + 4.
    slope_N = side * 0.03 * au[1] * au[4] * _ACROSS
    top_N = y - upper * np.sqrt(arch_N) + slope_N * arch_N
    bottom_N = y + lower * arch_N
    drawing.fill(_between(x_N, top_N, bottom_N), (244, 242, 238), 0.02)
    iris_r = 0.074
    drawing.fill(_ellipse(x, y - 0.012, iris_r, iris_r), person.iris, 0.02)
    drawing.fill(_ellipse(x, y - 0.012, 0.036, 0.036), (12, 10, 10), 0.02)
    drawing.fill(_ellipse(x + 0.02, y - 0.036, 0.013, 0.013), (250, 250, 250), 0.02)
    lid = _shade(person, 0.1)
    cover_N = y - 0.155 * np.sqrt(arch_N)
    drawing.fill(_between(x_N, np.minimum(cover_N, top_N), top_N), lid, 0.02)
    drawing.fill(
        _between(x_N, bottom_N, np.maximum(y + 0.11 * arch_N, bottom_N)), person.skin, 0.02
    )
    drawing.line(np.stack([x_N, top_N], 1), (38, 26, 24), 0.03, 0.02)
    drawing.line(np.stack([x_N, bottom_N], 1), _shade(person, 0.45 + 0.4 * squint), 0.018, 0.02)
    crease_N = np.minimum(top_N, y) - 0.045 * arch_N - 0.01
    drawing.line(np.stack([x_N, crease_N], 1), _shade(person, 0.3), 0.014, 0.02)
    if squint > 0.05:
        bag = _curve((x - 0.13, y + 0.1), (x, y + 0.15 - 0.02 * squint), (x + 0.13, y + 0.1))
        drawing.line(bag, _shade(person, 0.5 * squint), 0.022, 0.02)


def _draw_brow(drawing: _Drawing, person: Person, au: dict[int, float], side: int) -> None:
    """Unit 1 lifts the inner end, 2 the outer end; 4 lowers the brow and draws it inwards."""
    base = person.eye_y - person.brow_y
    lowered = 0.085 * max(au[4] * (1 - 0.75 * au[1]), 0.7 * au[9])
    inner_y = base - 0.13 * au[1] + lowered * 1.35 - person.brow_tilt
    middle_y = base - 0.045 - 0.06 * au[1] - 0.1 * au[2] + lowered * 0.9
    outer_y = base + 0.03 - 0.12 * au[2] + lowered * 0.15 + 0.05 * au[1] * (1 - au[2])
    inner_x = person.eye_gap - 0.19 - 0.055 * au[4]
    line = _curve(
        (side * inner_x, inner_y),
        (side * (person.eye_gap + 0.02), 2 * middle_y - (inner_y + outer_y) / 2),
        (side * (person.eye_gap + 0.21), outer_y),
    )
    thickness_N = person.brow_width * np.linspace(0.62, 0.3, len(line)) * (1 + 0.15 * au[4])
    upper, lower = line.copy(), line.copy()
    upper[:, 1] -= thickness_N
    lower[:, 1] += thickness_N
    colour = _mix(_mix(person.hair, person.skin, 0.15), (0, 0, 0), 0.25)
    drawing.fill(np.concatenate([upper, lower[::-1]]), colour, 0.03)


def _draw_hair(drawing: _Drawing, person: Person) -> None:
    """Hair in front of the forehead, over its lines."""
    if person.hair_style == "bald":
        return
    width, line = person.width, person.hairline
    angle_N = np.linspace(np.pi * 1.03, np.pi * 1.97, 21)
    outer = np.stack([width * 1.07 * np.cos(angle_N), 1.16 * np.sin(angle_N)], 1)
    temple = -0.28
    across_N = np.linspace(1, -1, 15)
    if person.hair_style == "fringe":
        edge_N = line + 0.10 + 0.03 * np.cos(np.arange(15) * np.pi)
    elif person.hair_style == "parted":
        edge_N = line - 0.08 + 0.22 * np.abs(across_N - 0.35) ** 1.3
    else:
        edge_N = line - 0.04 + 0.1 * across_N**2
    # The hairline stays inside the head's outline, 1.05 high.
    outline_N = 0.96 * np.sqrt(1 - (edge_N / 1.05) ** 2)
    inner = np.stack([np.clip(across_N, -outline_N, outline_N) * width, edge_N], 1)
    # Sideburns end outside the outline: no skin between the hair and the background.
    burn_right, burn_left = ([(x * width, temple)] for x in (0.9, -0.9))
    end_right, end_left = ([(x * width, temple)] for x in (1.07, -1.07))
    inner = np.concatenate([end_right, burn_right, inner, burn_left, end_left])
    drawing.fill(np.concatenate([outer, inner]), person.hair)
    strand = _mix(person.hair, (255, 255, 255), 0.14)
    arc = _curve((-0.45 * width, line - 0.12), (0.05, -1.14), (0.5 * width, line - 0.1))
    drawing.line(arc, strand, 0.03)


def _draw_glasses(drawing: _Drawing, person: Person) -> None:
    if person.glasses == "none":
        return
    y, gap = person.eye_y + 0.01, person.eye_gap
    colour = (34, 32, 36)
    for side in (-1, 1):
        rim = _ellipse(side * gap, y, 0.235, 0.19)
        if person.glasses == "square":
            box = np.array(
                [(-0.23, -0.16), (0.23, -0.16), (0.21, 0.17), (-0.21, 0.17), (-0.23, -0.16)]
            )
            rim = box + np.array([side * gap, y])
        drawing.line(rim, colour, 0.025, 0.12)
        arm = [(side * (gap + 0.23), y - 0.04), (side * person.width, y - 0.06)]
        drawing.line(np.array(arm), colour, 0.025, 0.03)
    drawing.line(np.array([(-gap + 0.23, y - 0.03), (gap - 0.23, y - 0.03)]), colour, 0.025, 0.16)


def _draw_occluder(drawing: _Drawing, occluder: Occluder, person: Person) -> None:
    if occluder.kind == "mask":
        mask = [(-0.95, 0.1), (0, 0.22), (0.95, 0.1), (0.8, 0.75), (0, 1.15), (-0.8, 0.75)]
        drawing.fill(np.array(mask) * (person.width, 1), occluder.colour, 0.12)
    elif occluder.kind == "dark_glasses":
        for side in (-1, 1):
            lens = _ellipse(side * person.eye_gap, person.eye_y + 0.02, 0.28, 0.22)
            drawing.fill(lens, (22, 22, 26), 0.12)
        bridge = np.array([(-0.2, person.eye_y), (0.2, person.eye_y)])
        drawing.line(bridge, (22, 22, 26), 0.05, 0.14)
    else:
        cos, sin = np.cos(occluder.angle), np.sin(occluder.angle)
        turn = np.array([[cos, sin], [-sin, cos]])
        place = (occluder.x, occluder.y)
        if occluder.kind == "hand":
            skin = _shade(person, 0.2)
            drawing.fill(_ellipse(0, 0.1, 0.3, 0.34) * occluder.size @ turn + place, skin, 0.2)
            for finger in range(4):
                x = -0.24 + 0.16 * finger
                bar = np.array([(x, 0.0), (x, -0.42)]) * occluder.size @ turn + place
                drawing.line(bar, _shade(person, 0.14 + 0.05 * finger), 0.13, 0.2)
        elif occluder.kind == "panel":
            corners = np.array([(-1, -0.7), (1, -0.7), (1, 0.7), (-1, 0.7)]) * occluder.size
            drawing.fill(corners @ turn + place, occluder.colour, 0.2)
        else:
            bar = np.array([(-2.0, 0.0), (2.0, 0.0)]) @ turn + place
            drawing.line(bar, occluder.colour, 0.38 * occluder.size, 0.2)


def _finish(image: Image.Image, scene: Scene) -> NDArray[np.uint8]:
    """Blur, light and sensor noise at the frame's own size."""
    if scene.blur_px > 0.05:
        image = image.filter(ImageFilter.GaussianBlur(scene.blur_px))
    pixels = np.asarray(image, np.float32)
    size_px = pixels.shape[0]
    ramp = np.linspace(-1, 1, size_px, dtype=np.float32)
    direction_x, direction_y = np.cos(scene.light_angle), np.sin(scene.light_angle)
    slope = np.float32(direction_x) * ramp[None, :] + np.float32(direction_y) * ramp[:, None]
    light = 1 + np.float32(scene.light) * slope
    pixels = pixels * light[:, :, None] * np.array(scene.gain, np.float32)
    if scene.noise:
        rng = np.random.default_rng(scene.noise_seed)
        grain = rng.integers(-128, 128, (size_px, size_px, 1), np.int8).astype(np.float32)
        pixels = pixels + grain * np.float32(scene.noise / 73.9)  # uniform int8 has sd 73.9
    frame_HWC: NDArray[np.uint8] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return frame_HWC
