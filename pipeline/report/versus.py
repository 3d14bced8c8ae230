"""Two sides, A and B, each the runs of one setting -> what differs, with intervals and tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.store import Store
from pipeline.evaluate.calibration import reliability, risk_coverage
from pipeline.evaluate.statistics import (
    Difference,
    Interval,
    Sample,
    bootstrap,
    bootstrap_difference,
    holm,
    mcnemar,
)
from pipeline.markdown import item, table
from pipeline.report.ablation import describe_intervals, mark_optimistic, named_metrics
from pipeline.report.runs import row_of, varying_settings
from pipeline.train.record import Record, check_finished, read_records

LEVEL = 0.05
Key = tuple[str, int]  # fold and seed


@dataclass(frozen=True)
class Side:
    """Finished runs of one setting, at most one for each fold and seed."""

    name: str
    records: Sequence[Record]

    def by_key(self) -> dict[Key, Record]:
        """The runs by fold and seed."""
        return {(record.run.fold, record.run.seed): record for record in self.records}


@dataclass(frozen=True)
class Line:
    """A metric of both sides, as a fraction in [0, 1], and B minus A."""

    name: str
    a: Interval
    b: Interval
    difference: Difference


@dataclass(frozen=True)
class Versus:
    """What two sides say of the same videos."""

    names: tuple[str, str]
    videos: int
    runs: int  # of each side
    lines: Sequence[Line]  # UAR, WAR, and the recall of each class that has videos
    absent: Sequence[str]  # classes that have none
    mcnemar: float | None  # p-value; None where a video is predicted more than once
    ece: tuple[float, float]
    aurc: tuple[float, float]
    intervals: str  # what they cover


def read_side(folder: Path) -> Side:
    """The run in a folder, or all finished runs below it, which must be of one setting.

    Raises RefusedError if there are none, or if they differ in more than fold and seed.
    """
    if (folder / "run.json").exists():
        return Side(str(folder), [check_finished(folder)])
    records = [record for record in read_records(folder) if record.ok]
    if not records:
        raise RefusedError(f"{folder}: no finished run here; list the runs with: tgdfer runs")
    rows = [row_of(record) for record in records]
    differ = [name for name in ("code", "store") if len({row[name] for row in rows}) > 1]
    if differ := [*differ, *varying_settings(rows)]:
        raise RefusedError(
            f"{folder} has runs that differ in {', '.join(differ)}, expected those of one setting; "
            "name a single run, or a preset or TOML file with --runs"
        )
    return Side(str(folder), records)


def versus(a: Side, b: Side, store: Store) -> Versus:
    """Compare the runs of those folds and seeds that both sides have.

    ``store`` tells who is seen in the videos; runs may be of another one with the same videos.
    Raises RefusedError if the sides were not tested on the same videos, all of the store.
    """
    shared, first, second = _paired(a, b, store)
    videos = len({*first.rows.tolist()})
    folds, seeds = (len({key[place] for key in shared}) for place in (0, 1))
    present = {store.classes[k] for k in first.labels}
    return Versus(
        names=(_name(a, shared), _name(b, shared)),
        videos=videos,
        runs=len(shared),
        lines=_lines(first.sample(store), second.sample(store), present, store),
        absent=[name for name in store.classes if name not in present],
        mcnemar=mcnemar(first.right, second.right) if videos == len(first.rows) else None,
        ece=(first.ece, second.ece),
        aurc=(first.aurc, second.aurc),
        intervals=describe_intervals(store, seeds, folds),
    )


def differences(a: Side, b: Side, store: Store, names: Sequence[str]) -> dict[str, Difference]:
    """B minus A of these metrics alone, as ``versus``."""
    _, first, second = _paired(a, b, store)
    metrics, classes = named_metrics(names, store.classes), len(store.classes)
    samples = second.sample(store), first.sample(store)
    found = bootstrap_difference(*samples, classes, metrics=list(metrics.values()))
    return dict(zip(metrics, found, strict=True))


def versus_report(found: Versus) -> str:
    """Markdown: both sides and their difference, and what can be said of it."""
    corrected = holm([line.difference.p for line in found.lines])
    rows = [_row(line, p) for line, p in zip(found.lines, corrected, strict=True)]
    clear = [line.name for line, p in zip(found.lines, corrected, strict=True) if p < LEVEL]
    notes = [
        *(f"{letter}: {name}" for letter, name in zip("AB", found.names, strict=True)),
        f"{found.videos} videos, {found.runs} {'run' if found.runs == 1 else 'runs'} on each side, "
        "paired by video, fold and seed",
        f"intervals: {found.intervals}",
        *[f"without a test video: {', '.join(found.absent)}"] * bool(found.absent),
    ]
    p = "–, since videos are predicted by several seeds"
    reading = [
        f"Clear of zero at 5 % with all {len(rows)} tests counted (Holm): "
        + (", ".join(clear) or "none"),
        "Finds: the smallest true difference that such a test finds in about 80 % of all cases",
        "McNemar's exact test, which takes videos as independent and these networks as given: p = "
        + (p if found.mcnemar is None else _p(found.mcnemar)),
        _both("Calibration error (ECE, 15 bins)", found.ece),
        _both("Area under risk and coverage (AURC)", found.aurc),
    ]
    head = ["in per cent", "A", "B", "B − A", "p", "Holm", "finds"]
    blocks = [map(item, notes), table(head, rows), map(item, reading)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _paired(a: Side, b: Side, store: Store) -> "tuple[list[Key], _Said, _Said]":
    """The folds and seeds that both sides have, and what each of them says there."""
    ours, theirs = a.by_key(), b.by_key()
    shared = sorted(key for key in ours if key in theirs)
    if not shared:
        kept = (f"{own.name} has {_listed([*own.by_key()])}" for own in (a, b))
        raise RefusedError(f"no fold and seed in common: {'; '.join(kept)}")
    first, second = (_Said.of([own[key] for key in shared], store) for own in (ours, theirs))
    if not np.array_equal(first.rows, second.rows):
        raise RefusedError(f"{a.name} and {b.name} were not tested on the same videos")
    return shared, first, second


def _both(what: str, values: tuple[float, float]) -> str:
    return f"{what}: A {100 * values[0]:.1f}, B {100 * values[1]:.1f}"


def _row(line: Line, corrected: float) -> list[str]:
    scores = [own.text(".1f", 100) for own in (line.a, line.b)]
    difference = line.difference
    p_values = [_p(p) for p in (difference.p, corrected)]
    known = 0 < difference.detectable < 1  # of few videos it may not be
    found = f"{100 * difference.detectable:.1f}" if known else "–"
    return [line.name, *scores, difference.text("+.1f", 100), *p_values, found]


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<.001"


@dataclass(frozen=True)
class _Said:
    """What runs say of their test videos, in an order that does not depend on the side."""

    rows: NDArray[np.int64]  # of the store
    labels: NDArray[np.int64]
    logits_NK: NDArray[np.float64]
    networks: Sequence[Key]

    @classmethod
    def of(cls, records: Sequence[Record], store: Store) -> "_Said":
        rows = [_rows(record, store) for record in records]
        order = [np.argsort(own) for own in rows]
        logits = [record.logits()[own] for record, own in zip(records, order, strict=True)]
        every = np.concatenate([np.sort(own) for own in rows])
        keys = [(record.run.fold, record.run.seed) for record in records]
        networks = [key for key, own in zip(keys, rows, strict=True) for _ in own]
        return cls(every, store.labels[every], np.concatenate(logits), networks)

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.logits_NK.argmax(1) == self.labels

    @property
    def ece(self) -> float:
        return reliability(self.logits_NK, self.labels).ece

    @property
    def aurc(self) -> float:
        return risk_coverage(self.logits_NK, self.labels).aurc

    def sample(self, store: Store) -> Sample:
        predicted = self.logits_NK.argmax(1)
        return Sample(self.labels, predicted, store.people(self.rows.tolist()), self.networks)


def _rows(record: Record, store: Store) -> NDArray[np.int64]:
    """The store's rows of the test videos, whose labels must be those of the run."""
    ids, labels, _ = record.predictions()
    known = record.metadata.get("classes") == list(store.classes) and {*ids} <= {*store.ids}
    rows = store.rows_of(ids) if known else np.empty(0, np.int64)
    if not known or not np.array_equal(store.labels[rows], labels):
        raise RefusedError(
            f"{record.folder} was not tested on videos of {store.path} and its labels; name the "
            "store of the runs with --store"
        )
    return rows


def _lines(a: Sample, b: Sample, present: set[str], store: Store) -> list[Line]:
    metrics = named_metrics(
        ["UAR", "WAR", *(k for k in store.classes if k in present)], store.classes
    )
    every, classes = list(metrics.values()), len(store.classes)
    sides = [bootstrap(own, classes, metrics=every) for own in (a, b)]
    differences = bootstrap_difference(b, a, classes, metrics=every)
    return [Line(*own) for own in zip(metrics, *sides, differences, strict=True)]


def _name(side: Side, shared: Sequence[Key]) -> str:
    left = len(side.records) - len(shared)
    name = mark_optimistic(side.name, side.records[0].run.method.selection)
    return f"{name}; {left} of its runs have no counterpart" if left else name


def _listed(keys: Sequence[Key]) -> str:
    return ", ".join(f"fold {fold} seed {seed}" for fold, seed in keys) or "none"
