"""What train, ablate and compare share: options, and training with a progress bar."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.remote import StorePath, store_path

if TYPE_CHECKING:
    from pipeline.config import Run
    from pipeline.train.features import TrainingData
    from pipeline.train.records import Records

StoreOption = Annotated[
    StorePath,
    typer.Option(
        "--store",
        parser=store_path,
        metavar="PATH|URL",
        help="Feature store made by extract, also a copy at s3://, https://, zip://.",
    ),
]
ConfigOption = Annotated[
    str,
    typer.Option(
        "--config", metavar="PRESET|FILE", help="paper, equations, dfer-clip, or a TOML file."
    ),
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0 to N-1 for every fold.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder that holds one folder per run.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes on the CPU; default: one a core.")
]
MissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Train without the videos that have no features.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the tables.")]

DEFAULT_STORE, DEFAULT_RUNS, DEFAULT_OUT = Path("data/faces.zarr"), Path("runs"), Path("reports")


def train_pending(
    runs: Sequence["Run"],
    records: "Records",
    device: str,
    workers: int | None,
    allow_missing: bool,
) -> int:
    """Train the runs without a record, with a progress bar; returns how many there were."""
    from pipeline.device import choose_device
    from pipeline.train.grid import check_runs, train_runs

    check_runs(runs, records.store, allow_missing=allow_missing)
    pending = records.pending(runs)
    _print_others(runs, records)
    if not pending:
        return 0
    device = choose_device(device)
    epochs = sum(run.method.optimiser.epochs for run in pending)
    with _progress(f"training {len(pending)} runs", epochs) as advance:
        train_runs(pending, records, device, advance, workers)
    _print_claimed(pending, records)
    return len(pending)


def train_pending_live(runs: Sequence["Run"], data: "TrainingData", records: "Records") -> int:
    """Train the runs without a record one after the other in this process; returns how many."""
    from pipeline.train.grid import check_shapes, train_live

    check_shapes(runs, data.store)
    pending = records.pending(runs)
    _print_others(runs, records)
    epochs = sum(run.method.optimiser.epochs for run in pending)
    with _progress(f"training {len(pending)} runs without a cache", epochs) as advance:
        train_live(pending, data, records, advance)
    return len(pending)


def _print_others(runs: Sequence["Run"], records: "Records") -> None:
    from pipeline.train.records import describe_others

    for line in describe_others(records.others(runs)):
        print(f"not used: {line} (they stay in {records.root}; see tgdfer runs)", file=sys.stderr)


def _print_claimed(runs: Sequence["Run"], records: "Records") -> None:
    left = len(records.pending(runs))
    if left:
        print(
            f"{left} runs are being trained by another process; run the same command again when "
            "it is done",
            file=sys.stderr,
        )


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; a plain line at every tenth of the work elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TextColumn("epochs"), TimeElapsedColumn(), TimeRemainingColumn())
        with Bar(*columns, *times, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.advance(task, done)
        return
    print(f"{title}: {total} epochs in all", file=sys.stderr)
    state = {"done": 0, "said": 0}

    def advance(done: int) -> None:
        state["done"] += done
        tenth = 10 * state["done"] // max(total, 1)
        if tenth > state["said"]:
            state["said"] = tenth
            print(f"{title}: {state['done']} of {total} epochs", file=sys.stderr)

    yield advance
