"""Runs -> stacks -> their records, on one GPU or all CPU cores; finished runs are not repeated."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.errors import RefusedError
from cache.identity import flatten, side_by_side
from cache.remote import RemotePath, StorePath
from cache.store import Store, open_store
from pipeline.config import Run, stack_key
from pipeline.train.records import read_result, run_folder, write_outcome
from pipeline.train.state import NAME as STATE
from pipeline.train.state import begun_epochs, read_state, write_state

if TYPE_CHECKING:
    from pipeline.train.stack import TrainingData

Progress = Callable[[int], None]  # called with the number of run-epochs done since the last call

STACK_ON_CPU = 5  # runs in a stack: one method's five folds

# glibc gives large blocks back to the system after every use and fetches them again page by page.
# Keeping them made a training step on the CPU 1.7 times faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


@dataclass(frozen=True)
class Place:
    """Where runs get their features, leave their records and are trained."""

    store: StorePath
    runs: Path
    device: str  # as pipeline.device.choose_device gives it
    keep_seconds: float = 60.0  # between two times that the state of an unfinished stack is kept


def pending_runs(runs: Sequence[Run], store: Store, root: Path) -> list[Run]:
    """The runs that have no record yet, each once."""
    return [run for run in dict.fromkeys(runs) if read_result(root, run, store) is None]


def check_runs(runs: Sequence[Run], store: Store, *, allow_missing: bool = False) -> None:
    """Refuse, before any training, what this store cannot train.

    Raises RefusedError for an unknown fold, settings that do not fit the features, and videos
    without features unless ``allow_missing``.
    """
    if store.missing and not allow_missing:
        first, reason = next(iter(store.missing.items()))
        raise RefusedError(
            f"{store.path}: {len(store.missing)} of {len(store.ids)} videos have no features, e.g. "
            f"{first}: {reason}; mend them and extract again, or train without them with "
            "--allow-missing"
        )
    check_shapes(runs, store)
    for run in runs:
        _check_identity(run, store)
        if run.method.optimiser.lr_encoder:
            raise RefusedError(
                f"optimiser.lr_encoder={run.method.optimiser.lr_encoder} trains the image encoder, "
                "which cached features cannot; use --no-cached"
            )
        if store.identity.fold not in ("all", run.fold):
            raise RefusedError(
                f"{store.path} was extracted with an encoder trained on fold {store.identity.fold} "
                f"and would leak test videos into fold {run.fold}; use --fold {store.identity.fold}"
            )
        _check_views(run, store)


def check_shapes(runs: Sequence[Run], store: Store) -> None:
    """Refuse unknown folds and settings that do not fit the features' shape."""
    folds = [name for name, _, _ in store.folds]
    for run in runs:
        if run.fold not in folds:
            raise RefusedError(f"{store.path} has no fold {run.fold}; it has {', '.join(folds)}")
        run.method.temporal.tokens(store.frames)
        run.method.temporal.heads(store.dim)


def _check_identity(run: Run, store: Store) -> None:
    made = flatten(store.identity.model_dump(mode="json"))
    asked = run.method.store.asked()
    rows = [(name, str(made[name]), str(v)) for name, v in asked.items() if made[name] != v]
    if rows:
        raise RefusedError(
            f"{store.path} was made from something else:\n{side_by_side(rows)}\nchoose another "
            "--store, extract one that is as asked for, or change [store] in the configuration"
        )


def _check_views(run: Run, store: Store) -> None:
    if run.method.optimiser.views >= max(store.views, 2):
        raise RefusedError(
            f"optimiser.views={run.method.optimiser.views}, but {store.path} has "
            f"{store.views - 1} augmented views; add some with: tgdfer extract --views "
            f"{run.method.optimiser.views + 1}"
        )


def stacks_of(
    runs: Sequence[Run],
    size_max: int,
    frames: int,
    begun: Callable[[Run], int] = lambda run: 0,
) -> list[list[Run]]:
    """Runs that can train as one program together, at most ``size_max`` in a stack.

    Runs of a stack have done the same number of epochs, ``begun``. Costly stacks come first.
    """

    def key(run: Run) -> tuple[str, int]:
        return stack_key(run.method), begun(run)

    stacks = []
    for _, same in groupby(sorted(runs, key=key), key=key):
        group = list(same)
        stacks += [group[i : i + size_max] for i in range(0, len(group), size_max)]
    return sorted(stacks, key=lambda s: -len(s) * s[0].method.temporal.tokens(frames))


