"""Runs -> stacks -> their records, by an engine or here; finished runs are not repeated."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache.errors import RefusedError
from cache.identity import flatten, side_by_side
from cache.plan import refuse_contradiction
from cache.remote import RemotePath
from cache.store import NO_TEXTS, Store, open_store
from pipeline.config import Run
from pipeline.datasets.texts import class_texts, padded_phrases
from pipeline.device import device_kind, free_on_gpu, is_out_of_memory
from pipeline.engines.choose import LOCAL, SHARES, EngineChoice
from pipeline.engines.task import Boss, Resources, Task, results
from pipeline.interrupt import StoppedError, stop_on_signal
from pipeline.resources import available_bytes, check_writable, usable_cores
from pipeline.show import show
from pipeline.train.cost import bytes_of, read_rates, seconds_of, sizes_of
from pipeline.train.leaks import refuse_leaks
from pipeline.train.placement import cut, stacks_of, what_is_left
from pipeline.train.records import Records
from pipeline.train.residence import choose_residence, feature_bytes
from pipeline.train.watched import watched

if TYPE_CHECKING:
    from pipeline.train.features import TrainingData
    from pipeline.train.stack import Stack
    from pipeline.train.state import RunState

OnEpochs = Callable[[int], None]  # called with the number of run-epochs done since the last call
OnWait = Callable[[int], None]  # called with the number of runs that other processes are training

STACK_ON_CPU = 5  # runs in a stack: one method's five folds
KEEP_SECONDS = 60.0  # between saves of an unfinished stack's state
POLL_SECONDS = 1.0  # between looks at the runs that other processes are training
GIB = 2**30
SHORT_CONTEXT = 8  # learnable tokens that leave room for every text of ours
LONG_TOWER = 77  # in a tower of so many positions, CLIP's
CORES_OF_GPU = 4  # reserved for each
MEMORY_GIB = 8  # reserved for each task, beside twice the features
COUNTED = 0.85  # of the free memory: up to 1.09 times what is counted was measured


def check_runs(
    runs: Sequence[Run],
    store: Store,
    *,
    allow_missing: bool = False,
    allow_duplicates: bool = False,
) -> None:
    """Refuse, before any training, runs that this store cannot train.

    Raises RefusedError for an unknown or empty fold, a class without a text, settings that do not
    fit the features, videos without features unless ``allow_missing``, or the same video in
    training and test unless ``allow_duplicates``.
    """
    if store.missing and not allow_missing:
        first, reason = next(iter(store.missing.items()))
        raise RefusedError(
            f"{store.path}: {len(store.missing)} of {len(store.ids)} videos have no features, e.g. "
            f"{first}: {reason}; fix them and extract again, or train without them with "
            "--allow-missing"
        )
    refuse_contradiction(store.plan, store.path)
    refuse_without_texts(runs, store)
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
    _check_rows(runs, store)
    _check_prompts(runs, store)
    if not allow_duplicates:
        refuse_leaks(store, {run.fold for run in runs})


def refuse_without_texts(runs: Sequence[Run], store: Store) -> None:
    """Refuse heads that read texts where the encoder reads none."""
    if not store.has_texts and any(run.method.head.reads_texts for run in runs):
        raise RefusedError(f"{store.path} has no text tower: {NO_TEXTS}")


def check_shapes(runs: Sequence[Run], store: Store) -> None:
    """Refuse unknown folds, classes without a text, and settings that the features do not fit."""
    class_texts(store.classes, store.texts)
    folds = [name for name, _, _ in store.folds]
    if not folds:
        raise RefusedError(
            f"{store.path}: no fold has both training and test videos among these "
            f"{len(store.ids)}; extract with a larger --limit, or with none"
        )
    for run in runs:
        if run.fold not in folds:
            raise RefusedError(f"{store.path} has no fold {run.fold}; it has {', '.join(folds)}")
        _check_votes(run, store)
        frames = len(run.method.input.chosen(store.frames))
        if run.method.head.kind != "tgdfer":
            head = run.method.head
            head.refuse_misfit(frames, store.network_dim if head.reads_texts else store.dim)
            continue
        run.method.temporal.tokens(frames)
        run.method.temporal.refuse_more_keys(frames)
        run.method.temporal.heads(store.network_dim)
        label = run.method.label
        if label.pooling == "top_k" and label.top_k > frames:
            raise RefusedError(
                f"label.top_k={label.top_k} is more than the {frames} frames of a video"
            )


def _check_votes(run: Run, store: Store) -> None:
    """Refuse to train from votes where there are none of a fold's training videos."""
    train = next(train for name, train, _ in store.folds if name == run.fold)
    if run.method.optimiser.target == "votes" and not store.voted[train].any():
        raise RefusedError(
            f"optimiser.target=votes: no training video of fold {run.fold} of {store.path} has "
            "votes; give them in the list (docs/datasets.md) and extract again, or set "
            "optimiser.target=hard"
        )


