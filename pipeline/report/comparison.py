"""Predictions of several methods on one store -> one table with 95 % bootstrap intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.store import Store
from pipeline.evaluate.baselines import PredictedLabels
from pipeline.evaluate.statistics import bootstrap, bootstrap_difference
from pipeline.report.ablation import describe_runs
from pipeline.report.written import write_reports
from pipeline.show import markdown_line, show
from pipeline.train.record import Record


def of_runs(
    name: str, records: Sequence[Record | None], store: Store
) -> tuple[PredictedLabels, list[Record]]:
    """(test predictions of runs over all folds and seeds, the records they come from).

    A run that is not finished, diverged or is damaged counts only in the name.
    """
    good = [record for record in records if record is not None and record.ok]
    statuses = [record.status for record in records if record is not None]
    if len(good) < len(records):
        lost = (statuses.count("diverged"), statuses.count("damaged"))
        name = f"{name} ({describe_runs(len(good), len(records), *lost)})"
    rows, predicted = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for record in good:
        ids, _, guesses = record.predictions()
        rows.append(store.rows_of(ids))
        predicted.append(guesses)
    seeds = len({record.run.seed for record in good})
    return PredictedLabels(name, np.concatenate(rows), np.concatenate(predicted), seeds), good


def comparison_table(
    store: Store,
    methods: Sequence[PredictedLabels],
    header: Mapping[str, str],
    baseline: PredictedLabels | None = None,
) -> str:
    """Markdown: UAR and WAR in per cent, [95 % interval], n.

    The folds are pooled, so every video counts once per seed. All videos of a person are resampled
    together (``Store.people``). With a ``baseline``, the differences to it, paired by video.
    """
    resamples = f"95 %, 2,000 bootstrap resamples of {_resampled(store)}, folds pooled"
    notes = {**header, "intervals": resamples}
    columns = ["method", "UAR", "WAR", "videos", "seeds"]
    if baseline is not None:
        notes["differences"] = f"to {baseline.name}, paired by video, not corrected"
        columns[3:3] = ["UAR difference", "WAR difference"]
    lines = [
        "# Comparison of methods",
        "",
        *[f"- {name}: {show(text)}" for name, text in notes.items()],
    ]
    lines += ["", markdown_line(columns), markdown_line(["---"] * len(columns))]
    for method in methods:
        videos = len(set(method.rows.tolist()))
        cells = [method.name, *_scores(method, store)]
        if baseline is not None:
            cells += _differences(method, baseline, store)
        lines.append(markdown_line([*cells, videos, method.seeds]))
    return "\n".join(lines) + "\n"


def best_of(methods: Sequence[PredictedLabels], store: Store) -> PredictedLabels:
    """The one with the highest WAR."""
    return max(methods, key=lambda own: (own.predicted == store.labels[own.rows]).mean())


def write_comparison(text: str, out: Path) -> Path:
    """Write the table to ``comparison.md`` in ``out``."""
    return write_reports({"comparison.md": text}, out)[0]


def _scores(method: PredictedLabels, store: Store) -> list[str]:
    """UAR and WAR with their intervals."""
    if not len(method.rows):
        return ["–", "–"]
    intervals = bootstrap(
        store.labels[method.rows],
        method.predicted,
        len(store.classes),
        store.people(method.rows),
    )
    return [interval.text(".1f", 100) for interval in intervals]


def _differences(method: PredictedLabels, baseline: PredictedLabels, store: Store) -> list[str]:
    """UAR and WAR minus those of the baseline on the same videos; – if it lacks one of them."""
    said = dict(zip(baseline.rows.tolist(), baseline.predicted.tolist(), strict=True))
    if method is baseline or not len(method.rows) or not said.keys() >= set(method.rows.tolist()):
        return ["–", "–"]
    intervals = bootstrap_difference(
        store.labels[method.rows],
        method.predicted,
        np.array([said[row] for row in method.rows.tolist()]),
        len(store.classes),
        store.people(method.rows),
    )
    return [interval.text("+.1f", 100) for interval in intervals]


def _resampled(store: Store) -> str:
    """What ``Store.people`` tells apart."""
    known = [subject is not None for subject in store.subjects]
    if all(known):
        return "people"
    return "people, and of videos of unknown people" if any(known) else "videos"
