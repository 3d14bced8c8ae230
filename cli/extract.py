"""tgdfer extract: videos -> a feature store."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.remote import local_path
from cli.options import (
    AnnotationOption,
    DatasetOption,
    DeviceOption,
    EncoderOption,
    LimitOption,
    NewStoreOption,
    PrecisionOption,
    PretrainedOption,
    ProfileOption,
    RootOption,
    WorkersOption,
)
from cli.profile import show_profile
from cli.show import show

if TYPE_CHECKING:
    from pipeline.datasets.videos import VideoList
    from pipeline.encoders.clip import EncoderFiles
    from pipeline.extract.loop import Progress, Summary
    from pipeline.extract.planning import ExtractSettings

DONE_WITH_FAILURES = 3
SECONDS_BETWEEN_LINES = 10.0
PROFILED_VIDEOS = 128


def extract(
    dataset: DatasetOption = "faces",
    root: RootOption = None,
    annotation: AnnotationOption = None,
    store: NewStoreOption = None,
    encoder: EncoderOption = None,
    pretrained: PretrainedOption = None,
    fold: Annotated[
        str,
        typer.Option("--fold", help="Fold whose training videos the encoder was trained on."),
    ] = "all",
    views: Annotated[
        int, typer.Option("--views", min=1, help="View 0 for evaluation, the others for training.")
    ] = 5,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames of a view.")] = 16,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_frames: Annotated[
        int | None,
        typer.Option(
            "--batch-frames",
            min=1,
            help="Frames the encoder gets at once.",
            show_default="32 on a CPU, 256 on a GPU",
        ),
    ] = None,
    workers: WorkersOption = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Decode every video in a process of its own: slower, survives crashes.",
        ),
    ] = False,
    decode_seconds: Annotated[
        float,
        typer.Option("--decode-seconds", min=0.1, help="A video that takes longer is left out."),
    ] = 600.0,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Do only every N-th block, from block I on.",
            show_default="from SLURM_ARRAY_TASK_ID/COUNT or RANK/WORLD_SIZE, else 0/1",
        ),
    ] = None,
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the training views.")] = 0,
    profile: ProfileOption = None,
) -> None:
    """Decode and encode every video once, into a feature store.

    Goes on where an earlier run stopped; on a finished store it returns at once.  Videos that
    cannot be read are left out, and listed with their reasons in a file (exit code 3).

    \b
    The embedded faces with the bundled encoder:
      tgdfer extract
    DFEW:
      tgdfer extract --dataset dfew --root /data/DFEW
    Weights from a file:
      tgdfer extract --dataset dfew --root /data/DFEW --pretrained clip.safetensors
    The first of two machines that share one store:
      tgdfer extract --shard 0/2
    Where the time goes, on the first 128 videos:
      tgdfer extract --profile trace.json
    """
    from pipeline.extract.loop import extract as extract_videos
    from pipeline.extract.planning import (
        ExtractSettings,
        default_shard,
        parse_precision,
        parse_shard,
    )

    settings = ExtractSettings(
        views=views,
        frames=frames,
        batch_frames=batch_frames,
        limit=limit,
        fold=fold,
        seed=seed,
        device=device,
        precision=parse_precision(precision),
        workers=workers,
        isolate=isolate,
        decode_seconds=decode_seconds,
        shard=parse_shard(shard or default_shard(os.environ)),
    )
    path = local_path(store or Path("data") / f"{dataset}.zarr")
    videos, files = open_source(dataset, root, annotation, encoder, pretrained)
    if profile is not None:
        _profile(videos, files, replace(settings, limit=limit or PROFILED_VIDEOS), profile)
        return
    with shown_progress() as on_progress:
        summary = extract_videos(videos, path, files, settings, on_progress)
    finish(summary)


def _profile(
    videos: "VideoList", files: "EncoderFiles", settings: "ExtractSettings", trace: Path
) -> None:
    """Extract some videos into a store that is thrown away, and show where the time went."""
    from pipeline.extract.loop import extract as extract_videos
    from pipeline.profile import profiled

    with tempfile.TemporaryDirectory() as scratch, profiled(trace) as found:
        summary = extract_videos(videos, Path(scratch) / "profiled.zarr", files, settings)
    show_profile(found, trace)
    print(f"profiled: {summary.progress.videos} videos, {_rates(summary.progress)}")


def finish(summary: "Summary") -> None:
    """Print what an extraction did and leave with its exit code."""
    _print_summary(summary)
    _leave(summary)


def open_source(
    dataset: str,
    root: Path | None,
    annotation: Path | None,
    encoder: str | None,
    pretrained: str | None,
) -> "tuple[VideoList, EncoderFiles]":
    """The videos and the encoder that the options name, with their defaults."""
    videos = read_list(dataset, root or Path("data") / dataset, annotation)
    name = encoder or ("mini" if dataset == "faces" else "ViT-B-32-quickgelu")
    return videos, find_files(name, pretrained)


def find_files(name: str, pretrained: str | None) -> "EncoderFiles":
    """The encoder, with open_clip's models from the weights openai if none are named."""
    from pipeline.encoders.clip import find_encoder

    on_its_own = name == "mini" or name.startswith("local-dir:")
    return find_encoder(name, pretrained or (None if on_its_own else "openai"))