def _check_prompts(runs: Sequence[Run], store: Store) -> None:
    """Refuse contexts so long that a class's text no longer fits the text tower."""
    methods = [run.method for run in runs if run.method.head.reads_texts]
    methods = [method for method in methods if method.head.kind != "cliper"]  # of few words
    asked = {(own.prompts, own.visual_prompt, own.head.kind) for own in methods}
    short = all(prompts.context_length <= SHORT_CONTEXT for prompts, *_ in asked)
    if short and not _is_short(store.text_config.get("text_cfg")):
        return
    from pipeline.model.text_tower import load_text_tower

    tower = load_text_tower(store.text_weights, store.text_config)
    for prompts, visual, head in asked:
        fine = (prompts.fine_text, prompts.fine_learnable, int(visual == "prepend"))
        coarse = (prompts.coarse_text, prompts.coarse_learnable and head == "tgdfer", 0)
        for kind, learnable, more in (fine, coarse):
            texts: Sequence[str] = class_texts(store.classes, store.texts).of(kind)
            if head == "grace":
                texts, _ = padded_phrases(texts)
            room = tower.context_length - more - max(len(tower.tokenize(text)) for text in texts)
            context = prompts.context_length if learnable else 0
            if context > room:
                raise RefusedError(
                    f"the longest text ({kind}) leaves {max(room, 0)} of the text tower's "
                    f"{tower.context_length} positions, too few for prompts.context_length="
                    f"{context}; choose a smaller one, or shorter texts"
                )


def _is_short(tower: object) -> bool:
    length = tower.get("context_length") if isinstance(tower, dict) else None
    return isinstance(length, int) and length < LONG_TOWER


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


def _check_rows(runs: Sequence[Run], store: Store) -> None:
    """Refuse folds of which too little is left without the videos that have no features."""
    usable_N = np.array([video_id not in store.missing for video_id in store.ids])
    rows = {
        name: (train[usable_N[train]], test[usable_N[test]]) for name, train, test in store.folds
    }
    shares = {run.method.selection for run in runs}
    for fold in dict.fromkeys(run.fold for run in runs):
        train, test = rows[fold]
        if not len(train) or not len(test):
            raise RefusedError(
                f"{store.path}, fold {fold}: {len(train)} training and {len(test)} test videos "
                "have features, expected some of both; choose another --fold, or extract again"
            )
        for selection in shares:
            if selection.rule == "best_on_val" or selection.tested_on == "held_out":
                from pipeline.train.split import hold_out

                hold_out(store, train, selection.validation_share, 0)


def train_runs(
    runs: Sequence[Run],
    records: Records,
    device: str,
    on_epochs: OnEpochs = lambda run_epochs: None,
    workers: int | None = None,
    keep_seconds: float = KEEP_SECONDS,
    on_wait: OnWait = lambda runs: None,
    features: str = "auto",
    engine: EngineChoice = LOCAL,
) -> int:
    """Train those of ``runs`` that are not finished; returns how many this call has trained.

    ``engine`` says where. On this machine several processes share the stacks: one per GPU, or on
    the CPU ``workers`` of them, by default one per core. With 0 ``workers``, one GPU, or a store
    that only this process can read, this one trains. ``device`` comes from ``engine.place``;
    ``features`` says where the features are kept, by default where they fit. Runs that another
    process is training are waited for, after a call of ``on_wait`` with their number, and taken
    over if that process dies. The first SIGINT, SIGTERM or SIGHUP stops the work after the current
    epoch, saves its state and raises StoppedError. Raises TaskError if the training of a stack
    fails; finished runs and saved states are kept.
    """
    pending = records.pending(runs)
    if not pending:
        return 0
    store, wanted = records.store, records.distinct(runs)
    crew = _choose_crew(len(wanted), store, device, workers, engine)
    if engine.is_local:
        features = choose_residence(features, store, device, crew.sharing)
    grid = _Grid(
        *(records.root, str(store.path), store.digest, records.code, device, features),
        *(crew.sharing, crew.needs.cores, keep_seconds),
    )
    cost = partial(seconds_of, sizes=sizes_of(store), rates=read_rates(records.device))
    # Stacks change bits, so they do not depend on what is left to do.
    stacks = stacks_of(wanted, crew.size_max, crew.at_once or SHARES, cost)
    data = cache(lambda: _load_onto(device, store, features, 1))

    def train(free: Sequence[Run]) -> list[Run]:
        left = what_is_left(stacks, {run: records.epochs_kept(run) for run in free}, cost)
        if crew.is_here:
            return _train_here(left, *data(), records, on_epochs, keep_seconds)
        tasks = grid.tasks(left, crew.needs)
        places = crew.at_once or len(tasks), records.root / f".{engine.name}"
        made = engine.make(device, *places, "the current epoch")
        return [run for trained in results(made, tasks, on_epochs) for run in trained]

    return _train_all(pending, records, train, on_epochs, on_wait)


