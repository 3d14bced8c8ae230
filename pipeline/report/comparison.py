"""Predictions of several methods on one store -> one table with 95 % bootstrap intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.store import Store
from pipeline.evaluate.baselines import PredictedLabels
from pipeline.evaluate.statistics import Interval, bootstrap
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
    row_of = {video_id: row for row, video_id in enumerate(store.ids)}
    rows, predicted = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for record in good:
        ids, _, guesses = record.predictions()
        rows.append(np.array([row_of[video_id] for video_id in ids]))
        predicted.append(guesses)
    seeds = len({record.run.seed for record in good})
    return PredictedLabels(name, np.concatenate(rows), np.concatenate(predicted), seeds), good


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
    lines = [
        "# Comparison of methods",
        "",
        *[f"- {name}: {show(text)}" for name, text in notes.items()],
    ]
    lines += ["", "| method | UAR | WAR | videos | seeds |", "| --- | --- | --- | --- | --- |"]
    for method in methods:
        videos = len(set(method.rows.tolist()))
        lines.append(markdown_line([method.name, *_scores(method, store), videos, method.seeds]))
    return "\n".join(lines) + "\n"


def write_comparison(text: str, out: Path) -> Path:
    """Write the table to ``comparison.md`` in ``out``."""
    return write_reports({"comparison.md": text}, out)[0]


def _scores(method: PredictedLabels, store: Store) -> list[str]:
    """UAR and WAR with their intervals."""
    if not len(method.rows):
        return ["–", "–"]
    grouped = any(subject is not None for subject in store.subjects)
    groups = store.subjects if grouped else store.ids
    intervals = bootstrap(
        store.labels[method.rows],
        method.predicted,
        len(store.classes),
        [groups[row] for row in method.rows],
    )
    return [_per_cent(interval) for interval in intervals]


def _per_cent(value: Interval) -> str:
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
