"""tgdfer ablate: tables of the paper, trained where needed, written as Markdown, CSV and LaTeX."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cache.errors import RefusedError
from cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    AlsoOption,
    ConfigOption,
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
    RowsOption,
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
    Training,
    as_asked,
    leave_if_damaged,
    search_regressions,
    suggest_comparison,
)

if TYPE_CHECKING:
    from cache.remote import StorePath
    from cache.store import Store
    from pipeline.config import MethodConfig
    from pipeline.report.ablation import Factors
    from pipeline.report.tables import Table
    from pipeline.train.records import Records


def ablate(
    context: typer.Context,
    tables: TablesArgument = None,
    varied: VaryOption = [],  # noqa: B006  (typer copies it)
    rows: RowsOption = None,
    store: StoreOption = DEFAULT_STORE,
    also: AlsoOption = [],  # noqa: B006  (typer copies it)
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
    log: LogOption = None,
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
    The same head on features of two encoders:
      tgdfer ablate encoders --store data/faces-mini.zarr --also data/faces-RN50.zarr
    Every combination of some values:
      tgdfer ablate --vary optimiser.lr=[0.003,0.01] --vary label.temperature=[0.01,0.07]
    """
    from pipeline.config import load_method

    train = Training.asked(context)
    words = [*(tables or []), *(word for own in varied for word in ("--vary", own))]
    words += ["--rows", rows] if rows is not None else []
    words += [word for own in also for word in ("--also", str(own))]
    options = as_asked(store, runs, config, settings, seeds)
    asked = command("tgdfer", "ablate", *words, *options)
    base = load_method(config, settings)
    if "encoders" in (tables or []):
        if tables != ["encoders"] or varied or rows is not None or not also:
            raise RefusedError(
                "table encoders stands alone, without --vary and --rows, and needs another store: "
                "--also STORE"
            )
        return _ablate_encoders([store, *also], base, seeds, out, train, asked)
    if also:
        raise RefusedError("--also: read only by table encoders")
    _ablate(tables or [], varied, rows, store, base, seeds, out, train, asked, options)


def _ablate(
    tables: Sequence[str],
    varied: Sequence[str],
    names: str | None,
    store: "StorePath",
    base: "MethodConfig",
    seeds: int,
    out: Path,
    train: Training,
    asked: str,
    options: Sequence[object],
) -> None:
    """Train tables on one store, and write them."""
    from cache.store import open_store
    from pipeline.report.ablation import collect, header_of
    from pipeline.report.curves import CURVES, draw_curves
    from pipeline.report.forms import FORMS, write_tables
    from pipeline.report.tables import LIST, REGRESSION, ROBUSTNESS, choose_rows, names_of_rows
    from pipeline.report.written import check_reports

    opened, named = open_store(store), _named(tables, varied)
    if names == LIST:
        print("\n".join(map(show, names_of_rows(named, opened, base))))
        return
    chosen = choose_rows(named, opened, base, names)
    folds = [name for name, _, _ in opened.folds]
    check_reports(out, *FORMS, *(CURVES if ROBUSTNESS.name in tables else ()))
    done = _train(chosen, base, folds, range(seeds), opened, train)
    if any(row.baseline == REGRESSION for table in chosen for row in table.rows):
        search_regressions(opened, train.runs, folds, train.retrain_damaged)
    filled = [
        (t, collect(t, base, folds, range(seeds), done.records, done.factors)) for t in chosen
    ]
    header = header_of(opened, base, len(folds), seeds, chosen)
    header |= {"runs": str(train.runs), "code": done.records.code, "command": asked}
    drawn = next((own for table, own in filled if table.name == ROBUSTNESS.name), None)
    paths = write_tables(filled, header, out, draw_curves(drawn, header) if drawn else {})
    print(paths[0].read_text(encoding="utf-8"))
    print(f"{count(done.trained, 'run')} trained, {done.finished} already finished.")
    print("written: " + ", ".join(show(path) for path in paths))
    suggest_comparison(opened, *options)
    leave_if_damaged(done.damaged)


