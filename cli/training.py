"""What train, ablate and compare share: training with a progress bar."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.progress import progress

if TYPE_CHECKING:
    from cache.store import Store
    from pipeline.config import Run
    from pipeline.train.stack import TrainingData


def train_pending(
    runs: Sequence["Run"],
    store: "Store",
    root: Path,
    device: str,
    workers: int | None,
    allow_missing: bool,
) -> int:
    """Train the runs without a record, with a progress bar; returns how many there were."""
    from pipeline.device import choose_device
    from pipeline.train.grid import Place, check_runs, pending_runs, train_runs

    check_runs(runs, store, allow_missing=allow_missing)
    pending = pending_runs(runs, store, root)
    if not pending:
        return 0
    place = Place(store.path, root, choose_device(device))
    epochs = sum(run.method.optimiser.epochs for run in pending)
    with progress(f"training {len(pending)} runs", epochs, "epochs") as shown:
        train_runs(pending, place, shown.advance, workers)
    return len(pending)


def train_live(runs: Sequence["Run"], data: "TrainingData", root: Path) -> int:
    """Train the runs without a record one after the other in this process; returns how many."""
    from pipeline.train.grid import check_shapes, pending_runs, train_and_record

    check_shapes(runs, data.store)
    pending = pending_runs(runs, data.store, root)
    epochs = sum(run.method.optimiser.epochs for run in pending)
    with progress(f"training {len(pending)} runs without a cache", epochs, "epochs") as shown:
        for run in pending:
            train_and_record(data, [run], root, shown.advance)
    return len(pending)
