"""Populations: skin, age and glasses -> a person, and who is in which half of the set."""

from collections.abc import Collection
from dataclasses import replace
from itertools import product

import numpy as np

from pipeline.demo.face import Person, draw_person

ATTRIBUTES = (("light", "dark"), ("young", "old"), ("no_glasses", "glasses"))
HALVES = 2
_CELLS = tuple(product(*ATTRIBUTES))
# (values, half of the people), in the order in which videos are dealt out: each cell is followed
# by its opposite, so that of every four videos, two have each value, and each half has two.
GROUPS = tuple(
    (cell, half)
    for first, last in zip(_CELLS[: len(_CELLS) // 2], reversed(_CELLS), strict=False)
    for cell in (first, last)
    for half in range(HALVES)
)


def draw_member(rng: np.random.Generator, values: Collection[str]) -> Person:
    """A person drawn at random, except that skin, age and glasses are as in ``values``."""
    tone = rng.uniform(0.8, 1.0) if "dark" in values else rng.uniform(0.0, 0.15)
    age = rng.uniform(0.8, 1.0) if "old" in values else rng.uniform(0.0, 0.2)
    rims = str(rng.choice(("round", "square")))
    person = draw_person(rng, tone)
    return replace(person, age=age, glasses=rims if "glasses" in values else "none")