def _named(tables: Sequence[str], varied: Sequence[str]) -> "list[Table]":
    from pipeline.report.tables import find_tables, vary

    if not tables and not varied:
        raise RefusedError("no table given: name one, such as table3, or use --vary KEY=[V1,V2]")
    return find_tables(tables) + ([vary(varied)] if varied else [])


@dataclass(frozen=True)
class _Done:
    """What tables are filled from, and how many of its runs were trained for it."""

    records: "Records"
    factors: "Factors"  # of learning rates, in tuned tables
    trained: int
    finished: int  # before
    damaged: int


def _train(
    chosen: "Sequence[Table]",
    base: "MethodConfig",
    folds: Sequence[str],
    seeds: Sequence[int],
    store: "Store",
    train: Training,
) -> _Done:
    """Train what tables need, after the trials of learning rates in those that are tuned."""
    from pipeline.report.ablation import choose_factors, left_out, methods_to_tune, runs_of_table
    from pipeline.train.rates import trials

    for name in dict.fromkeys(name for table in chosen for name in left_out(table, base)):
        print(
            f"not trained: {name}, which --rows leaves out; differences to it need its finished "
            "runs",
            file=sys.stderr,
        )
    best = partial(choose_factors, chosen, base, folds, seeds)
    methods = methods_to_tune(chosen, base)
    tried = [run for method in methods for fold in folds for run in trials(method, fold)]
    asked, trained, steady = {*tried}, 0, False
    factors: Factors = {}
    if tried:
        print("learning rates of every row and fold, on held-out videos:", file=sys.stderr)
        others = [t for t in chosen if not t.tuned]
        records, _, trained = train(
            tried, store, [run for t in others for run in runs_of_table(t, base, folds, seeds)]
        )
        factors = best(records)
    while not steady:  # a rate with which training diverges gives way to the next best
        wanted = [run for t in chosen for run in runs_of_table(t, base, folds, seeds, factors)]
        records, damaged, more = train(wanted, store)
        known, factors = factors, best(records)
        asked, trained, steady = asked.union(wanted), trained + more, known == factors
    return _Done(records, factors, trained, len(asked) - trained - damaged, damaged)


def _ablate_encoders(
    stores: "Sequence[StorePath]",
    base: "MethodConfig",
    seeds: int,
    out: Path,
    train: Training,
    asked: str,
) -> None:
    """Train the same runs on each store, and write one row for each."""
    from cache.store import open_store
    from pipeline.config import runs_of
    from pipeline.report.ablation import collect_stores, header_of
    from pipeline.report.forms import FORMS, write_tables
    from pipeline.report.tables import rows_of_stores
    from pipeline.report.written import check_reports

    opened = [open_store(store) for store in stores]
    table = rows_of_stores(opened)
    folds = [name for name, _, _ in opened[0].folds]
    check_reports(out, *FORMS)
    runs = runs_of(base, folds, range(seeds))
    done = [train(runs, store) for store in opened]
    records = [own for own, _, _ in done]
    rows = collect_stores(table, base, folds, range(seeds), records)
    header = header_of(opened[0], base, len(folds), seeds, [table])
    header |= {"encoder": "one for each row, all frozen", "code": records[0].code}
    header |= {"store": ", ".join(store.digest for store in opened)}
    header |= {"runs": str(train.runs), "command": asked}
    paths = write_tables([(table, rows)], header, out)
    print(paths[0].read_text(encoding="utf-8"))
    trained, damaged = sum(own for *_, own in done), sum(own for _, own, _ in done)
    print(f"{count(trained, 'run')} trained, {len(done) * len(runs) - trained} already finished.")
    print("written: " + ", ".join(show(path) for path in paths))
    leave_if_damaged(damaged)
