"""tgdfer store: inspect, verify, repair, compare and exchange feature stores."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.remote import StorePath, local_path
from cli.extract import find_files, finish, read_list, shown_progress
from cli.options import (
    AnnotationOption,
    ByOption,
    Data,
    DatasetOption,
    DeviceOption,
    FoldsOption,
    LocalStoreArgument,
    PretrainedOption,
    RootOption,
    SourceOption,
    StoreAArgument,
    StoreArgument,
    StoreBArgument,
    StoresDatasetOption,
    StoresEncoderOption,
    SubjectsOption,
    TextsOption,
    WorkersOption,
    refuse_unread,
)
from cli.show import show

if TYPE_CHECKING:
    from cache.check import Finding, Inspection
    from cache.plan import Plan
    from pipeline.datasets.videos import VideoList
    from pipeline.encoders.clip import EncoderFiles

FINDINGS = 3
OF_STORE = ""  # the data set that the store was made from
SOURCE_OPTIONS = (
    *("dataset", "root", "annotation", "source", "texts", "folds", "subjects", "by"),
    *("encoder", "pretrained", "device"),
)
SHOWN = 20  # rows of a long list

store_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=(
        "Inspect, verify, repair, compare and exchange feature stores.\n\n"
        "Exit codes: 0 nothing found; 2 refused; 3 something found; 5 the disk failed."
    ),
)


@store_app.command()
def inspect(store: StoreArgument) -> None:
    """Show what a store holds, how far it is, and what it was made from.

    \b
    tgdfer store inspect data/faces-mini.zarr
    """
    from cache.check import inspect as look

    found = look(store)
    rows = _summary(found) | {name: str(value) for name, value in found.identity.items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {show(value)}")
    for video, reason in list(found.missing.items())[:SHOWN]:
        print(f"missing {show(video)}: {show(reason)}")
    if len(found.missing) > SHOWN:
        print(f"and {len(found.missing) - SHOWN} more")


@store_app.command()
def verify(
    context: typer.Context,
    store: StoreArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every file.")] = False,
    count: Annotated[
        int, typer.Option("--canary", metavar="N", min=0, help="Encode N videos again and compare.")
    ] = 0,
    dataset: StoresDatasetOption = None,
    root: RootOption = None,
    annotation: AnnotationOption = None,
    source: SourceOption = "auto",
    texts: TextsOption = None,
    folds: FoldsOption = None,
    subjects: SubjectsOption = None,
    by: ByOption = None,
    encoder: StoresEncoderOption = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Check every file of a store; exit code 3 if one is not as it was committed.

    Without --deep: names, sizes, metadata and journals.  Nothing is changed.

    \b
    Every byte:
      tgdfer store verify --deep data/faces-mini.zarr
    Does this machine still produce the same features?
      tgdfer store verify --canary 8 data/dfew-ViT-B-32-quickgelu.zarr --root /data/DFEW
    """
    from cache.check import verify as check

    if not count:
        refuse_unread(context, SOURCE_OPTIONS, "read only with --canary, which decodes videos")
    findings = check(store, deep=deep)
    _print_findings(findings)
    if not findings:
        print(f"{show(store)}: every file is as it was committed" + (" (sha256)" if deep else ""))
        given = Data(dataset or OF_STORE, root, annotation, source, texts, folds, subjects, by)
        if count and not _compare_reencoded(store, count, given, encoder, pretrained, device):
            raise typer.Exit(FINDINGS)
        return
    raise typer.Exit(FINDINGS)


