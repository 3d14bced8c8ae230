"""tgdfer extract: videos -> a feature store."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import RefusedError
from cache.remote import StorePath, local_path, store_path
from cli.accounting import describe_survey, survey_of
from cli.options import (
    AnnotationOption,
    AugmentationOption,
    ByOption,
    Data,
    DatasetOption,
    DeviceOption,
    EncoderOption,
    EngineOption,
    EngineSetOption,
    ExtractFacesOption,
    FoldsOption,
    FramesOption,
    GpusOption,
    LimitOption,
    NewStoreOption,
    PrecisionOption,
    PretrainedOption,
    ProfileOption,
    RootOption,
    SamplingOption,
    SourceOption,
    SubjectsOption,
    TextsOption,
    WorkersOption,
    expect_dataset,
    is_rendered,
    refuse_unread,
)
from cli.profile import check_trace, show_profile
from cli.progress import progress
from cli.show import columns, next_step, show

if TYPE_CHECKING:
    from pipeline.datasets.videos import VideoList
    from pipeline.encoders.clip import EncoderFiles
    from pipeline.engines.choose import EngineChoice
    from pipeline.extract.loop import ExtractProgress, Summary
    from pipeline.extract.planning import ExtractSettings

    Check = Callable[[VideoList, EncoderFiles], None]

DONE_WITH_FAILURES = 3
PROFILED_VIDEOS = 128
SHOWN_WARNINGS = 3


def extract(
    context: typer.Context,
    dataset: DatasetOption = "faces",
    root: RootOption = None,
    annotation: AnnotationOption = None,
    source: SourceOption = "auto",
    texts: TextsOption = None,
    folds: FoldsOption = None,
    subjects: SubjectsOption = None,
    by: ByOption = None,
    store: NewStoreOption = None,
    encoder: EncoderOption = None,
    pretrained: PretrainedOption = None,
    fold: Annotated[
        str,
        typer.Option(
            "--fold", metavar="NAME", help="Fold whose training videos the encoder was trained on."
        ),
    ] = "all",
    faces: ExtractFacesOption = "whole",
    views: Annotated[
        int,
        typer.Option(
            "--views",
            metavar="N",
            min=1,
            help="Views per video; view 0 is for evaluation.",
        ),
    ] = 5,
    frames: FramesOption = 16,
    sampling: SamplingOption = "segments",
    augmentation: AugmentationOption = "standard",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_frames: Annotated[
        int | None,
        typer.Option(
            "--batch-frames",
            metavar="N",
            min=1,
            help="Frames per encoder batch.",
            show_default="32 on a CPU, 256 on a GPU",
        ),
    ] = None,
    workers: WorkersOption = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Decode each video in a separate process: slower, survives crashes.",
        ),
    ] = False,
    decode_seconds: Annotated[
        float,
        typer.Option(
            "--decode-seconds",
            metavar="SECONDS",
            min=0.1,
            help="A video that takes longer is left out; without --isolate, by the second run.",
        ),
    ] = 600.0,
    shard: Annotated[
        str,
        typer.Option(
            "--shard",
            metavar="I/N|auto",
            help="Do only every N-th block, starting at block I; auto: I and N as a SLURM array or "
            "torchrun numbers this process.",
        ),
    ] = "0/1",
    engine: EngineOption = "local",
    gpus: GpusOption = None,
    engine_set: EngineSetOption = [],  # noqa: B006  (typer copies it)
    limit: LimitOption = None,
    reuse: Annotated[
        StorePath | None,
        typer.Option(
            "--reuse",
            parser=store_path,
            metavar="STORE",
            help="Finished store of the same settings: copy its blocks of unchanged videos.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the training views.")
    ] = 0,
    profile: ProfileOption = None,
) -> None:
    """Decode and encode every video once, into a feature store.

    Resumes where an earlier run stopped; returns at once if the store is finished.  Videos that
    cannot be read are left out, and listed with the reasons in a file (exit code 3).

    \b
    The embedded faces with the bundled encoder:
      tgdfer extract
    DFEW, and videos of your own in a folder for each class:
      tgdfer extract --dataset dfew --root /data/DFEW
      tgdfer extract --dataset folders --root /data/mine --folds 5
    The same of videos in which faces are not cropped:
      tgdfer extract --dataset folders --root /data/mine --folds 5 --faces crop
    Other people, whose expressions are weaker:
      tgdfer extract --dataset faces-mid-seed7
    Weights from a file:
      tgdfer extract --dataset dfew --root /data/DFEW --pretrained clip.safetensors
    The first of two machines that share one store:
      tgdfer extract --shard 0/2
    On eight GPUs of a SLURM cluster:
      tgdfer extract --engine slurm --device cuda --gpus 8 --engine-set partition=gpu
    A trial on the first 100 videos:
      tgdfer extract --limit 100
    All of them, reusing what the trial has done:
      tgdfer extract --reuse data/faces-mini-first100.zarr
    Where the time goes, on the first 128 videos:
      tgdfer extract --profile trace.json
    """
    from cache.store import open_store
    from cache.writer import refuse_foreign
    from pipeline.extract.planning import (
        ExtractSettings,
        check_place,
        default_store,
        make_plan,
        parse_precision,
        parse_shard,
    )
    from pipeline.extract.reuse import refuse_other
    from pipeline.extract.shards import extract_by

    where = _choose_engine(context, engine, gpus, engine_set, device)
    if profile is not None:
        check_trace(profile)
        refuse_unread(context, ("store", "reuse"), "not read with --profile, which keeps no store")
        limit = limit or PROFILED_VIDEOS
    settings = ExtractSettings(
        views=views,
        frames=frames,
        batch_frames=batch_frames,
        fold=fold,
        seed=seed,
        sampling=sampling,
        augmentation=augmentation,
        device=device,
        precision=parse_precision(precision),
        workers=workers,
        isolate=isolate,
        decode_seconds=decode_seconds,
        shard=parse_shard(shard, os.environ),
        faces=faces,
    )
    encoder = encoder or default_encoder(dataset)
    path = local_path(store or default_store(dataset, encoder, limit, faces))
    refuse_foreign(path)
    reused = None if reuse is None else open_store(reuse)
    if reuse is None and profile is None:
        _suggest_reuse(path, settings)
    if device.startswith("cuda"):
        where.place(device)

    def check(videos: "VideoList", files: "EncoderFiles") -> None:
        _check_fold(fold, videos)
        if profile is None:
            check_place(path, videos, files, settings)
        if reused is not None:
            refuse_other(reused, make_plan(videos, files, settings)[0], files)

    data = Data(dataset, root, annotation, source, texts, folds, subjects, by)
    videos, files = open_source(data, encoder, pretrained, limit, check)
    if profile is not None:
        _profile(videos, files, settings, profile)
        return
    with shown_progress() as on_progress:
        summary = extract_by(where, videos, path, files, settings, on_progress, reused)
    finish(summary, fold)


def _choose_engine(
    context: typer.Context, name: str, gpus: int | None, settings: list[str], device: str
) -> "EngineChoice":
    from pipeline.engines.choose import choose_engine

    if name != "local" or gpus is not None:
        refuse_unread(context, ("shard", "profile"), "not read with --engine or --gpus")
    return choose_engine(name, gpus, settings, device)


def _check_fold(name: str, videos: "VideoList") -> None:
    names = [fold.name for fold in videos.folds]
    if name != "all" and name not in names:
        raise RefusedError(f"--fold {name}: {videos.name} has the folds {', '.join(names)}")


def _suggest_reuse(path: Path, settings: "ExtractSettings") -> None:
    """Name the command that reuses the largest finished store of the first videos, if any."""
    from cache.plan import read_plan

    if path.exists():
        return
    whole, shorter = re.sub(r"-first\d+$", "", path.stem), []
    for store in path.parent.glob(f"{whole}-first*.zarr"):
        with suppress(RefusedError):  # a store that cannot be read is not worth a hint
            plan = read_plan(store)
            same = (plan.identity.seed, plan.frames) == (settings.seed, settings.frames)
            if same and (store / "manifest.json").is_file():
                shorter.append((len(plan.videos.ids), store))
    if shorter:
        videos, store = max(shorter)
        command = shlex.join(["tgdfer", *sys.argv[1:], "--reuse", str(store)])
        print(
            f"{show(store)} has the features of {videos} of the videos. To reuse them, press "
            f"Ctrl-C and run: {show(command)}",
            file=sys.stderr,
        )


def _profile(
    videos: "VideoList", files: "EncoderFiles", settings: "ExtractSettings", trace: Path
) -> None:
    """Extract some videos into a store that is thrown away, and show where the time went."""
    from pipeline.extract.loop import extract as extract_videos
    from pipeline.profile import profiled

    scratch = trace.with_name(f".{trace.name}.zarr")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a profile that was killed
    try:
        with profiled(trace) as found:
            summary = extract_videos(videos, scratch, files, settings)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    show_profile(found, trace)
    print(f"profiled: {summary.progress.videos} videos, {_rates(summary.progress)}")


def finish(summary: "Summary", fold: str = "all") -> None:
    """Print what an extraction did and leave with its exit code; ``fold`` is for the next step."""
    _print_summary(summary)
    _leave(summary, [] if fold == "all" else ["--fold", fold])


def open_source(
    data: Data,
    encoder: str | None,
    pretrained: str | None,
    limit: int | None = None,
    check: "Check" = lambda videos, files: None,
) -> "tuple[VideoList, EncoderFiles]":
    """The first videos, or all, and the encoder that the options name, with their defaults.

    ``check`` may refuse them; of the embedded set it gets a preview, before anything is rendered.
    """
    name = encoder or default_encoder(data.dataset)
    if is_rendered(data.dataset):
        files = find_files(name, pretrained)
        return read_list(data, limit, files, check), files
    videos, files = read_list(data, limit), find_files(name, pretrained)
    check(videos, files)
    return videos, files


def default_encoder(dataset: str) -> str:
    """The default encoder of a data set."""
    return "mini" if is_rendered(dataset) else "ViT-B-32-quickgelu"


def find_files(name: str, pretrained: str | None) -> "EncoderFiles":
    """The encoder; open_clip's models have the weights openai if none are named."""
    from pipeline.encoders.clip import find_encoder

    if pretrained is not None and (name == "mini" or name.startswith("local-dir:")):
        raise RefusedError(f"--pretrained: not read with --encoder {name}, it has its own weights")
    return find_encoder(name, pretrained)