@dataclass(frozen=True)
class _Crew:
    """How the stacks of a grid are shared out; where they are trained changes nothing."""

    is_here: bool  # by this process
    at_once: int | None  # None: all of them
    sharing: int  # processes that share the memory of this machine
    size_max: int  # runs in a stack
    needs: Resources


def _choose_crew(
    wanted: int, store: Store, device: str, workers: int | None, engine: EngineChoice
) -> _Crew:
    # Threads change bits, so they do not depend on what is left to do.
    on_cpu, private = device == "cpu", _is_private(store)
    if private and not engine.is_local:
        raise RefusedError(f"{store.path}: only this process can read it; use --engine local")
    at_once, cores = engine.at_once(device), engine.cores(1 if on_cpu else CORES_OF_GPU)
    if on_cpu and engine.is_local:
        at_once = min(workers or usable_cores(), wanted)
        cores = max(1, usable_cores() // at_once)
    has_one_gpu = engine.is_local and not on_cpu and at_once == 1
    is_here = workers == 0 or private or has_one_gpu
    return _Crew(
        is_here,
        1 if is_here else at_once,
        sharing=at_once if at_once and on_cpu and engine.is_local and not is_here else 1,
        size_max=STACK_ON_CPU if on_cpu else wanted,
        needs=Resources(int(not on_cpu), cores, MEMORY_GIB + 2 * feature_bytes(store) // GIB),
    )


def train_live(
    runs: Sequence[Run],
    data: "TrainingData",
    records: Records,
    on_epochs: OnEpochs,
    on_wait: OnWait = lambda runs: None,
) -> int:
    """Train runs one after the other in this process, computing features in every step.

    As ``train_runs``, but no unfinished state is saved, since a run's state does not include a
    trained encoder.
    """
    after = "Finished runs are kept; the current one starts again."

    def train(free: Sequence[Run]) -> list[Run]:
        return _train_here([[run] for run in free], data, None, records, on_epochs, None, after)

    return _train_all(records.pending(runs), records, train, on_epochs, on_wait)


def _train_all(
    pending: Sequence[Run],
    records: Records,
    train: Callable[[Sequence[Run]], list[Run]],
    on_epochs: OnEpochs,
    on_wait: OnWait,
) -> int:
    """Train what no other process is training, until all is finished here or there."""
    if not pending:
        return 0
    check_writable(records.root, "--runs")
    with watched(records, pending):
        return _train_or_wait(pending, records, train, on_epochs, on_wait)


def _train_or_wait(
    pending: Sequence[Run],
    records: Records,
    train: Callable[[Sequence[Run]], list[Run]],
    on_epochs: OnEpochs,
    on_wait: OnWait,
) -> int:
    trained, waiting = 0, False
    while pending:
        free = [run for run in pending if records.is_free(run)]
        here = set(train(free)) if free else set()
        if not free and not waiting:
            on_wait(len(pending))
        waiting = not free
        if waiting:
            time.sleep(POLL_SECONDS)
        left = records.pending(pending)
        there = set(pending).difference(left, here)
        if there:
            on_epochs(sum(run.method.optimiser.epochs for run in there))
        trained, pending = trained + len(here), left
    return trained


def _train_here(
    stacks: Sequence[Sequence[Run]],
    data: "TrainingData",
    room: int | None,
    records: Records,
    on_epochs: OnEpochs,
    keep_seconds: float | None,
    after: str = "Run the same command again to resume.",
) -> list[Run]:
    trained = []
    with stop_on_signal("the current epoch", after=after) as stop:
        trainer = _Trainer(data, room, records, on_epochs, keep_seconds, lambda: bool(stop.signal))
        for stack in stacks:
            trained += trainer.train_what_fits(stack)
            if stop.signal:
                raise StoppedError(stop.signal)
    return trained


def _load_onto(
    device: str, store: Store, features: str, sharing: int
) -> "tuple[TrainingData, int]":
    """What training needs of a store, and the bytes that are then free for it.

    As many processes as are ``sharing`` the memory of this machine are taken to begin together.
    """
    import torch

    from pipeline.train.features import CachedFeatures, load_training_data

    room = available_bytes() // sharing if device == "cpu" else free_on_gpu(device)
    place = choose_residence(features, store, device, 1)
    try:
        data = load_training_data(store, torch.device(device), place)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if device == "cpu":
            raise RefusedError(
                f"the memory that this process may use is too small for the features of "
                f"{store.path}, {feature_bytes(store) / GIB:.2f} GiB, and its text tower, "
                f"{sizes_of(store).tower_bytes / GIB:.2f} GiB while it is loaded; use --features "
                "stream, fewer --workers or a higher limit"
            ) from error
        free, total = (size / GIB for size in torch.cuda.mem_get_info(device))
        raise RefusedError(
            f"the features of {store.path} take {feature_bytes(store) / GIB:.1f} GiB, {device} "
            f"has {free:.1f} of {total:.1f} GiB free; use --features host or --features stream"
        ) from error
    return data, room - isinstance(data.features, CachedFeatures) * feature_bytes(store)


class _StopNowError(Exception):
    """Raised between two epochs, after the state was saved."""


@dataclass(frozen=True)
class _Trainer:
    """Trains stacks in this process and writes their records.

    The states of unfinished runs are saved every ``keep_seconds`` and when asked to stop, or never
    if it is None.
    """

    data: "TrainingData"
    room: int | None  # bytes of memory; None: not counted
    records: Records
    on_epochs: OnEpochs
    keep_seconds: float | None
    stopped: Callable[[], bool]

    def train_what_fits(self, stack: Sequence[Run]) -> list[Run]:
        """Train a stack, a part of it at a time if the memory is too small for more."""
        parts = cut(stack, self._fitting(stack))
        return [run for part in parts for run in self._train_or_halve(part)]

    def _fitting(self, stack: Sequence[Run]) -> int:
        """How many runs of a stack to train at a time; said on stderr if that is not all."""
        count = len(stack)
        if self.room is None:
            return count
        sizes = sizes_of(self.data.store)
        each = bytes_of(stack, sizes)
        room = max(0, int(COUNTED * self.room) - sizes.tower_bytes)
        if room >= count * each:
            return count
        fitting = max(1, room // each)
        print(
            f"{count} run{'s' * (count > 1)} of about {each / GIB:.2f} GiB each, and "
            f"{room / GIB:.2f} GiB of memory for them: trained {fitting} at a time; a smaller "
            "optimiser.micro_batch or fewer --workers need less",
            file=sys.stderr,
        )
        return fitting

    def _train_or_halve(self, stack: Sequence[Run]) -> list[Run]:
        """Train a stack, or its two halves in turn if the memory is too small after all."""
        import torch

        try:
            return self.train(stack)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(stack) == 1:
                raise RefusedError(
                    f"not even one run fits in the memory of {self.data.device}; use a smaller "
                    "optimiser.batch, or the same in parts, optimiser.micro_batch"
                ) from error
        # Only now, when the error no longer keeps the failed stack alive.
        torch.cuda.empty_cache()
        half = len(stack) // 2
        return self._train_or_halve(stack[:half]) + self._train_or_halve(stack[half:])

    def train(self, stack: Sequence[Run]) -> list[Run]:
        """Train the runs of a stack that no other process is training, from any saved states.

        Returns those that it has finished.
        """
        with self.records.claim(stack) as runs, suppress(_StopNowError):
            if runs and not self.stopped():
                self._train(runs)
                return runs
        return []

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
class _Grid:
    """What a process anywhere needs to train a stack of some grid, in a few bytes."""

    root: Path
    store: str
    digest: str  # of the store
    code: str
    device: str
    features: str
    sharing: int
    threads: int
    keep_seconds: float

    def tasks(self, stacks: Sequence[Sequence[Run]], needs: Resources) -> list[Task]:
        """One task for each stack."""
        return [
            Task(
                f"stack {number} of {len(stacks)} (fold {stack[0].fold}, seed {stack[0].seed}"
                f"{f' and {len(stack) - 1} more' * (len(stack) > 1)})",
                partial(self.train, stack),
                needs,
            )
            for number, stack in enumerate(stacks, start=1)
        ]

    def train(self, stack: Sequence[Run], boss: Boss) -> list[Run]:
        """Train what is left of a stack, and return it; the units are epochs of its runs."""
        records, data, room = _open_grid(self)
        done = 0

        def advance(epochs: int) -> None:
            nonlocal done
            done += epochs
            boss.report(done)

        trainer = _Trainer(data, room, records, advance, self.keep_seconds, boss.is_stopping)
        return trainer.train_what_fits(stack)


@lru_cache(maxsize=1)
def _open_grid(grid: _Grid) -> "tuple[Records, TrainingData, int]":
    """The records and features of a grid, and the bytes left for training, once in a process."""
    import torch

    torch.set_num_threads(grid.threads)
    store = open_store(grid.store)
    records = Records(grid.root, store, device_kind(grid.device))
    if (store.digest, records.code) != (grid.digest, grid.code):
        raise RefusedError(
            "the source or the store changed as training started; run the same command again"
        )
    return records, *_load_onto(grid.device, store, grid.features, grid.sharing)
