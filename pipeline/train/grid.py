"""Runs -> stacks -> their records, on one GPU or all CPU cores; finished runs are not repeated."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from multiprocessing import active_children, get_context, parent_process
from typing import TYPE_CHECKING, Any

from cache.errors import RefusedError
from cache.identity import flatten, side_by_side
from cache.remote import RemotePath
from cache.store import Store
from pipeline.config import Run, stack_key
from pipeline.device import is_out_of_memory
from pipeline.interrupt import StoppedError, stop_on_signal
from pipeline.show import show
from pipeline.train.code import code_files
from pipeline.train.leaks import refuse_leaks
from pipeline.train.records import Records

if TYPE_CHECKING:
    from pipeline.train.features import TrainingData
    from pipeline.train.stack import Stack
    from pipeline.train.state import RunState

OnEpochs = Callable[[int], None]  # called with the number of run-epochs done since the last call

STACK_ON_CPU = 5  # runs in a stack: one method's five folds
KEEP_SECONDS = 60.0  # between saves of an unfinished stack's state

# glibc returns large blocks to the system after each use and gets them back page by page. Keeping
# them made a training step on the CPU 1.7 times faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def check_runs(
    runs: Sequence[Run],
    store: Store,
    *,
    allow_missing: bool = False,
    allow_duplicates: bool = False,
) -> None:
    """Refuse, before any training, runs that this store cannot train.

    Raises RefusedError for an unknown fold, settings that do not fit the features, videos without
    features unless ``allow_missing``, or the same video in training and test unless
    ``allow_duplicates``.
    """
    if store.missing and not allow_missing:
        first, reason = next(iter(store.missing.items()))
        raise RefusedError(
            f"{store.path}: {len(store.missing)} of {len(store.ids)} videos have no features, e.g. "
            f"{first}: {reason}; fix them and extract again, or train without them with "
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
    if not allow_duplicates:
        refuse_leaks(store, {run.fold for run in runs})


def check_shapes(runs: Sequence[Run], store: Store) -> None:
    """Refuse unknown folds, and settings that do not fit the shape of the features."""
    folds = [name for name, _, _ in store.folds]
    for run in runs:
        if run.fold not in folds:
            raise RefusedError(f"{store.path} has no fold {run.fold}; it has {', '.join(folds)}")
        run.method.temporal.tokens(store.frames)
        run.method.temporal.heads(store.dim)
        label = run.method.label
        if label.pooling == "top_k" and label.top_k > store.frames:
            raise RefusedError(
                f"label.top_k={label.top_k} is more than the {store.frames} frames of a video"
            )


def _check_identity(run: Run, store: Store) -> None:
    made = flatten(store.identity.model_dump(mode="json"))
    asked = run.method.store.requirements()
    rows = [(name, str(made[name]), str(v)) for name, v in asked.items() if made[name] != v]
    if rows:
        raise RefusedError(
            f"{store.path} is not the store that was asked for:\n{side_by_side(rows)}\nchoose "
            "another --store, extract one that matches, or change [store] in the configuration"
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
    epochs_done: Callable[[Run], int] = lambda run: 0,
) -> list[list[Run]]:
    """Group runs that can train as one program, at most ``size_max`` per stack.

    Runs in a stack have the same number of ``epochs_done``. The costliest stacks come first.
    """

    def key(run: Run) -> tuple[str, int]:
        return stack_key(run.method), epochs_done(run)

    stacks = []
    for _, same in groupby(sorted(runs, key=key), key=key):
        group = list(same)
        stacks += [group[i : i + size_max] for i in range(0, len(group), size_max)]
    return sorted(stacks, key=lambda s: -len(s) * s[0].method.temporal.tokens(frames))


def train_runs(
    runs: Sequence[Run],
    records: Records,
    device: str,
    on_epochs: OnEpochs = lambda run_epochs: None,
    workers: int | None = None,
    keep_seconds: float = KEEP_SECONDS,
) -> None:
    """Train ``runs`` and write their records; on the CPU, several processes share the stacks.

    ``workers`` is the number of processes, by default one per core; 0 trains in this process, and
    so does a store that only this process can read. ``device`` comes from ``choose_device``. Runs
    that another process is training are left to it. The first SIGINT or SIGTERM stops the work
    after the current epoch, saves its state and raises StoppedError. Raises RuntimeError if a
    training process dies; the records of finished runs are kept.
    """
    on_cpu = device == "cpu"
    here = workers == 0 or not on_cpu or _is_private(records.store)
    workers = 1 if here else min(workers or os.cpu_count() or 1, len(runs))
    size_max = min(STACK_ON_CPU, -(-len(runs) // workers)) if on_cpu else len(runs)
    stacks = stacks_of(runs, size_max, records.store.frames, records.epochs_kept)
    if here:
        _train_here(stacks, records, device, on_epochs, keep_seconds)
    else:
        _train_on_cores(stacks, _WorkerSetup(records, keep_seconds), workers, on_epochs)


def _train_here(
    stacks: Sequence[Sequence[Run]],
    records: Records,
    device: str,
    on_epochs: OnEpochs,
    keep_seconds: float,
) -> None:
    data = _load_onto(device, records.store)
    with stop_on_signal("the current epoch") as stop:
        trainer = _Trainer(data, records, on_epochs, keep_seconds, lambda: bool(stop.signal))
        for stack in stacks:
            trainer.train_what_fits(stack)
            if stop.signal:
                raise StoppedError(stop.signal)


def _load_onto(device: str, store: Store) -> "TrainingData":
    import torch

    from pipeline.train.features import load_training_data

    try:
        return load_training_data(store, torch.device(device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        size = 2 * len(store.ids) * store.views * store.frames * store.dim / 2**30  # float16
        raise RefusedError(
            f"the features of {store.path} take {size:.1f} GiB, {device} has {free:.1f} of "
            f"{total:.1f} GiB free; use --device cpu, or a store with fewer --views"
        ) from error


def train_live(
    runs: Sequence[Run], data: "TrainingData", records: Records, on_epochs: OnEpochs
) -> None:
    """Train runs one after the other in this process, computing features in every step.

    No unfinished state is saved, since a run's state does not include a trained encoder.
    """
    after = "Finished runs are kept; the current one starts again."
    with stop_on_signal("the current epoch", after=after) as stop:
        trainer = _Trainer(data, records, on_epochs, None, lambda: bool(stop.signal))
        for run in runs:
            trainer.train([run])
            if stop.signal:
                raise StoppedError(stop.signal)


class _StopNowError(Exception):
    """Raised between two epochs, after the state was saved."""


@dataclass(frozen=True)
class _Trainer:
    """Trains stacks in this process and writes their records.

    The states of unfinished runs are saved every ``keep_seconds`` and when asked to stop, or never
    if it is None.
    """

    data: "TrainingData"
    records: Records
    on_epochs: OnEpochs
    keep_seconds: float | None
    stopped: Callable[[], bool]

    def train_what_fits(self, stack: Sequence[Run]) -> None:
        """Train a stack, or its two halves in turn if the GPU's memory is too small."""
        import torch

        try:
            self.train(stack)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(stack) == 1:
                raise RefusedError(
                    f"not even one run fits in the memory of {self.data.device}; use a smaller "
                    "optimiser.batch, or --device cpu"
                ) from error
        # Only now, when the error no longer keeps the failed stack alive.
        torch.cuda.empty_cache()
        half = len(stack) // 2
        self.train_what_fits(stack[:half])
        self.train_what_fits(stack[half:])

    def train(self, stack: Sequence[Run]) -> None:
        """Train the runs of a stack that no other process is training, from any saved states."""
        with self.records.claim(stack) as runs, suppress(_StopNowError):
            if runs and not self.stopped():
                self._train(runs)

    def _train(self, runs: Sequence[Run]) -> None:
        from pipeline.train.stack import train_stack
        from pipeline.train.state import StateError

        start = kept = time.perf_counter()

        def keep(unfinished: "Stack") -> None:
            nonlocal kept
            stopped, now = self.stopped(), time.perf_counter()
            if self.keep_seconds is not None and (stopped or now - kept >= self.keep_seconds):
                for r, run in enumerate(runs):
                    self.records.write_state(run, unfinished.state(r))
                kept = time.perf_counter()
            if stopped and unfinished.epoch < runs[0].method.optimiser.epochs:
                raise _StopNowError

        def advance(epochs: int) -> None:
            self.on_epochs(epochs * len(runs))

        try:
            outcomes = train_stack(self.data, runs, advance, self._kept_states(runs), keep)
        except StateError as error:
            print(show(error), file=sys.stderr)
            outcomes = train_stack(self.data, runs, advance, keep=keep)
        seconds = (time.perf_counter() - start) / len(runs)
        for outcome in outcomes:
            self.records.write(outcome, seconds)

    def _kept_states(self, runs: Sequence[Run]) -> "list[RunState]":
        """The saved states of the runs of a stack; none unless all have the same epochs done."""
        states = [] if self.keep_seconds is None else [self.records.read_state(r) for r in runs]
        kept = [state for state in states if state is not None]
        together = len(kept) == len(runs) and len({state.epoch for state in kept}) == 1
        return kept if together else []