def read_list(
    data: Data,
    limit: int | None = None,
    files: "EncoderFiles | None" = None,
    check: "Check" = lambda videos, files: None,
) -> "VideoList":
    """The first videos of a data set, or all; those of the embedded one are rendered first.

    What was found is counted on stderr.  Rendering takes minutes; before it, the encoder of
    ``files`` is checked, and ``check`` gets a preview of the list.  Classes that a fold lacks are
    warned of.
    """
    from pipeline.datasets.videos import absent_classes

    expect_dataset(data.dataset)
    if is_rendered(data.dataset):
        videos = _render(data, limit, files, check)
    else:
        from pipeline.datasets.read import videos_of

        survey = survey_of(data)
        print(describe_survey(survey), file=sys.stderr)
        videos = videos_of(survey, limit)
        if [video.id for video in videos.videos] != [*survey.labels][:limit]:
            print(
                f"the first {limit} lack a class or a part of a fold: some of each", file=sys.stderr
            )
    lines = absent_classes(videos)
    for line in lines[:SHOWN_WARNINGS]:
        print(f"warning: {videos.name}: {show(line)}", file=sys.stderr)
    if len(lines) > SHOWN_WARNINGS:
        print(f"warning: and {len(lines) - SHOWN_WARNINGS} more of these", file=sys.stderr)
    return videos


