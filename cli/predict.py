"""tgdfer predict: videos and trained networks -> labels, probabilities and influence of frames."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    DeviceOption,
    FacesOption,
    OtherCodeOption,
    OtherEncoderOption,
    PrecisionOption,
    PretrainedOption,
    RunOption,
    WorkersOption,
)
from cli.progress import progress
from cli.show import columns, count, next_step, show

if TYPE_CHECKING:
    from pipeline.predict.features import Encoded, ReadSettings
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
    """
    from pipeline.extract.planning import parse_precision
    from pipeline.predict.bundle import check_trained
    from pipeline.predict.sources import find_sources
    from pipeline.predict.windows import Sliding
    from pipeline.report.written import check_reports

    if faces != "whole":
        _check_detector()
    sources, sliding = find_sources(inputs), Sliding.of(window, stride)
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
    videos = list(_predict(predictor, sources, settings, out))
    print(columns(_table(videos, len(runs) > 1)))
    failed = sum(video.status == "failed" for video in videos)
    if out is not None:
        _write(out, predictor, videos)
    elif not failed:
        next_step("tgdfer", "predict", *inputs, *_given(runs), "--out", "predictions")
    if failed:
        print(f"{count(failed, 'video')} could not be predicted")
        raise typer.Exit(DONE_WITH_FAILURES)


def _predict(
    predictor: "Predictor",
    sources: "Sequence[Source]",
    settings: "ReadSettings",
    out: Path | None,
) -> "Iterator[VideoPrediction]":
    """Predictions in the order of the sources and persons; pictures are written as they come."""
    found: dict[tuple[int, int], VideoPrediction] = {}
    with progress(f"predicting {count(len(sources), 'video')}", None, "frames") as shown:
        stream = predictor.stream(sources, settings, lambda done, all: shown.update(done, all))
        for number, video, encoded in stream:
            found[number, encoded.person] = video
            if out is not None and video.status == "ok":
                _write_pictures(out, number, video, encoded, predictor)
    yield from (found[row] for row in sorted(found))


def _write_pictures(
    out: Path, number: int, video: "VideoPrediction", encoded: "Encoded", predictor: "Predictor"
) -> None:
    from pipeline.predict.written import write_strip, write_timeline

    write_strip(out, number, video, predictor.pictures(video, encoded))
    if len(video.windows) > 1:
        write_timeline(out, number, video)


def _write(out: Path, predictor: "Predictor", videos: "Sequence[VideoPrediction]") -> None:
    from pipeline.predict.written import PredictionFile, write_predictions

    content = PredictionFile(
        networks=tuple(predictor.networks),
        classes=predictor.classes,
        features=predictor.data,
        videos=tuple(videos),
    )
    for path in write_predictions(out, content):
        print(f"written: {show(path)}")


def _check_detector() -> None:
    from cache.errors import RefusedError
    from pipeline.video.detector import check_detector

    try:
        check_detector()
    except RefusedError as error:
        raise RefusedError(f"{error}; if the videos are face crops, use --faces whole") from error


def _table(videos: "Sequence[VideoPrediction]", several: bool) -> list[list[str]]:
    head = ["video", "faces", "label", "%", "doubt", "seconds", "influence of frames, 0-9"]
    rows = [head, *map(_row, videos)]
    return rows if several else [[*row[:4], *row[5:]] for row in rows]


def _row(video: "VideoPrediction") -> list[str]:
    if video.label is None:
        return [show(video.name), "", "failed", "", "", "", show(video.reason)]
    share = f"{100 * video.probabilities[video.label]:.1f}"
    doubt = "" if video.doubt is None else f"{video.doubt:.2f}"
    seconds = f"{video.seconds:.2f}"
    return [show(video.name), video.faces or "", video.label, share, doubt, seconds, _digits(video)]


def _digits(video: "VideoPrediction") -> str:
    from pipeline.predict.prediction import scaled

    if len(video.windows) > 1:
        return f"{len(video.windows)} windows"
    shares = scaled(video.windows[0]).tolist()
    return "".join("-" if share != share else str(int(_TENTHS * share)) for share in shares)


def _given(runs: Sequence[Path]) -> list[object]:
    return [word for run in runs for word in ("--run", run)]
