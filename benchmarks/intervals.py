"""Intervals and tests against simulation: how often they are right where the truth is known.

Run as ``python -m benchmarks.intervals [--sets N]``; writes ``benchmarks/intervals.json``.

A set has the videos of 100 people, of seven classes as rare as in the embedded faces (disgust: 20
of 700), in five folds disjoint by person. What is random in the truth is how easy each person is,
and how good each network, all in all and at each class. Nothing is timed; it takes six minutes.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine, write
from pipeline.datasets.known import known_datasets
from pipeline.evaluate.statistics import (
    Difference,
    Sample,
    bootstrap,
    bootstrap_difference,
    holm,
    mcnemar,
)

OUT = Path(__file__).with_suffix(".json")
FOLDS, PEOPLE, VIDEOS = 5, 100, 7  # videos of each person
COUNTS = [*known_datasets()["faces"].counts.values()]
LABELS_PV = np.random.default_rng(0).permutation(np.repeat(range(len(COUNTS)), COUNTS))
LABELS_PV = LABELS_PV.reshape(PEOPLE, VIDEOS)
RECALL_K = np.array([0.75, 0.65, 0.7, 0.7, 0.65, 0.5, 0.6])  # mean over people and networks
TRUTH = {"UAR": RECALL_K.mean(), "WAR": RECALL_K[LABELS_PV].mean()}
PERSON, NETWORK, AT_A_CLASS = 0.08, 0.04, 0.05  # standard deviations of the chance to be right
RESAMPLES = 500
LEVEL = 0.05
ROWS = 6  # of a table


def main() -> None:
    """Simulate, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    write({"machine": machine(), "sets": options.sets, **simulate(options.sets)}, options.out)


def simulate(sets: int) -> dict[str, Any]:
    """Every share; ``sets`` are drawn for each of them."""
    shares: dict[str, Any] = {"coverage": {}, "of_these_networks": {}, "false_positives": {}}
    for seeds in (3, 2, 1):
        shares["coverage"][str(seeds)] = coverage(sets, seeds)
        shares["of_these_networks"][str(seeds)] = coverage(sets, seeds, of_these_networks=True)
        shares["false_positives"][str(seeds)] = false_positives(sets, seeds)
    shares["families"] = {str(seeds): families(sets, seeds) for seeds in (3, 2, 1)}
    shares["power"] = power(sets)
    shares["mcnemar"] = mcnemar_positives(sets)
    return shares


def people(generator: np.random.Generator) -> NDArray[np.float64]:
    """How much easier each person is than the mean, [person]."""
    return generator.normal(0, PERSON, PEOPLE)


def networks(
    generator: np.random.Generator, easy_P: NDArray[np.float64], seeds: int, gain: float = 0.0
) -> Sample:
    """What networks of every fold and ``seeds`` say; ``gain`` is added to the recall of each class.

    A video that is not recognised is said to be of the next class.
    """
    shape = (FOLDS, seeds, len(COUNTS))
    skill_FSK = generator.normal(0, NETWORK, (FOLDS, seeds, 1))
    skill_FSK = skill_FSK + generator.normal(0, AT_A_CLASS, shape) + RECALL_K + gain
    person, seed, video = (own.ravel() for own in np.indices((PEOPLE, seeds, VIDEOS)))
    labels, fold = LABELS_PV[person, video], person % FOLDS
    right = generator.random(len(labels)) < skill_FSK[fold, seed, labels] + easy_P[person]
    predicted = np.where(right, labels, (labels + 1) % len(COUNTS))
    names = [(str(f), s) for f, s in zip(fold.tolist(), seed.tolist(), strict=True)]
    return Sample(labels, predicted, person.tolist(), names)


def coverage(sets: int, seeds: int, of_these_networks: bool = False) -> dict[str, float]:
    """Share of 95 % intervals that hold the truth, of UAR and WAR.

    Those ``of_these_networks`` do not know that others would differ.
    """
    generator = np.random.default_rng([0, seeds])
    held = dict.fromkeys(TRUTH, 0)
    for _ in range(sets):
        sample = networks(generator, people(generator), seeds)
        sample = replace(sample, networks=()) if of_these_networks else sample
        found = bootstrap(sample, len(COUNTS), RESAMPLES)
        for (name, truth), own in zip(TRUTH.items(), found, strict=True):
            held[name] += own.low <= truth <= own.high
    return {name: times / sets for name, times in held.items()}


def compare(
    generator: np.random.Generator, seeds: int, gain: float = 0.0
) -> tuple[Difference, ...]:
    """(UAR, WAR) of networks minus those of others, ``gain`` worse, for the same people."""
    easy_P = people(generator)
    ours, theirs = (networks(generator, easy_P, seeds, own) for own in (gain, 0.0))
    return bootstrap_difference(ours, theirs, len(COUNTS), RESAMPLES)


def false_positives(sets: int, seeds: int) -> dict[str, float]:
    """Share of tests at 5 % that find a difference between equals, and of intervals without it."""
    generator = np.random.default_rng([1, seeds])
    found = dict.fromkeys((*TRUTH, *(f"{name}, interval" for name in TRUTH)), 0)
    for _ in range(sets):
        for name, own in zip(TRUTH, compare(generator, seeds), strict=True):
            found[name] += own.p < LEVEL
            found[f"{name}, interval"] += not own.low <= 0 <= own.high
    return {name: times / sets for name, times in found.items()}


def families(sets: int, seeds: int) -> float:
    """Share of tables of equal rows in which any WAR is found to differ from the first (Holm)."""
    generator = np.random.default_rng([2, seeds])

    def differs() -> bool:
        easy_P = people(generator)
        main, *rows = (_right(networks(generator, easy_P, seeds)) for _ in range(ROWS))
        tests = [bootstrap_difference(row, main, 2, RESAMPLES)[1].p for row in rows]
        return min(holm(tests)) < LEVEL

    return _share(differs, sets)


def _right(sample: Sample) -> Sample:
    """Two classes in place of all, right and wrong, which have the same WAR."""
    wrong = (sample.labels != sample.predictions).astype(np.int64)
    return replace(sample, labels=np.zeros_like(wrong), predictions=wrong)


def power(sets: int, seeds: int = 3) -> dict[str, float]:
    """The smallest difference in WAR that is named, and the share of tests that find it."""
    generator = np.random.default_rng([3, seeds])
    named = np.mean([compare(generator, seeds)[1].detectable for _ in range(max(sets // 20, 20))])
    gain = float(named)
    share = _share(lambda: compare(generator, seeds, gain)[1].p < LEVEL, sets)
    return {"named": round(gain, 4), "found": share}


def mcnemar_positives(sets: int) -> float:
    """Share of McNemar's tests at 5 % that find a difference between equals, people alike."""
    generator = np.random.default_rng(4)

    def differs() -> bool:
        right, other = generator.random((2, PEOPLE * VIDEOS)) < TRUTH["WAR"]
        return mcnemar(right, other) < LEVEL

    return _share(differs, sets)


def _share(happens: Callable[[], bool], sets: int) -> float:
    times: Sequence[bool] = [happens() for _ in range(sets)]
    return sum(times) / sets


if __name__ == "__main__":
    main()
