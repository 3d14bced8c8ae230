"""tgdfer train: TG-DFER on the features of a store."""

import statistics
from pathlib import Path
from typing import Annotated

import typer

from cli.training import (
    DEFAULT_RUNS,
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    MissingOption,
    RunsOption,
    SeedsOption,
    SetOption,
    StoreOption,
    WorkersOption,
    train_pending,
)


def train(
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = "paper",
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    fold: Annotated[str, typer.Option("--fold", help="A fold of the store, or all.")] = "all",
    seeds: SeedsOption = 1,
    runs: RunsOption = DEFAULT_RUNS,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    allow_missing: MissingOption = False,
    cached: Annotated[bool, typer.Option("--cached", help="Train from the store.")] = True,
) -> None:
    """Train TG-DFER from cached features: every fold, the last epoch reported.

    Finished runs are not repeated.

    - All folds of the embedded faces:  tgdfer train --cached

    - One fold, three seeds, another window:  tgdfer train --cached --fold 1 --seeds 3 --set
    temporal.window=8
    """
    from cache.store import open_store
    from pipeline.train.config import load_method
    from pipeline.train.tables import runs_of

    opened = open_store(store)
    method = load_method(config, settings)
    folds = [name for name, _, _ in opened.folds] if fold == "all" else [fold]
    wanted = runs_of(method, folds, range(seeds))
    trained = train_pending(wanted, opened, runs, device, workers, allow_missing)
    _print(wanted, opened, runs, trained)


def _print(wanted, opened, root: Path, trained: int) -> None:  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.table import Column, Table

    from pipeline.report.ablation import SELECTION
    from pipeline.train.records import read_result, run_folder

    table = Table("fold", "seed", "UAR %", "WAR %", Column("record", no_wrap=True))
    scores = []
    for run in wanted:
        result = read_result(root, run, opened)
        assert result is not None
        summary = result.summary
        cells = ["diverged", ""]
        if result.ok:
            scores.append((100 * summary["uar"], 100 * summary["war"]))
            cells = [f"{score:.2f}" for score in scores[-1]]
        folder = str(run_folder(root, run, opened))
        table.add_row(run.fold, str(run.seed), *cells, folder)
    if len(scores) > 1:
        cells = [
            f"{statistics.fmean(s):.2f} ± {statistics.stdev(s):.2f}"
            for s in zip(*scores, strict=True)
        ]
        table.add_section()
        table.add_row("mean ± sd", f"n={len(scores)}", *cells, "")
    console = Console()
    console.print(table)
    reported = SELECTION[wanted[0].method.selection.rule]
    console.print(f"{trained} runs trained, {len(wanted) - trained} already there.")
    console.print(f"Reported: {reported}.")
