"""Records of runs -> the ablation tables: Markdown to read, CSV to compute with, LaTeX to print.

A table is a pure function of the result files. Missing and diverged runs show as what they are.
"""

import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cache.files import make_directories, write_files
from cache.store import Store
from pipeline.report.influence import repool
from pipeline.report.metrics import confusion, uar, war
from pipeline.train.config import MethodConfig
from pipeline.train.records import Result, read_result
from pipeline.train.tables import FrameChoice, Row, Table, runs_of

REPORTED = "as reported in the paper for DFEW"
SELECTION = {
    "last": "the last epoch",
    "best_on_val": "the best epoch on videos held out of the training part",
    "best_on_test": "the best epoch on the test videos, which is optimistic",
}


@dataclass(frozen=True)
class Cell:
    """UAR or WAR of a row over its runs, in per cent."""

    mean: float | None  # None while no run is finished
    deviation: float | None  # sample standard deviation over runs; None for fewer than two

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


@dataclass(frozen=True)
class TableRow:
    """One line of a finished table."""

    row: Row
    uar: Cell
    war: Cell
    done: int
    diverged: int
    expected: int
    reported: Mapping[str, float]

    @property
    def n(self) -> str:
        """Number of runs, with a word where some are missing."""
        notes = [
            str(self.done) if self.done == self.expected else f"{self.done} of {self.expected}"
        ]
        if self.diverged:
            notes.append(f"{self.diverged} diverged")
        return ", ".join(notes)


def collect(
    table: Table,
    base: MethodConfig,
    folds: Sequence[str],
    seeds: Sequence[int],
    store: Store,
    runs_root: Path,
) -> list[TableRow]:
    """Read the records of a table's runs."""
    reported = tomllib.loads(files("pipeline.report").joinpath("reported.toml").read_text())
    rows = []
    for row in table.rows:
        runs = runs_of(row.method(base), folds, seeds)
        found = [read_result(runs_root, run, store) for run in runs]
        results = [result for result in found if result is not None]
        good = [result for result in results if result.ok]
        scores = [_score(result, row.choice, len(store.classes)) for result in good]
        rows.append(
            TableRow(
                row=row,
                uar=_cell([score[0] for score in scores]),
                war=_cell([score[1] for score in scores]),
                done=len(good),
                diverged=len(results) - len(good),
                expected=len(runs),
                reported=reported.get(table.name, {}).get(row.name, {}),
            )
        )
    return rows


def write_tables(
    tables: Sequence[tuple[Table, list[TableRow]]], facts: Mapping[str, str], out: Path
) -> list[Path]:
    """Write ``ablation.md``, ``.csv`` and ``.tex`` to ``out``; returns their paths.

    ``facts`` says what stands in the tables: data set, encoder, protocol, digests.
    """
    contents = {
        "ablation.md": _markdown(tables, facts),
        "ablation.csv": _frame(tables).to_csv(index=False),
        "ablation.tex": _latex(tables, facts),
    }
    make_directories(out / ".tmp")
    write_files({out / name: text.encode() for name, text in contents.items()}, out / ".tmp")
    (out / ".tmp").rmdir()
    return [out / name for name in contents]


def facts_of(store: Store, base: MethodConfig, folds: int, seeds: int) -> dict[str, str]:
    """What a reader must know of a table's numbers."""
    synthetic = " (rendered; not comparable with DFEW)" if store.name == "faces" else ""
    optimiser = base.optimiser
    return {
        "data": f"{store.name}{synthetic}, {len(store.ids)} videos, {len(store.missing)} missing",
        "encoder": f"{store.identity.encoder.name}, frozen, {store.views} views of a video",
        "protocol": f"{folds} folds x {seeds} seeds, {optimiser.epochs} epochs",
        "reported": SELECTION[base.selection.rule],
        "spread": "mean ± sample standard deviation over the runs, in per cent",
        "store": store.digest,
    }


def _score(result: Result, choice: FrameChoice | None, classes: int) -> tuple[float, float]:
    """(UAR, WAR) of a run, in per cent, from all frames or from the chosen ones."""
    if choice is None:
        return 100 * result.summary["uar"], 100 * result.summary["war"]
    _, labels, predicted = result.predictions()
    again = repool(result.frame_logits(), predicted, choice.influence, choice.frames)
    counts = confusion(labels, again, classes)
    return 100 * float(uar(counts)), 100 * float(war(counts))


def _cell(values: Sequence[float]) -> Cell:
    return Cell(
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def _markdown(tables: Sequence[tuple[Table, list[TableRow]]], facts: Mapping[str, str]) -> str:
    lines = ["# Ablation tables", "", *[f"- {name}: {text}" for name, text in facts.items()]]
    for table, rows in tables:
        reported = f"{{}}, {REPORTED}"
        header = ["", *table.columns, "UAR", "WAR", "n"]
        header += [reported.format("UAR"), reported.format("WAR")]
        lines += ["", f"## {table.title}", "", _line(header), _line(["---"] * len(header))]
        for line in rows:
            ours = [line.row.name, *line.row.cells, str(line.uar), str(line.war), line.n]
            theirs = [_reported(line, metric) for metric in ("uar", "war")]
            lines.append(_line([*ours, *theirs]))
    return "\n".join(lines) + "\n"


def _reported(line: TableRow, metric: str) -> str:
    return f"{line.reported[metric]:.2f}" if line.reported else "–"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _frame(tables: Sequence[tuple[Table, list[TableRow]]]) -> Any:
    import pandas as pd

    records = []
    for table, rows in tables:
        for line in rows:
            record: dict[str, Any] = {"table": table.name, "row": line.row.name}
            record |= dict(zip(table.columns, line.row.cells, strict=True))
            for metric in ("uar", "war"):
                cell: Cell = getattr(line, metric)
                record[f"{metric}_mean"], record[f"{metric}_std"] = cell.mean, cell.deviation
            record |= {"n": line.done, "diverged": line.diverged, "expected": line.expected}
            record |= {f"{metric}_reported_dfew": value for metric, value in line.reported.items()}
            records.append(record)
    return pd.DataFrame(records)


def _latex(tables: Sequence[tuple[Table, list[TableRow]]], facts: Mapping[str, str]) -> str:
    import pandas as pd

    parts = [f"% {name}: {text}" for name, text in facts.items()]
    for table, rows in tables:
        columns = ["", *table.columns, "UAR", "WAR", "$n$", "UAR (reported)", "WAR (reported)"]
        cells = [
            [
                line.row.name,
                *line.row.cells,
                *(
                    str(cell).replace("±", r"$\pm$").replace("–", "--")
                    for cell in (line.uar, line.war)
                ),
                line.n,
                _reported(line, "uar"),
                _reported(line, "war"),
            ]
            for line in rows
        ]
        caption = f"{table.title}. The last two columns stand {REPORTED}. {facts['data']}."
        parts.append(
            pd.DataFrame(cells, columns=columns)
            .style.hide(axis="index")
            .to_latex(
                hrules=True, caption=caption, label=f"tab:{table.name}", position_float="centering"
            )
        )
    return "\n".join(parts)
