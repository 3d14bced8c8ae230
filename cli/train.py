"""tgdfer train: train TG-DFER from a store, or from videos."""

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.extract import open_source
from cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    AnnotationOption,
    ByOption,
    ConfigOption,
    Data,
    DatasetOption,
    DeviceOption,
    DuplicatesOption,
    EncoderOption,
    EngineOption,
    EngineSetOption,
    FeaturesOption,
    FoldsOption,
    FramesOption,
    GpusOption,
    LimitOption,
    LogOption,
    MissingOption,
    PrecisionOption,
    PretrainedOption,
    ProfileOption,
    RetrainOption,
    RootOption,
    RunsOption,
    SeedsOption,
    SetOption,
    SourceOption,
    StoreOption,
    SubjectsOption,
    TextsOption,
    WorkersOption,
    refuse_unread,
)
from cli.profile import check_trace, show_profile
from cli.show import columns, count, next_step, show
from cli.training import (
    Training,
    as_asked,
    check_log,
    leave_if_damaged,
    log_finished,
    report_damaged,
    suggest_comparison,
    train_pending_live,
)
from pipeline.resources import check_writable

if TYPE_CHECKING:
    from cache.store import Store
    from pipeline.config import MethodConfig, Run
    from pipeline.datasets.videos import VideoList
    from pipeline.encoders.clip import EncoderFiles
    from pipeline.train.features import TrainingData
    from pipeline.train.records import Records

PROFILED_STEPS = 8
OF_TRAINING = ("workers", "features", "engine", "gpus", "engine_set")
OF_A_STORE = ("store", *OF_TRAINING, "allow_missing", "allow_duplicates", "profile")
OF_VIDEOS = (
    *("dataset", "root", "annotation", "source", "texts", "folds", "subjects", "by"),
    *("encoder", "pretrained", "frames", "precision", "limit"),
)


def train(
    context: typer.Context,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = DEFAULT_CONFIG,
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    fold: Annotated[
        str, typer.Option("--fold", metavar="NAME", help="A fold of the store, or all.")
    ] = "all",
    seeds: SeedsOption = 1,
    runs: RunsOption = DEFAULT_RUNS,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    features: FeaturesOption = "auto",
    engine: EngineOption = "local",
    gpus: GpusOption = None,
    engine_set: EngineSetOption = [],  # noqa: B006  (typer copies it)
    allow_missing: MissingOption = False,
    allow_duplicates: DuplicatesOption = False,
    retrain_damaged: RetrainOption = False,
    log: LogOption = None,
    cached: Annotated[
        bool,
        typer.Option(
            "--cached/--no-cached", help="Read features from the store, or compute them each step."
        ),
    ] = True,
    dataset: DatasetOption = "faces",
    root: RootOption = None,
    annotation: AnnotationOption = None,
    source: SourceOption = "auto",
    texts: TextsOption = None,
    folds: FoldsOption = None,
    subjects: SubjectsOption = None,
    by: ByOption = None,
    encoder: EncoderOption = None,
    pretrained: PretrainedOption = None,
    frames: FramesOption = 16,
    precision: PrecisionOption = "auto",
    limit: LimitOption = None,
    profile: ProfileOption = None,
) -> None:
    """Train TG-DFER on every fold and report the last epoch.

    Finished runs are not repeated. With --no-cached the videos are decoded, augmented and encoded
    in every step, which takes far longer but lets the encoder be trained as well; --dataset to
    --limit apply only then.

    \b
    All folds of the embedded faces:
      tgdfer train --cached
    One fold, three seeds, another window:
      tgdfer train --cached --fold 1 --seeds 3 --set temporal.window=8
    With the encoder trained:
      tgdfer train --no-cached --fold 1 --set optimiser.lr_encoder=1e-5 --set optimiser.micro_batch=4
    Where the time of a step goes:
      tgdfer train --cached --profile trace.json
    """  # noqa: E501  (an example is one line, to be copied)
    from cache.store import open_store
    from pipeline.config import load_method, runs_of
    from pipeline.device import device_kind
    from pipeline.train.code import code_files
    from pipeline.train.grid import check_runs
    from pipeline.train.records import Records

    _refuse_unread(context, cached, profile)
    if profile is not None:
        check_trace(profile)
    train_cached = Training.asked(context)
    method = load_method(config, settings)
    if cached:
        opened = open_store(store)
        wanted = runs_of(method, _folds(opened, fold), range(seeds))
        if profile is not None:
            allowed = {"allow_missing": allow_missing, "allow_duplicates": allow_duplicates}
            check_runs(wanted, opened, **allowed)
            _profile(wanted, opened, device, profile)
            return
        records, damaged, trained = train_cached(wanted, opened)
    else:
        check_writable(runs, "--runs")
        check_log(log)
        check = partial(_check_live, method, fold, frames)
        given = Data(dataset, root, annotation, source, texts, folds, subjects, by)
        videos, files = open_source(given, encoder, pretrained, limit, check)
        data = _open_live(videos, files, method, frames, device, precision)
        opened = data.store
        wanted = runs_of(method, _folds(opened, fold), range(seeds))
        records = Records(runs, opened, device_kind(data.device.type), code_files(live=True))
        damaged = report_damaged(wanted, records, retrain_damaged)
        trained = train_pending_live(wanted, data, records)
        log_finished(log, wanted, records)
    _print(wanted, records, trained, damaged)
    if cached:
        asked = as_asked(store, runs, config, settings, seeds)
        table = "table3" if method.head.kind == "tgdfer" else "table1"
        next_step("tgdfer", "ablate", table, *asked)
        suggest_comparison(opened, *asked)
    leave_if_damaged(damaged)


