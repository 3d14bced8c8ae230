"""tgdfer ablate: tables of the paper, trained where needed, written as Markdown, CSV and LaTeX."""

import sys
from typing import Annotated

import typer

from cache.errors import RefusedError
from cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    DuplicatesOption,
    EngineOption,
    EngineSetOption,
    FeaturesOption,
    GpusOption,
    MissingOption,
    OutOption,
    RetrainOption,
    RunsOption,
    SeedsOption,
    SetOption,
    StoreOption,
    TablesArgument,
    VaryOption,
    WorkersOption,
)
from cli.show import command, count, show
from cli.training import (
    as_asked,
    leave_if_damaged,
    open_records,
    report_damaged,
    suggest_comparison,
    train_pending,
)


def ablate(
    tables: TablesArgument = None,
    varied: VaryOption = [],  # noqa: B006  (typer copies it)
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="NAME,NAME",
            help="Only these rows of the tables.",
            show_default="all",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = DEFAULT_CONFIG,
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    seeds: SeedsOption = 1,
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
) -> None:
    """Train ablation tables over all folds and write them to reports/.

    Finished runs, including those of other tables, are not repeated. The tables are written to
    ablation.md, .csv, .json and .tex, the curves of table robustness to robustness.png
    and robustness.svg.

    \b
    The paper's Table 3 on the embedded faces:
      tgdfer ablate table3
    On DFEW with three seeds:
      tgdfer ablate table3 --store data/dfew-ViT-B-32-quickgelu.zarr --seeds 3
    As jobs of a SLURM cluster, eight at a time:
      tgdfer ablate table3 --engine slurm --device cuda --gpus 8 --engine-set partition=gpu
    Every combination of some values:
      tgdfer ablate --vary optimiser.lr=[0.003,0.01] --vary label.temperature=[0.01,0.07]
    """
    from cache.store import open_store
    from pipeline.config import load_method
    from pipeline.engines.choose import choose_engine
    from pipeline.report.ablation import collect, header_of, methods_to_tune, runs_of_table
    from pipeline.report.curves import CURVES, draw_curves
    from pipeline.report.forms import FORMS, write_tables
    from pipeline.report.tables import ROBUSTNESS, find_tables, fit, vary
    from pipeline.report.written import check_reports
    from pipeline.train.rates import best_factors, trials

    chosen = find_tables(tables or []) + ([vary(varied)] if varied else [])
    if not chosen:
        raise RefusedError("no table given: name one, such as table3, or use --vary KEY=[V1,V2]")
    base = load_method(config, settings)
    where = choose_engine(engine, gpus, engine_set, device, workers)
    opened = open_store(store)
    names = None if rows is None else [name.strip() for name in rows.split(",")]
    chosen = [fit(table, opened, base, names) for table in chosen]
    if unknown := {*(names or ())} - {row.name for table in chosen for row in table.rows}:
        raise RefusedError(f"--rows: no such row in these tables: {min(unknown)}; leave it out")
    chosen = [table for table in chosen if table.rows]
    folds = [name for name, _, _ in opened.folds]
    tuned = methods_to_tune(chosen, base)
    tried = [run for method in tuned for fold in folds for run in trials(method, fold)]
    wanted = [run for t in chosen for run in runs_of_table(t, base, folds, range(seeds))]
    pictures = CURVES if ROBUSTNESS.name in (tables or []) else ()
    check_reports(out, *FORMS, *pictures)
    asked = [*tried, *wanted]
    records = open_records(asked, opened, runs, device, allow_missing, allow_duplicates)
    report_damaged(tried, records, retrain_damaged)
    if tried:
        print("learning rates of every row and fold, on held-out videos:", file=sys.stderr)
    trained = train_pending(tried, records, device, workers, features, where)
    factors = best_factors(tuned, folds, records)
    wanted = [run for t in chosen for run in runs_of_table(t, base, folds, range(seeds), factors)]
    damaged = report_damaged(wanted, records, retrain_damaged)
    trained += train_pending(wanted, records, device, workers, features, where)
    filled = [(t, collect(t, base, folds, range(seeds), records, factors)) for t in chosen]
    options = as_asked(store, runs, config, settings, seeds)
    header = header_of(opened, base, len(folds), seeds, chosen)
    varying = [part for setting in varied for part in ("--vary", setting)]
    header["code"] = records.code
    header["command"] = command("tgdfer", "ablate", *(tables or []), *varying, *options)
    drawn = next((rows for table, rows in filled if table.name == ROBUSTNESS.name), None)
    paths = write_tables(filled, header, out, draw_curves(drawn, header) if drawn else {})
    print(paths[0].read_text(encoding="utf-8"))
    finished = len({*tried, *wanted}) - trained - damaged
    print(f"{count(trained, 'run')} trained, {finished} already finished.")
    print("written: " + ", ".join(show(path) for path in paths))
    suggest_comparison(opened, *options)
    leave_if_damaged(damaged)