def _is_private(store: Store) -> bool:
    return isinstance(store.path, RemotePath) and store.path.is_private


@dataclass(frozen=True)
class _WorkerSetup:
    """What every training process is given when it starts."""

    records: Records
    keep_seconds: float


# What a spawned process keeps between stacks: its job, its message queue, its stop event.
_worker: tuple[_WorkerSetup, Any, Any]


def _start_worker(job: _WorkerSetup, threads: int, messages: Any, stop: Any) -> None:
    import torch

    global _worker
    # The parent says when to stop, since a terminal sends its signals to every process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker = (job, messages, stop)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# Not in _start_worker, where a failure would leave a dead process and no reason.
@cache
def _trainer_of_worker() -> _Trainer:
    import torch

    from pipeline.train.features import load_training_data

    job, messages, stop = _worker
    if code_files() != job.records.code_files:
        raise RefusedError("the source changed as training started; run the same command again")
    data = load_training_data(job.records.store, torch.device("cpu"))
    return _Trainer(data, job.records, messages.put, job.keep_seconds, stop.is_set)


def _train_in_worker(stack: Sequence[Run]) -> None:
    _trainer_of_worker().train(stack)


def _train_on_cores(
    stacks: Sequence[Sequence[Run]], job: _WorkerSetup, workers: int, on_epochs: OnEpochs
) -> None:
    context = get_context("spawn")
    messages, stopping = context.Queue(), context.Event()
    listener = threading.Thread(target=_listen, args=(messages, on_epochs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ.update(KEEP_MEMORY)
    listener.start()
    arguments = (job, threads, messages, stopping)
    pool = ProcessPoolExecutor(workers, context, _start_worker, arguments)
    try:
        with stop_on_signal("the current epoch", stopping.set) as stop:
            for task in as_completed([pool.submit(_train_in_worker, stack) for stack in stacks]):
                task.result()
        if stop.signal:
            raise StoppedError(stop.signal)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a training process died, perhaps out of memory; finished runs are kept, so run the "
            "same command again, with --workers 1 if it happens again"
        ) from error
    except KeyboardInterrupt:
        for process in active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name in KEEP_MEMORY:
            with suppress(KeyError):
                del os.environ[name]
        messages.put(None)
        listener.join()


def _listen(messages: Any, on_epochs: OnEpochs) -> None:
    while (run_epochs := messages.get()) is not None:
        on_epochs(run_epochs)
