"""Predictions of several methods on one store -> one table with 95 % bootstrap intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.store import Store
from pipeline.evaluate.baselines import PredictedLabels
from pipeline.evaluate.statistics import Interval, bootstrap
from pipeline.report.written import write_reports
from pipeline.train.records import Record


def of_runs(name: str, records: Sequence[Record], store: Store) -> PredictedLabels:
    """Test predictions of runs over all folds and seeds."""
    row_of = {video_id: row for row, video_id in enumerate(store.ids)}
    rows, predicted = [], []
    for record in records:
        ids, _, guesses = record.predictions()
        rows += [row_of[video_id] for video_id in ids]
        predicted.append(guesses)
    seeds = len({record.run.seed for record in records})
    return PredictedLabels(name, np.array(rows), np.concatenate(predicted), seeds)


def comparison_table(
    store: Store, methods: Sequence[PredictedLabels], header: Mapping[str, str]
) -> str:
    """Markdown: UAR and WAR in per cent, [95 % interval], n.

    The folds are pooled, so every video counts once per seed. All videos of a person are resampled
    together.
    """
    grouped = any(subject is not None for subject in store.subjects)
    unit = "people" if grouped else "videos"
    notes = {**header, "intervals": f"95 %, 2,000 bootstrap resamples of {unit}, folds pooled"}
    lines = ["# Comparison of methods", "", *[f"- {name}: {text}" for name, text in notes.items()]]
    lines += ["", "| method | UAR | WAR | videos | seeds |", "| --- | --- | --- | --- | --- |"]
    for method in methods:
        groups = store.subjects if grouped else store.ids
        uar, war = bootstrap(
            store.labels[method.rows],
            method.predicted,
            len(store.classes),
            [groups[row] for row in method.rows],
        )
        videos = len(set(method.rows.tolist()))
        lines.append(
            f"| {method.name} | {_per_cent(uar)} | {_per_cent(war)} | {videos} | {method.seeds} |"
        )
    return "\n".join(lines) + "\n"


def write_comparison(text: str, out: Path) -> Path:
    """Write the table to ``comparison.md`` in ``out``."""
    return write_reports({"comparison.md": text}, out)[0]


def _per_cent(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
