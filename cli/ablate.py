"""tgdfer ablate: tables of the paper, trained where needed, written as Markdown, CSV and LaTeX."""

from typing import Annotated

import typer

from cli.training import (
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    MissingOption,
    OutOption,
    RunsOption,
    SeedsOption,
    SetOption,
    StoreOption,
    WorkersOption,
    train_pending,
)


def ablate(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="table3, table4, table5, table6, views.", show_default=False),
    ] = None,
    varied: Annotated[
        list[str],
        typer.Option(
            "--vary", metavar="KEY=[V1,V2]", help="A table of these values too; repeatable."
        ),
    ] = [],  # noqa: B006  (typer copies it)
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = "paper",
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    seeds: SeedsOption = 1,
    runs: RunsOption = DEFAULT_RUNS,
    out: OutOption = DEFAULT_OUT,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    allow_missing: MissingOption = False,
) -> None:
    """Run ablation tables over all folds and write reports/ablation.md, .csv and .tex.

    Runs that are finished, also those of other tables, are not repeated.

    - The paper's Table 3 on the embedded faces:  tgdfer ablate table3

    - On DFEW with three seeds:  tgdfer ablate table3 --store data/dfew.zarr --seeds 3

    - Every combination of some values:  tgdfer ablate --vary optimiser.lr=[0.003,0.01]
    --vary label.temperature=[0.01,0.07]
    """
    from cache.errors import RefusedError
    from cache.store import open_store
    from pipeline.config import load_method, runs_of
    from pipeline.device import device_kind
    from pipeline.report.ablation import collect, header_of, write_tables
    from pipeline.report.tables import find_tables, vary
    from pipeline.train.records import Records

    chosen = find_tables(tables or []) + ([vary(varied)] if varied else [])
    if not chosen:
        raise RefusedError("no table named: give some, such as table3, or --vary KEY=[V1,V2]")
    base = load_method(config, settings)
    opened = open_store(store)
    folds = [name for name, _, _ in opened.folds]
    methods = [row.method(base) for table in chosen for row in (table.main, *table.rows)]
    wanted = [run for method in methods for run in runs_of(method, folds, range(seeds))]
    records = Records(runs, opened, device_kind(device))
    trained = train_pending(wanted, records, device, workers, allow_missing)
    filled = [(t, collect(t, base, folds, range(seeds), records)) for t in chosen]
    paths = write_tables(filled, header_of(opened, base, len(folds), seeds), out)
    print(paths[0].read_text())
    print(f"{trained} runs trained, {len(set(wanted)) - trained} already there.")
    print("written: " + ", ".join(str(path) for path in paths))
