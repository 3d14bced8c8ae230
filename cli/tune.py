"""tgdfer tune: search for better settings on held-out training videos."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import settings_file
from cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    DuplicatesOption,
    FeaturesOption,
    MissingOption,
    OutOption,
    RetrainOption,
    RunsOption,
    SetOption,
    StoreOption,
    WorkersOption,
)
from cli.progress import progress
from cli.show import next_step, show
from cli.training import (
    open_records,
    prepare_folder,
    print_waiting,
    report_damaged,
)

if TYPE_CHECKING:
    from cli.progress import Progress
    from pipeline.config import Run
    from pipeline.train.records import Records

FILES = ("tune.md", "tune.json", "tuned.toml")


def tune(
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = DEFAULT_CONFIG,
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    space: Annotated[
        str,
        typer.Option(
            "--space",
            metavar="FILE",
            help="TOML file of what to search; start from pipeline/presets/space.toml.",
        ),
    ] = "default",
    rungs: Annotated[
        str,
        typer.Option(
            "--rungs",
            metavar="TRIALS:EPOCHS:HOLDOUTS,…",
            help="How many settings are tried for how many epochs on how many hold-outs; the best "
            "ones go on.",
        ),
    ] = "48:10:2,16:30:3,5:90:5",
    fold: Annotated[
        str | None,
        typer.Option(
            "--fold",
            metavar="NAME",
            help="Fold whose training videos are searched on.",
            show_default="the first",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the random settings.")
    ] = 0,
    runs: RunsOption = DEFAULT_RUNS,
    out: OutOption = DEFAULT_OUT,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    features: FeaturesOption = "auto",
    allow_missing: MissingOption = False,
    allow_duplicates: DuplicatesOption = False,
    retrain_damaged: RetrainOption = False,
) -> None:
    """Search for better settings, by successive halving on held-out training videos.

    Random settings are trained for a few epochs, the best of them anew for more. All are scored on
    training videos that are held out, with nobody who is known on both sides; the test videos of
    the fold are never looked at, and the next command judges the winner by them.
    The configuration given by --config is the first trial. Writes tune.md, tune.json with every
    trial, and tuned.toml, the best settings. The same command resumes a search that was stopped.

    \b
    On the embedded faces, about 20 minutes on two cores:
      tgdfer tune
    A short one, over settings of your own:
      tgdfer tune --space mine.toml --rungs 12:10:2,4:30:3
    """
    from cache.store import open_store
    from pipeline.config import load_method
    from pipeline.device import choose_device
    from pipeline.report.tuning import tuning_json, tuning_table
    from pipeline.report.written import check_reports, write_reports
    from pipeline.train.grid import check_shapes
    from pipeline.train.halving import halve, parse_rungs, plan_search
    from pipeline.train.space import read_space

    steps, choices, base = parse_rungs(rungs), read_space(space), load_method(config, settings)
    opened = open_store(store)
    chosen_fold = next((name for name, _, _ in opened.folds), "") if fold is None else fold
    search = plan_search(
        base, choices, chosen_fold, steps, seed, lambda wanted: check_shapes(wanted, opened)
    )
    check_reports(out, *FILES)
    first = [run for method in search.trials for run in search.runs(method, steps[0])]
    records = open_records(first, opened, runs, device, allow_missing, allow_duplicates)
    prepare_folder(first, records.pending(first), records)
    place = choose_device(device)
    with progress("searching", sum(rung.run_epochs for rung in steps), "epochs") as shown:

        def train(wanted: Sequence["Run"]) -> None:
            report_damaged(wanted, records, retrain_damaged)
            _train(wanted, records, place, workers, features, shown)

        trials = halve(search, records, train)
    header = {
        "data": opened.title,
        "store": opened.digest,
        "code": records.code,
        "seed": seed,
        "space": choices.plain(),
    }
    best = search.chosen(trials[0].method)
    contents = {
        "tune.md": tuning_table(search, trials, {n: t for n, t in header.items() if n != "space"}),
        "tune.json": tuning_json(search, trials, header),
        "tuned.toml": settings_file(best) + "\n",
    }
    paths = write_reports(contents, out)
    print(paths[0].read_text(encoding="utf-8"))
    print("written: " + ", ".join(show(path) for path in paths))
    configs = ["--config", config, "--config", paths[2]]
    judged = ["--fold", chosen_fold, "--search-baseline"]  # other folds test what was searched on
    next_step("tgdfer", "compare", "--store", store, *configs, *judged)


def _train(
    wanted: Sequence["Run"],
    records: "Records",
    device: str,
    workers: int | None,
    features: str,
    shown: "Progress",
) -> None:
    from pipeline.train.grid import train_runs

    pending = set(records.pending(wanted))
    if earlier := sum(run.method.optimiser.epochs for run in wanted if run not in pending):
        shown.skip(earlier)
    train_runs(
        wanted,
        records,
        device,
        shown.advance,
        workers,
        on_wait=print_waiting,
        features=features,
    )
