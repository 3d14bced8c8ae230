"""tgdfer demo: three rendered faces that no network has seen -> a page of predictions."""

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import RefusedError
from cli.options import DEFAULT_OUT, DeviceOption
from cli.show import columns, next_step, show

BUNDLE = Path("data/demo.tgdfer")


def demo(
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="RUN|FILE",
            help="Folder of a finished run, or a file of tgdfer export; repeatable.",
            show_default=str(BUNDLE),
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the videos and the page.")
    ] = DEFAULT_OUT / "demo",
    device: DeviceOption = "auto",
) -> None:
    """Render three new faces, predict them, and write a page with their frames.

    The people are in no fold of the embedded set, and the true labels are known.

    \b
    With the bundle that make demo trains:
      tgdfer demo
    With a run of your own on the embedded set:
      tgdfer demo --run runs/0123456789abcdef
    """
    from pipeline.predict.bundle import check_trained
    from pipeline.report.written import check_reports, write_reports

    given = runs or [BUNDLE]
    if not runs and not BUNDLE.exists():
        raise RefusedError(
            f"no demonstration bundle at {BUNDLE}; make it with: make demo\n"
            f"or with: tgdfer extract; tgdfer train --config tuned; "
            f"tgdfer export runs/RUN {BUNDLE} --with-encoder"
        )
    for run in given:
        check_trained(run)
    check_reports(out, "index.html")
    # It loads torch, so it comes after everything that can be refused.
    from pipeline.demo.newcomers import PAGE, meet, page
    from pipeline.predict.predictor import load_predictor

    predictor = load_predictor(given, device=device)
    met = meet(predictor, out)
    (path,) = write_reports({PAGE: page(met, list(predictor.networks))}, out)
    rows = [["video", "shows", "predicted", "%", ""]]
    for own in met:
        share = own.video.probabilities[str(own.video.label)]
        verdict = "right" if own.is_right else "wrong"
        rows.append(
            [show(own.path), own.label, str(own.video.label), f"{100 * share:.1f}", verdict]
        )
    print(columns(rows))
    print(f"written: {show(path)}")
    words = [word for run in given for word in ("--run", run)]
    words += ["--faces", "whole", "--out", "predictions", "--overlay"]
    next_step("tgdfer", "predict", met[0].path, *words)