def _render(
    data: Data,
    limit: int | None,
    files: "EncoderFiles | None",
    check: "Check",
) -> "VideoList":
    from pipeline.demo.faces import ensure_faces, faces_folder, named_spec, preview_faces

    if unread := data.unread_by_faces:
        raise RefusedError(
            f"{', '.join(unread)}: not read with --dataset faces, which has its own lists"
        )
    spec = named_spec(data.dataset)
    root = data.root or faces_folder(spec)
    if files is not None:
        check(preview_faces(root, spec, limit=limit), files)
    with progress("rendering faces", None, "videos") as shown:

        def on_video(done: int, total: int) -> None:
            if not done:
                if files is not None:
                    files.check()
                print(f"rendering {total} videos of faces into {show(root)}", file=sys.stderr)
            shown.update(done, total)

        return ensure_faces(root, spec, on_video=on_video, limit=limit)


@contextmanager
def shown_progress() -> Iterator[Callable[["ExtractProgress"], None]]:
    """A progress bar on a terminal, elsewhere a plain line now and then; both on stderr."""
    with progress("extract", None, "videos") as shown:
        yield lambda p: shown.update(p.videos, p.total, _rates(p))


def _rates(done: "ExtractProgress") -> str:
    seconds = max(done.seconds, 1e-9)
    failed = f", {done.failed} failed" if done.failed else ""
    videos, frames = done.videos / seconds, done.frames / seconds
    return f"{videos:.1f} videos/s, {frames:.0f} frames/s{failed}"


