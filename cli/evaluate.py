"""tgdfer evaluate: trained networks on the features of another data set."""

from pathlib import Path
from typing import Annotated

import typer

from cache.remote import StorePath, store_path
from cli.options import DEFAULT_OUT, DeviceOption, OtherCodeOption, OutOption, RunOption
from cli.progress import progress
from cli.show import count, show


def evaluate(
    runs: RunOption,
    stores: Annotated[
        list[StorePath],
        typer.Option(
            "--store",
            parser=store_path,
            metavar="PATH|URL",
            help="Feature store of the same encoder; repeatable, a column of the table for each.",
        ),
    ],
    map_file: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="FILE",
            help='TOML file of lines CLASS = "LABEL OF A STORE", or a list of labels if stores '
            "differ.",
            show_default="equal names",
        ),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    device: DeviceOption = "auto",
    other_code: OtherCodeOption = False,
) -> None:
    """Evaluate trained networks on other data sets.

    Prints UAR and WAR with 95 % intervals for each data set that the networks were trained on and
    each store, then recalls and confusion. Videos whose label the networks do not know are counted,
    and left out. On the store that it was trained on, a network predicts its test fold only. Writes
    reports/evaluation.md.

    \b
    A run on another store:
      tgdfer evaluate --run runs/0123456789abcdef --store data/faces-mid-seed7-mini.zarr
    Two runs on two stores:
      tgdfer evaluate --run runs/a --run runs/b --store data/a.zarr --store data/b.zarr
    """
    from cache.store import open_store
    from pipeline.device import choose_device
    from pipeline.predict.bundle import check_trained
    from pipeline.report.written import check_reports, write_reports

    for run in runs:
        check_trained(run)
    opened = [open_store(store) for store in stores]
    check_reports(out, "evaluation.md")
    # These load torch, so they come after everything that can be refused.
    from pipeline.predict.elsewhere import (
        by_data,
        evaluate_elsewhere,
        evaluation_report,
        read_map,
    )
    from pipeline.predict.predictor import read_trained

    checkpoints = [own for run in runs for own in read_trained(run, other_code)]
    classes = dict.fromkeys(name for own in checkpoints for name in own.classes)
    labels = dict.fromkeys(name for store in opened for name in store.classes)
    given = None if map_file is None else read_map(map_file, classes, labels)
    groups, place = by_data(checkpoints), choose_device(device)
    title = f"evaluating {count(len(checkpoints), 'network')}"
    with progress(title, len(groups) * len(opened), "pairs") as shown:
        table = []
        for group in groups:
            row = []
            for store in opened:
                row.append(evaluate_elsewhere(group, store, given, place))
                shown.advance()
            table.append(row)
    (path,) = write_reports({"evaluation.md": evaluation_report(table, opened)}, out)
    print(path.read_text(encoding="utf-8"))
    print(f"written: {show(path)}")
