"""tgdfer compare: two settings, runs or tables; or TG-DFER and methods without its network."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache.errors import RefusedError
from cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    DeviceOption,
    DuplicatesOption,
    EngineOption,
    EngineSetOption,
    FeaturesOption,
    GpusOption,
    LogOption,
    MissingOption,
    OutOption,
    RetrainOption,
    RunsOption,
    SeedsOption,
    SetOption,
    StoreOption,
    WorkersOption,
    check_config,
    check_configs,
    complete_presets,
    refuse_unread,
)
from cli.show import next_step, show
from cli.training import (
    Training,
    as_asked,
    leave_if_damaged,
    refuse_to_pool,
    search_regressions,
)

if TYPE_CHECKING:
    from cache.remote import StorePath
    from cache.store import Store
    from pipeline.config import MethodConfig, Run
    from pipeline.evaluate.baselines import PredictedLabels
    from pipeline.evaluate.influence import Array
    from pipeline.evaluate.localisation import TestedRun
    from pipeline.report.versus import Side
    from pipeline.train.records import Records

    Ranking = Callable[[TestedRun], dict[str, Array]]  # of the frames of its test videos

OF_BASELINES = ("configs", "out", "search_baseline", "leave_one_out")
OF_TRAINING = (
    *("settings", "seeds", "runs", "fold", "device", "workers", "features", "engine", "gpus"),
    *("engine_set", "allow_missing", "allow_duplicates", "retrain_damaged", "log"),
)


def _side(metavar: str, help_text: str) -> Any:
    return typer.Argument(
        metavar=metavar,
        help=help_text,
        show_default=False,
        autocompletion=complete_presets,
    )


def compare(
    context: typer.Context,
    a: Annotated[
        str | None,
        _side("[A", "A preset, a TOML file, a folder of a run or of runs, or tables in JSON."),
    ] = None,
    b: Annotated[str | None, _side("B]", "What A is compared with: another of these.")] = None,
    store: StoreOption = DEFAULT_STORE,
    configs: Annotated[
        list[str],
        typer.Option(
            "--config",
            metavar="PRESET|FILE",
            help="A preset (see tgdfer config list) or a TOML file; repeatable, one line for each.",
            callback=check_configs,
            autocompletion=complete_presets,
        ),
    ] = [DEFAULT_CONFIG],  # noqa: B006  (typer copies it)
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    seeds: SeedsOption = 3,
    runs: RunsOption = DEFAULT_RUNS,
    out: OutOption = DEFAULT_OUT,
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
    fold: Annotated[
        str, typer.Option("--fold", metavar="NAME", help="A fold of the store, or all.")
    ] = "all",
    search_baseline: Annotated[
        bool,
        typer.Option(
            "--search-baseline",
            help="Also search the best logistic regression on held-out videos; takes minutes.",
        ),
    ] = False,
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out",
            help="Also rank frames by what is lost without them; runs every network again.",
        ),
    ] = False,
) -> None:
    """Compare A with B, or TG-DFER with zero-shot CLIP and logistic regression.

    Of A and B it prints UAR, WAR and the recall of each class with 95 % intervals, the differences
    paired by video with p-values, and the smallest difference that such a test finds. Settings are
    trained first where needed; runs must be of videos of the store, which tells who is seen in
    them. Of two tables in JSON it compares the rows that both have, by their runs where these are
    still there.

    With neither, the baselines are fitted, and scores have intervals, and so have their differences
    to the best logistic regression, to the searched one, and to the first configuration. If every
    frame is labelled, as in the embedded set, it also measures how well a frame's influence finds
    the frames that show the label. Writes reports/comparison.md.

    \b
    Two settings:
      tgdfer compare paper tuned
    Two versions of the code:
      tgdfer compare runs-before runs-after
    With the baselines, on the embedded faces:
      tgdfer compare
    Two configurations beside a searched baseline:
      tgdfer compare --config paper --config tuned --search-baseline
    What tgdfer tune found, on the test videos that its search kept out:
      tgdfer compare --config paper --config tuned --search-baseline --fold 1
    On DFEW:
      tgdfer compare --store data/dfew-ViT-B-32-quickgelu.zarr
    """
    train = Training.asked(context)
    if a is not None:
        return _compare_two(context, a, b, store, settings, seeds, fold, train)
    here = device if train.engine.is_local else "auto"
    rank = partial(_leaving_out, device=here) if leave_one_out else None
    _compare_baselines(
        store, configs, settings, seeds, runs, out, fold, search_baseline, rank, train
    )


def _compare_baselines(
    store: "StorePath",
    configs: Sequence[str],
    settings: Sequence[str],
    seeds: int,
    runs: Path,
    out: Path,
    fold: str,
    search_baseline: bool,
    rank: "Callable[[Store, Records], Ranking] | None",
    train: Training,
) -> None:
    """Write a table of settings beside methods that have no network."""
    from cache.store import open_store
    from pipeline.config import load_method, runs_of
    from pipeline.report.written import check_reports

    named = {Path(config).stem: load_method(config, settings) for config in configs}
    opened = open_store(store)
    if fold == "all":
        refuse_to_pool(opened)
    if rank is not None:
        for method in named.values():
            method.input.refuse_leaving_out_the_only_frame(opened.frames)
    folds = [name for name, _, _ in opened.folds] if fold == "all" else [fold]
    wanted = {name: runs_of(method, folds, range(seeds)) for name, method in named.items()}
    every = [run for runs_of_one in wanted.values() for run in runs_of_one]
    check_reports(out, "comparison.md")
    if not opened.has_texts and any(own.head.reads_texts for own in named.values()):
        _compare_regressions(opened, folds, search_baseline, train, out)
        return
    records, damaged, _ = train(every, opened)
    # These load torch, so they come after everything that can be refused.
    from pipeline.evaluate.localisation import localisation_table, localise
    from pipeline.evaluate.segments import locate, segments_table
    from pipeline.report.comparison import best_of, comparison_table, of_runs, write_comparison

    zero_shots = _zero_shots(opened, folds)
    baselines = _regressions(opened, folds, search_baseline, train)
    ours, good = [], {}
    for name, own in wanted.items():
        title = named[name].head.title + (f", {name}" if len(wanted) > 1 else "")
        predicted, good[name] = of_runs(title, [records.find(run) for run in own], opened)
        ours.append(predicted)
    tested = f"{len(folds)} folds" if fold == "all" else f"fold {show(fold)}"
    header = _header(opened, named, tested, seeds) | {"code": records.code}
    references = {"best regression": best_of(baselines, opened)}
    if search_baseline:
        references["searched one"] = baselines[-1]
    if len(ours) > 1:
        references[next(iter(named))] = ours[0]
    text = comparison_table(opened, [*zero_shots, *baselines, *ours], header, references)
    more = [] if rank is None else [rank(opened, records)]
    for name, records_of_one in good.items():
        if located := localise(records_of_one, opened, *more):
            title = name if len(good) > 1 else ""
            text += localisation_table(located, opened.classes, title)
            text += segments_table(locate(records_of_one, opened), title)
    path = write_comparison(text, out)
    print(path.read_text(encoding="utf-8"))
    print(f"written: {show(path)}")
    next_step("tgdfer", "ablate", "table3", *as_asked(store, runs, configs[0], settings, seeds))
    leave_if_damaged(damaged)


def _header(
    store: "Store", named: "dict[str, MethodConfig]", tested: str, seeds: int
) -> dict[str, str]:
    from pipeline.report.ablation import describe_selection, header_of

    header = header_of(store, next(iter(named.values())), len(store.folds), seeds)
    header["protocol"] = f"{tested}, seeds per fold: {seeds}, epochs: " + ", ".join(
        f"{method.optimiser.epochs} ({name})" for name, method in named.items()
    )
    if len({method.selection for method in named.values()}) > 1:
        header["reported"] = "; ".join(
            f"{describe_selection(method.selection)} ({name})" for name, method in named.items()
        )
    del header["spread"]  # the folds are pooled
    return header


def _zero_shots(store: "Store", folds: list[str]) -> "list[PredictedLabels]":
    from pipeline.evaluate.baselines import zero_shot

    if not store.is_aligned:
        why = "texts are read by another encoder" if store.has_texts else "nothing reads texts"
        print(f"zero-shot is left out: {why}", file=sys.stderr)
        return []
    return [zero_shot(store, "class", folds), zero_shot(store, "descriptors", folds)]


def _regressions(
    store: "Store", folds: list[str], search: bool, train: Training
) -> "list[PredictedLabels]":
    from pipeline.evaluate.baselines import logistic_regression

    return [
        logistic_regression(store, "mean", folds),
        logistic_regression(store, "mean+max+std", folds),
        *([search_regressions(store, train.runs, folds, train.retrain_damaged)] if search else []),
    ]


def _compare_regressions(
    store: "Store", folds: list[str], search: bool, train: Training, out: Path
) -> None:
    """The table of a store without a text tower."""
    from pipeline.report.comparison import best_of, comparison_table, write_comparison

    without = "TG-DFER and zero-shot are left out: the store's encoder has no text tower"
    print(without, file=sys.stderr)
    header = {
        "data": f"{store.title}, {len(store.ids)} videos, {len(store.missing)} missing",
        "encoder": f"{store.identity.encoder.name}, frozen, {store.views} views per video",
        "protocol": f"{', '.join(folds)}: folds; {without}",
        "store": store.digest,
    }
    methods = _regressions(store, folds, search, train)
    references = {"best regression": best_of(methods, store)}
    path = write_comparison(comparison_table(store, methods, header, references), out)
    print(path.read_text(encoding="utf-8"))
    print(f"written: {show(path)}")


def _compare_two(
    context: typer.Context,
    a: str,
    b: str | None,
    store: "StorePath",
    settings: Sequence[str],
    seeds: int,
    fold: str,
    train: Training,
) -> None:
    """Print how two settings, runs or tables differ."""
    from cache.store import open_store
    from pipeline.config import load_method, runs_of
    from pipeline.report.versus import read_side, versus, versus_report
    from pipeline.report.versus_tables import versus_tables

    if b is None or a == b:
        raise RefusedError(
            f"compare {a}: expected another setting, run or table to compare it with"
        )
    refuse_unread(context, OF_BASELINES, "not read where A is compared with B")
    paths = Path(a), Path(b)
    of_settings = [name for name in (a, b) if not Path(name).is_dir()]
    if all(path.suffix == ".json" for path in paths):
        refuse_unread(context, OF_TRAINING, "not read where tables are compared")
        print(versus_tables(*paths, _store_or_why(store)))
        return
    if not of_settings:
        refuse_unread(context, OF_TRAINING, "not read where finished runs are compared")
    methods = {name: load_method(check_config(name), settings) for name in of_settings}
    opened = open_store(store)
    folds = [name for name, _, _ in opened.folds] if fold == "all" else [fold]
    wanted = {name: runs_of(method, folds, range(seeds)) for name, method in methods.items()}
    every = [run for own in wanted.values() for run in own]
    records, damaged, _ = train(every, opened) if every else (None, 0, 0)
    first, second = (
        _finished(name, wanted[name], records) if records and name in wanted else read_side(path)
        for name, path in zip((a, b), paths, strict=True)
    )
    print(versus_report(versus(first, second, opened)))
    next_step("tgdfer", "compare", "--store", store)
    leave_if_damaged(damaged)


def _store_or_why(store: "StorePath") -> "Store | str":
    """The store, or why it cannot tell who is seen in its videos."""
    from cache.store import open_store

    try:
        return open_store(store)
    except RefusedError as error:
        return f"{error}; or name the store of the runs with --store"


def _finished(name: str, wanted: "Sequence[Run]", records: "Records") -> "Side":
    from pipeline.report.versus import Side

    found = [record for run in wanted if (record := records.find(run)) is not None and record.ok]
    lost = f" ({len(found)} of {len(wanted)} runs)" if len(found) < len(wanted) else ""
    return Side(name + lost, found)


def _leaving_out(store: "Store", records: "Records", device: str) -> "Ranking":
    """A run -> the ranking of the frames of its test videos by leaving each of them out."""
    from pipeline.device import choose_device
    from pipeline.train.trained import load_run

    place = choose_device(device)
    features_NTD = store.load_features([0])[:, 0]

    def rank(tested: "TestedRun") -> "dict[str, Array]":
        ids, _, predicted = tested.predictions()
        trained = load_run(records.folder(tested.run), store, place)
        found = trained.leave_one_out(features_NTD[store.rows_of(ids)], predicted)
        return {"leave_one_out": found}

    return rank