@store_app.command()
def repair(
    store: LocalStoreArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    dataset: StoresDatasetOption = None,
    root: RootOption = None,
    annotation: AnnotationOption = None,
    source: SourceOption = "auto",
    texts: TextsOption = None,
    folds: FoldsOption = None,
    subjects: SubjectsOption = None,
    by: ByOption = None,
    encoder: StoresEncoderOption = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
) -> None:
    """Redo what is damaged, and retry the videos that could not be read.

    Only damaged files are removed, and only their blocks are extracted again, with the store's own
    settings.  Files that do not belong to the store are left alone.

    \b
    tgdfer store repair --dry-run data/faces-mini.zarr
    tgdfer store repair data/dfew.zarr --root /data/DFEW --pretrained clip.safetensors
    """
    from cache.check import plan_repair

    planned = plan_repair(local_path(store))
    _print_findings(planned.findings)
    for name in planned.remove:
        print(f"remove {show(name)}")
    for block, view in planned.redo:
        print(f"extract again: view {view} of block {block}")
    if not planned.is_needed:
        print(f"{show(store)}: nothing to repair")
    if dry_run or not planned.is_needed:
        raise typer.Exit(FINDINGS if planned.is_needed else 0)
    if not planned.extraction:
        planned.begin()
        print(f"{show(store)}: repaired without extraction")
        return
    from pipeline.extract.planning import ExtractSettings
    from pipeline.extract.repair import repair_store

    settings = ExtractSettings(device=device, workers=workers)
    given = Data(dataset or OF_STORE, root, annotation, source, texts, folds, subjects, by)
    videos, files = _sources(planned.plan, given, encoder, pretrained)
    with shown_progress() as on_progress:
        summary = repair_store(planned, videos, files, settings, on_progress)
    finish(summary)


@store_app.command()
def diff(a: StoreAArgument, b: StoreBArgument) -> None:
    """Compare two finished stores: what they were made from, their videos, their features.

    Exit code 0 if they are the same, else 3.

    \b
    tgdfer store diff data/faces-mini.zarr /mnt/copy/faces.zarr
    """
    from cache.check import diff as compare
    from cache.identity import side_by_side

    found = compare(a, b)
    if found.same_digest:
        print("the same store: equal digests")
        return
    if found.fields:
        print(side_by_side(found.fields, ("field", show(a), show(b))))
    for name, ids in ((a, found.only_a), (b, found.only_b)):
        if ids:
            print(f"{len(ids)} videos only in {show(name)}: {_some(ids)}")
    for video, (reason_a, reason_b) in list(found.missing.items())[:SHOWN]:
        print(f"features of {show(video)}: {_missing(reason_a)}; {_missing(reason_b)}")
    print(
        f"{len(found.changed)} of {found.videos} videos differ in their features, "
        f"by at most {found.max_abs:.6g} ({found.views} views compared): {_some(found.changed)}"
    )
    raise typer.Exit(FINDINGS)


@store_app.command(name="export")
def export_(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE.h5", help="HDF5 file to write.")],
) -> None:
    """Write a finished store into one HDF5 file, with its identity.

    \b
    tgdfer store export data/faces-mini.zarr faces.h5
    """
    from cache.hdf5 import export_store

    print(f"{show(file)}: digest {export_store(store, file)}")


@store_app.command(name="import")
def import_(
    context: typer.Context,
    features: Annotated[
        Path, typer.Argument(metavar="FILE.h5|DIR", help="Exported store, or features.")
    ],
    store: LocalStoreArgument,
    dataset: DatasetOption = "faces",
    root: RootOption = None,
    annotation: AnnotationOption = None,
    source: SourceOption = "auto",
    texts: TextsOption = None,
    folds: FoldsOption = None,
    subjects: SubjectsOption = None,
    by: ByOption = None,
    encoder: Annotated[
        str,
        typer.Option("--encoder", metavar="NAME", help="Encoder that gives the text tower."),
    ] = "mini",
    pretrained: PretrainedOption = None,
) -> None:
    """Make a store from an exported one, or from features made elsewhere.

    Features are [frame, dim] or [view, frame, dim] per video: a folder of ID.npy files, or an HDF5
    file with one dataset per video or with `features` and `ids`.  The ids must be the data set's.

    \b
    tgdfer store import faces.h5 data/faces-mini.zarr
    tgdfer store import features/ data/dfew.zarr --dataset dfew --encoder ViT-B-32-quickgelu
    """
    from cache.hdf5 import check_source, import_store, is_export

    path = local_path(store)
    if is_export(features):
        why = f"not read, since {show(features)} is an exported store"
        refuse_unread(context, SOURCE_OPTIONS, why)
        digest = import_store(features, path)
    else:
        from pipeline.encoders.clip import Encoder
        from pipeline.extract.imported import import_videos

        check_source(features)
        files = find_files(encoder, pretrained)
        data = Data(dataset, root, annotation, source, texts, folds, subjects, by)
        videos = read_list(data, files=files)
        digest = import_videos(features, path, videos, Encoder(files, "cpu", "fp32"))
    print(f"{show(store)}: digest {digest}")