def _print_summary(summary: "Summary") -> None:
    done = summary.progress
    rows = {
        "store": str(summary.store),
        "digest": summary.digest or "none yet",
        "videos": f"{done.videos} done now, {summary.reused} reused, "
        f"{len(summary.failures)} without features",
    }
    if done.videos:
        busy = ", ".join(
            f"{name} {100 * share:.0f} %" for name, share in done.busy.items() if share
        )
        rows |= {
            "encoder": f"{summary.precision} on {summary.device}",
            "rate": f"{_rates(done)} in {done.seconds:.0f} s",
            "busy": busy,
            "bottleneck": summary.bottleneck,
        }
    print(columns([(name, show(value)) for name, value in rows.items()]))
    if summary.digest is None:
        print(_unfinished(summary))
        return
    from cache.store import open_store
    from pipeline.train.leaks import describe_leaks, find_leaks

    for sentence in describe_leaks(find_leaks(open_store(summary.store))):
        print(f"warning: {show(sentence)}; training refuses that fold", file=sys.stderr)


def _unfinished(summary: "Summary") -> str:
    from cache.store import status

    state = status(summary.store)
    if summary.shard_done and not summary.stopped_by:
        missing = state.total - state.done
        return (
            f"this shard is done, nothing is left for it; {missing} of {state.total} blocks of the "
            "store are missing, which are for the other shards"
        )
    return f"unfinished: {state.done} of {state.total} blocks; run the same command again"


def _leave(summary: "Summary", options: list[str]) -> None:
    """The exit code: 128 + the signal if stopped, 3 if videos failed, else 0."""
    _note_failures(summary)
    if summary.stopped_by:
        raise typer.Exit(128 + summary.stopped_by)
    if summary.failures:
        raise typer.Exit(DONE_WITH_FAILURES)
    if summary.digest:
        next_step("tgdfer", "train", "--store", summary.store, *options)


def _note_failures(summary: "Summary") -> None:
    """List the videos without features in a file beside the store, or remove the last such list."""
    store = summary.store if summary.store.name else summary.store.absolute()  # for "."
    path = store.with_name(f"{store.name}.failed.txt")
    lines = [f"{show(name)}\t{show(reason)}\n" for name, reason in summary.failures.items()]
    try:
        if lines or summary.digest:
            path.unlink(missing_ok=True)  # first, so that nothing is written through a link
        if lines:
            with path.open("x", encoding="utf-8") as file:
                file.writelines(lines)
            print(f"videos without features, with the reasons: {show(path)}")
    except OSError as error:
        print(
            f"the list of videos without features, {show(path)}, cannot be written or removed "
            f"({error.strerror}); tgdfer store inspect {show(summary.store)} shows them",
            file=sys.stderr,
        )
