"""Predictions of several methods on one store -> one table with 95 % bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.store import Store
from pipeline.evaluate.baselines import PredictedLabels
from pipeline.evaluate.statistics import bootstrap, bootstrap_difference
from pipeline.markdown import item, table
from pipeline.report.ablation import describe_intervals, describe_runs, mark_optimistic
from pipeline.report.written import write_reports
from pipeline.train.record import Record


def of_runs(
    name: str, records: Sequence[Record | None], store: Store
) -> tuple[PredictedLabels, list[Record]]:
    """(test predictions of runs over all folds and seeds, the records they come from).

    A run that is not finished, diverged or is damaged counts only in the name, which also says if
    epochs were selected on test videos.
    """
    good = [record for record in records if record is not None and record.ok]
    statuses = [record.status for record in records if record is not None]
    if good:
        name = mark_optimistic(name, good[0].run.method.selection)
    if len(good) < len(records):
        lost = (statuses.count("diverged"), statuses.count("damaged"))
        name = f"{name} ({describe_runs(len(good), len(records), *lost)})"
    rows, predicted = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    networks = []
    for record in good:
        ids, _, guesses = record.predictions()
        rows.append(store.rows_of(ids))
        predicted.append(guesses)
        networks += [(record.run.fold, record.run.seed)] * len(ids)
    said = PredictedLabels(name, np.concatenate(rows), np.concatenate(predicted), networks)
    return said, good


def comparison_table(
    store: Store,
    methods: Sequence[PredictedLabels],
    header: Mapping[str, str],
    references: Mapping[str, PredictedLabels] | None = None,
) -> str:
    """Markdown: UAR and WAR in per cent, [95 % interval], n.

    The folds are pooled, so every video counts once per seed. All videos of a person are resampled
    together (``Store.people``), and the networks of a fold if there are several. ``references``, by
    a short name each, are methods to which the differences are shown, on the same videos.
    """
    references = references or {}
    seeds = max((method.seeds for method in methods), default=1)
    folds = len({fold for method in methods for fold, _ in method.networks})
    notes = {**header, "intervals": f"{describe_intervals(store, seeds, folds)}, folds pooled"}
    columns = ["method", "UAR", "WAR", "videos", "seeds"]
    if references:
        named = (f"{short} is {own.name}" for short, own in references.items())
        notes["differences"] = f"paired by video, not corrected; {'; '.join(named)}"
    columns[3:3] = [f"{metric} − {short}" for short in references for metric in ("UAR", "WAR")]
    notes |= {method.name: method.note for method in methods if method.note}
    rows = []
    for method in methods:
        cells: list[object] = [method.name, *_scores(method, store)]
        for reference in references.values():
            cells += _differences(method, reference, store)
        rows.append([*cells, len(set(method.rows.tolist())), method.seeds])
    about = [item(f"{name}: {text}") for name, text in notes.items()]
    return "\n".join(["# Comparison of methods", "", *about, "", *table(columns, rows)]) + "\n"


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
    intervals = bootstrap(method.sample(store), len(store.classes))
    return [interval.text(".1f", 100) for interval in intervals]


def _differences(method: PredictedLabels, reference: PredictedLabels, store: Store) -> list[str]:
    """UAR and WAR minus those of the reference; – if it was not asked about the same videos."""
    asked = reference.among(method.rows)
    if method is reference or not _weigh_equally(method.rows, asked.rows):
        return ["–", "–"]
    samples = _in_folds(method, asked).sample(store), _in_folds(asked, method).sample(store)
    return [own.text("+.1f", 100) for own in bootstrap_difference(*samples, len(store.classes))]


def _in_folds(own: PredictedLabels, other: PredictedLabels) -> PredictedLabels:
    """With the folds of the other, if it has networks of its own and this has none."""
    if own.networks or not other.networks:
        return own
    fold_of = {
        row: fold for row, (fold, _) in zip(other.rows.tolist(), other.networks, strict=True)
    }
    return replace(own, networks=[(fold_of[row], 0) for row in own.rows.tolist()])


def _weigh_equally(rows: NDArray[np.int64], others: NDArray[np.int64]) -> bool:
    """Whether both name the same videos, each of them equally often."""
    (named, times), (also, times_also) = (
        np.unique(each, return_counts=True) for each in (rows, others)
    )
    return np.array_equal(named, also) and len({*times}) == len({*times_also}) == 1