@store_app.command()
def migrate(store: LocalStoreArgument) -> None:
    """Bring a store to the newest schema, in which a large one opens in less time and memory.

    Features, digest and runs stay as they are; older versions of tgdfer cannot read it any more.

    \b
    tgdfer store migrate data/dfew-ViT-B-32-quickgelu.zarr
    """
    from cache.migrate import migrate as bring

    done = bring(store)
    if done is None:
        print(f"{show(store)}: nothing to do, it has the newest schema")
        return
    before, after = (f"{size / 2**20:.1f} MiB" for size in (done.bytes_before, done.bytes_after))
    print(
        f"{show(store)}: the plan of {done.videos} videos is now in two files, {after} (before: "
        f"{before} in one); nothing else changed, digest {done.digest}"
    )


def _summary(found: "Inspection") -> dict[str, str]:
    plan, state = found.plan, found.status
    videos = plan.videos
    done = "finished" if state.finished else f"unfinished: {state.done} of {state.total} blocks"
    rows = {
        "store": f"{found.path} ({done})",
        "digest": found.digest or "none yet",
        "data set": f"{videos.name}: {len(videos.ids)} videos, {len(videos.classes)} classes",
        "folds": (", ".join(fold.name for fold in videos.folds) or "none")
        + (f" (drawn {videos.resplit}, not its own)" if videos.resplit else ""),
        "features": f"{plan.views} views x {plan.frames} frames x {plan.dim}, float16",
        "size": f"{found.size_bytes / 2**20:.1f} MiB in {plan.blocks} blocks",
        "missing": f"{len(found.missing)} videos without features",
        "source": plan.source or "not recorded",
    }
    if found.contents:
        rows["contents"] = f"sha256 {found.contents} of those of all videos"
    for number, file in enumerate(plan.lists or (), 1):
        rows[f"list {number}"] = f"{file.name}, sha256 {file.sha256}"
    if found.history:
        last = found.history[-1]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["time"]))
        rows["last written"] = f"{when} on {last['host']}"
    return rows


def _print_findings(findings: "list[Finding]") -> None:
    for finding in findings:
        print(f"{finding.kind:<10}  {show(finding.file)}: {show(finding.message)}")


def _compare_reencoded(
    store: StorePath,
    count: int,
    given: Data,
    encoder: str | None,
    pretrained: str | None,
    device: str,
) -> bool:
    """Encode some videos again and print how close they come; False if one is not close."""
    from cache.store import open_store
    from pipeline.encoders.clip import Encoder
    from pipeline.extract.planning import parse_precision
    from pipeline.extract.reencode import LOWEST_COSINE, compare_reencoded

    opened = open_store(store)
    videos, files = _sources(opened.plan, given, encoder, pretrained)
    loaded = Encoder(files, device, parse_precision(opened.identity.precision or "auto"))
    again = compare_reencoded(opened, videos, loaded, count)
    for video in again:
        close = "identical" if video.identical else f"cosine {video.cosine:.6f}"
        print(f"encoded again, {show(video.id)}: {show(video.reason) or close}")
    return all(video.cosine >= LOWEST_COSINE for video in again)


def _sources(
    plan: "Plan",
    given: Data,
    encoder: str | None,
    pretrained: str | None,
) -> "tuple[VideoList, EncoderFiles]":
    """The videos and the encoder that a store was made from, unless others are named."""
    from cache.errors import RefusedError

    name = encoder or plan.identity.encoder.name
    if encoder is None and name.startswith("local-dir:"):
        raise RefusedError(f"the store's encoder is {name}; say where it is with --encoder")
    data = given if given.dataset != OF_STORE else replace(given, dataset=plan.videos.name)
    files = find_files(name, pretrained)
    return read_list(data, len(plan.videos.ids), files), files


def _some(ids: "list[str] | dict[str, float]") -> str:
    shown = ", ".join(show(video) for video in list(ids)[:5])
    return shown + (", ..." if len(ids) > 5 else "")


def _missing(reason: str) -> str:
    return f"missing ({show(reason)})" if reason else "present"