def _refuse_unread(context: typer.Context, cached: bool, profile: Path | None) -> None:
    if not cached:
        refuse_unread(context, OF_A_STORE, "not used with --no-cached; use --cached")
        return
    refuse_unread(
        context, OF_VIDEOS, "not used with --cached, which trains from --store; add --no-cached"
    )
    if profile is not None:
        refuse_unread(
            context, ("runs", "log", *OF_TRAINING), "not used with --profile, which keeps no runs"
        )


def _profile(runs: "list[Run]", store: "Store", device: str, trace: Path) -> None:
    """Train the runs as one stack for a few steps, and show where the time went."""
    import torch

    from pipeline.device import choose_device
    from pipeline.profile import profiled
    from pipeline.train.features import load_training_data
    from pipeline.train.stack import Stack

    stack = Stack(load_training_data(store, torch.device(choose_device(device))), runs)
    first, *rest = stack.steps()
    stack.step(first)
    with profiled(trace) as found:
        for batch in rest[:PROFILED_STEPS]:
            stack.step(batch)
    show_profile(found, trace)
    print(f"profiled: {len(rest[:PROFILED_STEPS])} steps of {len(runs)} stacked runs")


def _folds(store: "Store", fold: str) -> list[str]:
    return [name for name, _, _ in store.folds] if fold == "all" else [fold]


def _check_live(
    method: "MethodConfig", fold: str, frames: int, videos: "VideoList", files: "EncoderFiles"
) -> None:
    """Refuse runs that these videos cannot train, before any of them is rendered or decoded."""
    from pipeline.config import runs_of
    from pipeline.extract.planning import ExtractSettings, describe_live, make_plan
    from pipeline.train.grid import check_shapes, refuse_without_texts

    plan, _ = make_plan(videos, files, ExtractSettings(frames=frames))
    described = describe_live(plan, files)
    runs = runs_of(method, _folds(described, fold), [0])
    refuse_without_texts(runs, described)
    check_shapes(runs, described)


def _open_live(
    videos: "VideoList",
    files: "EncoderFiles",
    method: "MethodConfig",
    frames: int,
    device: str,
    precision: str,
) -> "TrainingData":
    import numpy as np
    import torch

    from pipeline.device import choose_device
    from pipeline.extract.live import open_live
    from pipeline.extract.planning import ExtractSettings, parse_precision
    from pipeline.model.text_tower import find_text_tower
    from pipeline.train.features import TrainingData, targets_of

    place = torch.device(choose_device(device))
    settings = ExtractSettings(
        frames=frames, device=str(place), precision=parse_precision(precision)
    )
    trained = method.optimiser.lr_encoder > 0
    store, features, weights, text = open_live(videos, files, settings, trained)
    return TrainingData(
        store,
        features,
        torch.from_numpy(targets_of(store)).to(place),
        np.ones(len(store.ids), np.bool_),
        find_text_tower(weights, text).to(place),
    )


def _print(wanted: "list[Run]", records: "Records", trained: int, damaged: int) -> None:
    from pipeline.report.ablation import describe_absent, describe_selection

    rows, scores = [["fold", "seed", "UAR %", "WAR %", "record"]], []
    for run in wanted:
        record = records.find(run)
        cells = ["–", "–"] if record is None else [record.status, ""]
        if record is not None and record.result is not None and record.ok:
            scores.append((100 * record.result["uar"], 100 * record.result["war"]))
            cells = [f"{score:.2f}" for score in scores[-1]]
        rows.append([show(run.fold), str(run.seed), *cells, show(records.folder(run))])
    if len(scores) > 1:
        means = [
            f"{statistics.fmean(s):.2f} ± {statistics.stdev(s):.2f}"
            for s in zip(*scores, strict=True)
        ]
        rows.append(["mean ± sd", f"n={len(scores)}", *means, ""])
    print(columns(rows))
    finished = len(wanted) - trained - damaged
    print(f"{count(trained, 'run')} trained, {finished} already finished.")
    print(f"Reported: {describe_selection(wanted[0].method.selection)}.")
    if absent := describe_absent(records.store, list(dict.fromkeys(run.fold for run in wanted))):
        print(
            f"warning: UAR is over the classes that are tested; without a test video: "
            f"{show(absent)}",
            file=sys.stderr,
        )