def read_list(dataset: str, root: Path, annotation: Path | None) -> "VideoList":
    """The videos of a data set under ``root``; the embedded one is made first."""
    from cache.errors import RefusedError

    if dataset == "faces":
        from pipeline.demo.faces import ensure_faces

        print(f"the embedded faces: {show(root)} (made if they are not there)", file=sys.stderr)
        return ensure_faces(root)
    if dataset == "dfew":
        from pipeline.datasets.dfew import read_dfew

        return read_dfew(root, annotation)
    raise RefusedError(f"--dataset {dataset}: expected faces or dfew")


@contextmanager
def shown_progress() -> Iterator[Callable[["Progress"], None]]:
    """A bar on a terminal; elsewhere a plain line now and then.  Both on stderr."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("extract"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda p: bar.update(task, total=p.total, completed=p.videos, description=_rates(p))


def _plain_lines() -> Callable[["Progress"], None]:
    state = {"said": time.monotonic()}

    def say(progress: "Progress") -> None:
        now = time.monotonic()
        if now - state["said"] >= SECONDS_BETWEEN_LINES:
            state["said"] = now
            done = f"extract: {progress.videos} of {progress.total} videos, "
            print(done + _rates(progress), file=sys.stderr)

    return say


def _rates(progress: "Progress") -> str:
    seconds = max(progress.seconds, 1e-9)
    failed = f", {progress.failed} failed" if progress.failed else ""
    videos, frames = progress.videos / seconds, progress.frames / seconds
    return f"{videos:.1f} videos/s, {frames:.0f} frames/s{failed}"


def _print_summary(summary: "Summary") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    progress = summary.progress
    table = Table(show_header=False, box=None)
    rows = {
        "store": str(summary.store),
        "digest": summary.digest or _unfinished(summary.store),
        "videos": f"{progress.videos} done now, {len(summary.failures)} without features",
    }
    if progress.videos:
        busy = progress.decode_seconds + progress.encode_seconds + progress.write_seconds
        shares = (progress.decode_seconds, progress.encode_seconds, progress.write_seconds)
        parts = (100 * share / busy for share in shares)
        rows |= {
            "encoder": f"{summary.precision} on {summary.device}",
            "rate": f"{_rates(progress)} in {progress.seconds:.0f} s",
            "work": "decode {:.0f} %, encode {:.0f} %, write {:.0f} %".format(*parts),
            "bottleneck": summary.bottleneck,
        }
    for name, value in rows.items():
        table.add_row(name, Text(show(value)))
    Console().print(table)


def _unfinished(store: Path) -> str:
    from cache.store import status

    state = status(store)
    return f"unfinished: {state.done} of {state.total} blocks; run the same command again"


def _leave(summary: "Summary") -> None:
    """The exit code: 128 + the signal if stopped, 3 if videos failed, else 0."""
    path = summary.store.with_suffix(".failed.txt")
    if summary.digest and not summary.failures:
        path.unlink(missing_ok=True)
    if summary.failures:
        lines = [f"{show(name)}\t{show(reason)}\n" for name, reason in summary.failures.items()]
        path.write_text("".join(lines), encoding="utf-8")
        print(f"videos without features, with the reasons: {show(path)}")
    if summary.stopped_by:
        raise typer.Exit(128 + summary.stopped_by)
    if summary.failures:
        raise typer.Exit(DONE_WITH_FAILURES)
