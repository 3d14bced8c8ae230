"""A TOML file of choices and ranges -> random settings: what a search may vary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import RefusedError
from cache.outside import read_text
from pipeline.config import (
    CONFIG_BYTES_MAX,
    MethodConfig,
    known_keys,
    method_from,
    parse_toml,
    unknown_setting,
)

DEFAULT = "default"
DIGITS = 3  # significant ones of a number that is drawn
ATTEMPTS = 1000  # to draw settings that fit together
NOT_SEARCHED = ("optimiser.epochs", "selection.", "store.")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones for a setting that is whole."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, rng: np.random.Generator) -> float:
        """A number, uniform on the scale, rounded to three significant digits or to a whole one."""
        if self.whole and not self.log:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = rng.uniform(*ends)
        value = float(f"{math.exp(place) if self.log else place:.{DIGITS}g}")
        clipped = min(max(value, self.low), self.high)
        return round(clipped) if self.whole else float(clipped)


@dataclass(frozen=True)
class Space:
    """Dotted keys -> what they may be."""

    choices: Mapping[str, tuple[Any, ...] | Range]

    def plain(self) -> dict[str, Any]:
        """As in a file: lists, and tables of low, high and log."""
        return {
            key: {"low": choice.low, "high": choice.high, "log": choice.log}
            if isinstance(choice, Range)
            else list(choice)
            for key, choice in self.choices.items()
        }

    def draw(self, rng: np.random.Generator, base: MethodConfig) -> MethodConfig:
        """``base`` with every key of the space drawn anew, until the settings fit together.

        Raises RefusedError if they never do.
        """
        for _ in range(ATTEMPTS):
            settings = base.model_dump()
            for key, choice in self.choices.items():
                table, _, name = key.partition(".")
                if isinstance(choice, Range):
                    settings[table][name] = choice.draw(rng)
                else:
                    settings[table][name] = choice[int(rng.integers(len(choice)))]
            try:
                return method_from(settings, "the space")
            except RefusedError as error:
                last = error
        raise RefusedError(f"no settings of {ATTEMPTS} drawn from the space fit together: {last}")


def read_space(place: str) -> Space:
    """The space in a TOML file, or the default one.

    Raises RefusedError for unknown keys, and for choices and bounds that the settings refuse.
    """
    if place == DEFAULT:
        text = files("pipeline").joinpath("presets/space.toml").read_text()
    else:
        text = read_text(Path(place), "a TOML file of choices, or default", CONFIG_BYTES_MAX)
    found = {}
    for table, values in parse_toml(text, place).items():
        for name, choice in (values if isinstance(values, dict) else {"": values}).items():
            key = f"{table}.{name}".rstrip(".")
            found[key] = _read_choice(place, key, choice)
    if not found:
        raise RefusedError(f"{place}: an empty space; expected KEY = [CHOICES] in tables")
    return Space(found)


def _read_choice(place: str, key: str, choice: Any) -> tuple[Any, ...] | Range:
    if key not in known_keys():
        raise RefusedError(f"{place}: {unknown_setting(key)}")
    table, _, name = key.partition(".")
    if key.startswith(NOT_SEARCHED):
        raise RefusedError(f"{place}: {key} is given by the search itself and cannot be searched")
    wrong = RefusedError(
        f"{place}: {key} = {choice!r:.80}: expected a list of values, or {{low = NUMBER, high = "
        "NUMBER}, with log = true if low is above 0"
    )
    if isinstance(choice, list) and choice:
        found: tuple[Any, ...] | Range = tuple(choice)
        values = choice
    elif isinstance(choice, dict) and choice.keys() <= {"low", "high", "log"}:
        low, high, log = (choice.get(name, False) for name in ("low", "high", "log"))
        if isinstance(low, bool) or isinstance(high, bool) or not isinstance(log, bool):
            raise wrong
        if not _are_bounds(low, high, log):
            raise wrong
        kind = type(MethodConfig.model_fields[table].default).model_fields[name].annotation
        found, values = Range(low, high, log, whole=kind is int), [low, high]
    else:
        raise wrong
    for value in values:
        method_from({table: {name: value}}, place)  # refuses what the setting does not accept
    return found


def _are_bounds(low: Any, high: Any, log: bool) -> bool:
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    return numbers and low < high < math.inf and low > (0 if log else -math.inf)
