"""tgdfer compare: TG-DFER and methods without a temporal network."""

from cli.options import (
    DEFAULT_CONFIG,
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    DuplicatesOption,
    MissingOption,
    OutOption,
    RetrainOption,
    RunsOption,
    SeedsOption,
    SetOption,
    StoreOption,
    WorkersOption,
)
from cli.show import next_step, show
from cli.training import as_asked, leave_if_damaged, open_records, report_damaged, train_pending


def compare(
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = DEFAULT_CONFIG,
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    seeds: SeedsOption = 3,
    runs: RunsOption = DEFAULT_RUNS,
    out: OutOption = DEFAULT_OUT,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    allow_missing: MissingOption = False,
    allow_duplicates: DuplicatesOption = False,
    retrain_damaged: RetrainOption = False,
) -> None:
    """Compare TG-DFER with zero-shot CLIP and logistic regression.

    Scores have 95 % intervals. If every frame is labelled, as in the embedded set, it also
    measures how well a frame's influence finds the frames that show the label. Writes
    reports/comparison.md.

    \b
    On the embedded faces:
      tgdfer compare
    On DFEW:
      tgdfer compare --store data/dfew-ViT-B-32-quickgelu.zarr
    """
    from cache.store import open_store
    from pipeline.config import load_method, runs_of
    from pipeline.report.ablation import header_of

    method = load_method(config, settings)
    from pipeline.report.written import check_reports

    opened = open_store(store)
    folds = [name for name, _, _ in opened.folds]
    wanted = runs_of(method, folds, range(seeds))
    check_reports(out, "comparison.md")
    records = open_records(wanted, opened, runs, device, allow_missing, allow_duplicates)
    damaged = report_damaged(wanted, records, retrain_damaged)
    train_pending(wanted, records, device, workers)
    # These load torch, so they come after everything that can be refused.
    from pipeline.evaluate.baselines import logistic_regression, zero_shot
    from pipeline.evaluate.localisation import localisation_table, localise
    from pipeline.report.comparison import comparison_table, of_runs, write_comparison

    ours, good = of_runs("TG-DFER", [records.find(run) for run in wanted], opened)
    methods = [
        zero_shot(opened, "class"),
        zero_shot(opened, "descriptors"),
        logistic_regression(opened, "mean"),
        logistic_regression(opened, "mean+max+std"),
        ours,
    ]
    header = header_of(opened, method, len(folds), seeds)
    text = comparison_table(opened, methods, header)
    if located := localise(good, opened):
        text += localisation_table(located, opened.classes)
    path = write_comparison(text, out)
    print(path.read_text(encoding="utf-8"))
    print(f"written: {show(path)}")
    next_step("tgdfer", "ablate", "table3", *as_asked(store, runs, config, settings, seeds))
    leave_if_damaged(damaged)