def train_runs(
    runs: Sequence[Run],
    place: Place,
    progress: Progress = lambda run_epochs: None,
    workers: int | None = None,
) -> None:
    """Train ``runs`` and write their records; on the CPU, stacks share the cores as processes.

    A store that only this process can read is trained in this process.  Raises RuntimeError if a
    training process dies; the records of finished runs are kept.
    """
    store = open_store(place.store)

    def begun(run: Run) -> int:
        return begun_epochs(run_folder(place.runs, run, store))

    on_cpu = place.device == "cpu"
    here = not on_cpu or _is_private(place.store)
    workers = 1 if here else min(workers or os.cpu_count() or 1, len(runs))
    size_max = min(STACK_ON_CPU, -(-len(runs) // workers)) if on_cpu else len(runs)
    stacks = stacks_of(runs, size_max, store.frames, begun)
    if not here:
        _train_on_cores(stacks, place, workers, progress)
        return
    data = _load(place)
    for stack in stacks:
        _train_what_fits(data, stack, place, progress)


def _train_what_fits(
    data: "TrainingData", stack: Sequence[Run], place: Place, progress: Progress
) -> None:
    """Train a stack on a GPU; in two halves, one after the other, where its memory is too small."""
    import torch

    try:
        train_and_record(data, stack, place.runs, progress, place.keep_seconds)
        return
    except torch.cuda.OutOfMemoryError as error:
        if len(stack) == 1:
            error.add_note("one run alone does not fit; use a smaller optimiser.batch")
            raise
    torch.cuda.empty_cache()
    half = len(stack) // 2
    _train_what_fits(data, stack[:half], place, progress)
    _train_what_fits(data, stack[half:], place, progress)


def train_and_record(
    data: "TrainingData",
    stack: Sequence[Run],
    root: Path,
    progress: Progress,
    keep_seconds: float | None = None,
) -> None:
    """Train one stack in this process and write its records.

    Goes on from kept states. The states of unfinished runs are kept every ``keep_seconds``, or
    never where that is None: the state of a trained encoder is not a run's own.
    """
    from pipeline.train.stack import Stack, train_stack

    folders = [run_folder(root, run, data.store) for run in stack]
    kept_before = [] if keep_seconds is None else [read_state(folder) for folder in folders]
    states = [state for state in kept_before if state is not None]
    begun = states if len(states) == len(stack) else []
    start = kept = time.perf_counter()

    def keep(unfinished: Stack) -> None:
        nonlocal kept
        if keep_seconds is None or time.perf_counter() - kept < keep_seconds:
            return
        for r, folder in enumerate(folders):
            write_state(folder, unfinished.state(r), root / ".tmp")
        kept = time.perf_counter()

    outcomes = train_stack(data, stack, lambda epochs: progress(epochs * len(stack)), begun, keep)
    seconds = (time.perf_counter() - start) / len(stack)
    for outcome in outcomes:
        folder = write_outcome(root, outcome, data.store, seconds)
        (folder / STATE).unlink(missing_ok=True)


def _is_private(store: StorePath) -> bool:
    return isinstance(store, RemotePath) and store.is_private


def _load(place: Place) -> "TrainingData":
    import torch

    from pipeline.train.stack import load_training_data

    return load_training_data(open_store(place.store), torch.device(place.device))


# What a spawned process keeps between its stacks: where it trains, progress messages.
_worker: tuple[Place, Any]


def _start_worker(place: Place, threads: int, messages: Any) -> None:
    import torch

    global _worker
    torch.set_num_threads(threads)
    _worker = (place, messages)


# Not part of the start: what fails there leaves a dead process instead of its reason.
_load_once = cache(_load)


def _train_in_worker(stack: Sequence[Run]) -> None:
    place, messages = _worker
    train_and_record(_load_once(place), stack, place.runs, messages.put, place.keep_seconds)


def _train_on_cores(
    stacks: Sequence[Sequence[Run]], place: Place, workers: int, progress: Progress
) -> None:
    context = get_context("spawn")
    messages = context.Queue()
    listener = threading.Thread(target=_listen, args=(messages, progress))
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.update(KEEP_MEMORY)
    listener.start()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (place, threads, messages))
    try:
        for task in as_completed([pool.submit(_train_in_worker, stack) for stack in stacks]):
            task.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a training process died, perhaps for lack of memory; finished runs are kept, so run "
            "the same command again, with --workers 1 if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name in KEEP_MEMORY:
            with suppress(KeyError):
                del os.environ[name]
        messages.put(None)
        listener.join()


def _listen(messages: Any, progress: Progress) -> None:
    while (run_epochs := messages.get()) is not None:
        progress(run_epochs)
