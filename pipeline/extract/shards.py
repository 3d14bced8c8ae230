"""An extraction -> shards, done by an engine -> one store."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from cache.plan import read_plan
from cache.store import Store, StoreWriter, open_store, status
from pipeline.datasets.videos import VideoList
from pipeline.encoders.clip import EncoderFiles
from pipeline.engines.choose import SHARES, EngineChoice
from pipeline.engines.task import Boss, Resources, Task, results
from pipeline.extract.loop import (
    Asked,
    ExtractProgress,
    OnProgress,
    Summary,
    ask,
    begin,
    extract_here,
    fill,
)
from pipeline.extract.planning import ExtractSettings
from pipeline.resources import usable_cores

CORES = 8  # reserved for each, unless the user says how many threads decode
MEMORY_GIB = 8  # reserved for each


def extract_by(
    engine: EngineChoice,
    video_list: VideoList,
    store_path: Path,
    encoder: EncoderFiles,
    settings: ExtractSettings,
    on_progress: OnProgress = lambda progress: None,
    reuse: Store | None = None,
) -> Summary:
    """As ``extract``, in one process for each GPU of this machine, or on a cluster.

    Raises TaskError if a shard fails; the blocks that are done are kept.
    """
    asked = ask(video_list, store_path, encoder, settings)
    if isinstance(asked, Summary):
        return asked
    place = engine.place(settings.device)
    at_once = engine.at_once(place) or (1 if engine.is_local else SHARES)
    shards = min(at_once, -(-len(asked.videos) // asked.plan.block_videos))
    if engine.is_local and (shards == 1 or settings.shard != (0, 1)):
        return extract_here(asked, settings, on_progress, reuse)
    cores = usable_cores() // shards if engine.is_local else engine.cores(CORES)
    settings = replace(settings, device=place, workers=settings.workers or max(1, cores))
    tasks = _tasks(asked, settings, shards, None if reuse is None else str(reuse.path))
    folder = store_path.with_name(f"{store_path.name}.{engine.name}")
    made = engine.make(place, at_once, folder, "the current block")
    done = results(made, tasks, _counted(asked, on_progress))
    return _whole(done, asked)


def _tasks(asked: Asked, settings: ExtractSettings, shards: int, reuse: str | None) -> list[Task]:
    needs = Resources(int(settings.device != "cpu"), settings.workers or 1, MEMORY_GIB)
    own = [replace(settings, shard=(i, shards)) for i in range(shards)]
    return [
        Task(f"shard {i}/{shards}", partial(_extract_shard, asked, settings, reuse), needs)
        for i, settings in enumerate(own)
    ]


def _extract_shard(
    asked: Asked, settings: ExtractSettings, reuse: str | None, boss: Boss
) -> Summary:
    """One shard, wherever this runs; the units are its videos."""
    begun = begin(asked, settings, None if reuse is None else open_store(reuse))

    def on_progress(done: ExtractProgress) -> None:
        boss.report(done.earlier + done.videos)

    return fill(begun, on_progress, boss.is_stopping, finalise=False)


def _counted(asked: Asked, on_progress: OnProgress) -> Callable[[int], None]:
    """What turns the units that the shards report into the progress of the whole."""
    plan, started = asked.plan, time.perf_counter()
    earlier = _done_earlier(asked)
    done = -earlier  # shards report what earlier commands did as well

    def on_units(more: int) -> None:
        nonlocal done
        done += more
        videos, seconds = max(0, done), time.perf_counter() - started
        frames = videos * plan.views * plan.frames
        on_progress(ExtractProgress(videos, len(asked.videos) - earlier, 0, 0, frames, seconds))

    return on_units


def _done_earlier(asked: Asked) -> int:
    """The videos in blocks that are complete; in all their views, if more are asked for now."""
    path = asked.store_path
    if not (path / "plan.json").is_file() or (plan := read_plan(path)).views != asked.plan.views:
        return 0
    return min(len(asked.videos), status(path).done * plan.block_videos)


def _whole(shards: Sequence[Summary], asked: Asked) -> Summary:
    """Finish the store; the summary of all of it."""
    path = asked.store_path
    digest = StoreWriter(path, read_plan(path)).finalise()
    failures = {name: why for shard in shards for name, why in shard.failures.items()}
    return replace(
        shards[0],
        digest=digest,
        progress=_together([shard.progress for shard in shards]),
        failures=open_store(path).missing if digest else failures,
        reused=sum(shard.reused for shard in shards),
        shard_done=all(shard.shard_done for shard in shards),
    )


def _together(parts: Sequence[ExtractProgress]) -> ExtractProgress:
    """What all shards have done, in the time of the longest, each stage as busy as on average."""
    names = [field.name for field in fields(ExtractProgress)]
    totals = {
        name: sum(getattr(part, name) for part in parts) for name in names if name != "device"
    }
    busy = {name: totals[name] / len(parts) for name in names if name.endswith("_seconds")}
    seconds = max(part.seconds for part in parts)
    of_one = {name: getattr(parts[0], name) for name in ("workers", "encoders", "device")}
    return ExtractProgress(**totals | busy | of_one | {"seconds": seconds})
