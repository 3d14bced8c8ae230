"""tgdfer predict: videos and trained networks -> labels, probabilities and influence of frames."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cache.errors import RefusedError
from cli.options import (
    DeviceOption,
    FacesOption,
    InfluenceOption,
    OtherCodeOption,
    OtherEncoderOption,
    PrecisionOption,
    PretrainedOption,
    RunOption,
    WorkersOption,
)
from cli.progress import progress
from cli.show import columns, count, next_step, show
from pipeline.interrupt import StoppedError, stop_on_signal

if TYPE_CHECKING:
    from pipeline.evaluate.influence import Influence
    from pipeline.predict.features import ReadSettings
    from pipeline.predict.output import Output
    from pipeline.predict.prediction import VideoPrediction
    from pipeline.predict.predictor import Predictor
    from pipeline.predict.sources import Source

DONE_WITH_FAILURES = 3
_TENTHS = 9.999  # the highest influence of a window is 9


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Videos, folders of images, folders of these, or lists of paths (.txt).",
        ),
    ],
    runs: RunOption,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for tables and pictures."),
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay", help="Also write each video with its prediction under the picture."
        ),
    ] = False,
    influence: InfluenceOption = "logit",
    window: Annotated[
        float | None,
        typer.Option("--window", metavar="SECONDS", help="Predict sliding windows of this length."),
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option(
            "--stride",
            metavar="SECONDS",
            help="Time from one window to the next.",
            show_default="half of --window",
        ),
    ] = None,
    faces: FacesOption = "auto",
    fps: Annotated[
        float, typer.Option("--fps", metavar="N", help="Frames per second of image folders.")
    ] = 25.0,
    encoder: OtherEncoderOption = None,
    pretrained: PretrainedOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    decode_seconds: Annotated[
        float,
        typer.Option(
            "--decode-seconds",
            metavar="SECONDS",
            help="A video that takes longer counts as failed.",
        ),
    ] = 3600.0,
    other_code: OtherCodeOption = False,
) -> None:
    """Predict the expression in videos with trained networks.

    Prints the label of each video, its probability and how much each frame speaks for it, from 0 to
    9. Several runs are an ensemble: the mean of their probabilities, and their disagreement as
    doubt. Faces are cropped (--faces), and each person of a video is a line of its own. Videos that
    cannot be read, or have no face, are lines with the reason (exit code 3).

    \b
    One video:
      tgdfer predict clip.mp4 --run runs/0123456789abcdef
    A folder, with tables and a strip of pictures for each video:
      tgdfer predict clips --run runs/0123456789abcdef --out predictions
    With a file that tgdfer export wrote:
      tgdfer predict clip.mp4 --run model.tgdfer
    A long video, as a timeline of two seconds each:
      tgdfer predict talk.mp4 --run runs/0123456789abcdef --window 2 --stride 0.5 --out talk
    A copy of the video, with the influence of its frames under the picture:
      tgdfer predict clip.mp4 --run runs/0123456789abcdef --out clip --overlay
    """
    from pipeline.extract.planning import parse_precision
    from pipeline.predict.bundle import check_trained
    from pipeline.predict.sources import find_sources
    from pipeline.predict.windows import Sliding
    from pipeline.report.written import check_reports

    if faces != "whole":
        _check_detector()
    sources, sliding = find_sources(inputs), Sliding.of(window, stride)
    if overlay and out is None:
        raise RefusedError("--overlay: read only with --out DIR, which says where")
    measure = cast("Influence", influence)
    for run in runs:
        check_trained(run)
    if out is not None:
        check_reports(out, "predictions.csv", "predictions.json")
    # It loads torch, so it comes after everything that can be refused.
    from pipeline.predict.predictor import load_predictor

    predictor = load_predictor(
        runs, encoder, pretrained, device, parse_precision(precision), other_code
    )
    settings = predictor.settings(sliding, fps, decode_seconds, workers, faces)
    with ExitStack() as stack:
        output = None
        if out is not None:
            from pipeline.predict.output import Output, held

            stack.enter_context(held(out))
            output = Output(out, predictor, sources, settings, measure, overlay)
        found, stopped = _predict(predictor, sources, settings, measure, output)
        videos = [video for number in sorted(found) for video in found[number]]
        print(columns(_table(videos, measure, len(predictor.networks) > 1)))
        if output is not None:
            for path in output.finish(found):
                print(f"written: {show(path)}")
    failed = sum(video.status == "failed" for video in videos)
    if failed:
        again = "" if output is None else "; the same command tries only those again"
        print(f"{count(failed, 'video')} could not be predicted{again}")
    if stopped and (left := len(sources) - len(found)):
        print(f"stopped with {count(left, 'video')} left. {_remedy(output)}", file=sys.stderr)
        raise StoppedError(stopped)
    if failed:
        raise typer.Exit(DONE_WITH_FAILURES)
    if output is None:
        next_step("tgdfer", "predict", *inputs, *_given(runs), "--out", "predictions")


def _predict(
    predictor: "Predictor",
    sources: "Sequence[Source]",
    settings: "ReadSettings",
    influence: "Influence",
    output: "Output | None",
) -> "tuple[dict[int, Sequence[VideoPrediction]], int | None]":
    """The predictions of each source by its number, and the signal that stopped the work."""
    found: dict[int, Sequence[VideoPrediction]] = {}
    if output is not None:
        found |= output.done
        _say_what_is_there(output, len(sources))
    left = [number for number in range(len(sources)) if number not in found]
    with (
        stop_on_signal("what was read", after=_remedy(output)) as stop,
        progress(f"predicting {count(len(left), 'video')}", None, "frames") as shown,
    ):
        rest = [sources[number] for number in left]
        for place, rows in predictor.stream(rest, settings, influence, shown.update, stop):
            number, videos = left[place], [video for video, _ in rows]
            found[number] = videos if output is None else output.add(number, rows)
    return found, stop.signal


def _say_what_is_there(output: "Output", sources: int) -> None:
    if output.other:
        print("what another command left unfinished in --out is begun again", file=sys.stderr)
    if output.done:
        done = f"{len(output.done)} of {count(sources, 'video')}"
        print(f"{done} predicted before", file=sys.stderr)


def _remedy(output: "Output | None") -> str:
    begin = "Without --out, the same command begins again."
    return begin if output is None else "Run the same command again to go on."


def _check_detector() -> None:
    from pipeline.video.detector import check_detector

    try:
        check_detector()
    except RefusedError as error:
        raise RefusedError(f"{error}; if the videos are face crops, use --faces whole") from error


def _table(videos: "Sequence[VideoPrediction]", influence: str, several: bool) -> list[list[str]]:
    measured = f"influence ({influence}) of frames, 0-9"
    head = ["video", "faces", "label", "%", "doubt", "seconds", measured, "notes"]
    rows = [head, *map(_row, videos)]
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    return rows if several else [[*row[:4], *row[5:]] for row in rows]


def _row(video: "VideoPrediction") -> list[str]:
    if video.label is None:
        return [show(video.name), "", video.status, "", "", "", "", show(video.reason)]
    share = f"{100 * video.probabilities[video.label]:.1f}"
    doubt = "" if video.doubt is None else f"{video.doubt:.2f}"
    seconds = f"{video.seconds:.2f}"
    cells = [show(video.name), video.faces or "", video.label, share, doubt, seconds]
    return [*cells, _digits(video), "; ".join(video.flags)]


def _digits(video: "VideoPrediction") -> str:
    from pipeline.predict.prediction import scaled

    if len(video.windows) > 1:
        return f"{len(video.windows)} windows"
    shares = scaled(video.windows[0]).tolist()
    return "".join("-" if share != share else str(int(_TENTHS * share)) for share in shares)


def _given(runs: Sequence[Path]) -> list[object]:
    return [word for run in runs for word in ("--run", run)]
