"""tgdfer predict: videos and trained networks -> labels, probabilities and influence of frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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

if TYPE_CHECKING:
    from pipeline.evaluate.influence import Influence
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
    pictures = None if out is None else _Pictures(out, predictor, measure, overlay)
    videos = list(_predict(predictor, sources, settings, measure, pictures))
    print(columns(_table(videos, measure, len(predictor.networks) > 1)))
    failed = sum(video.status == "failed" for video in videos)
    if pictures is not None:
        _write(pictures, videos)
    elif not failed:
        next_step("tgdfer", "predict", *inputs, *_given(runs), "--out", "predictions")
    if failed:
        print(f"{count(failed, 'video')} could not be predicted")
        raise typer.Exit(DONE_WITH_FAILURES)


def _predict(
    predictor: "Predictor",
    sources: "Sequence[Source]",
    settings: "ReadSettings",
    influence: "Influence",
    pictures: "_Pictures | None",
) -> "Iterator[VideoPrediction]":
    """Predictions in the order of the sources and persons; pictures are written as they come."""
    from pipeline.predict.prediction import failed
    from pipeline.video.images import BadVideoError

    found: dict[tuple[int, int], VideoPrediction] = {}
    with progress(f"predicting {count(len(sources), 'video')}", None, "frames") as shown:
        stream = predictor.stream(
            sources, settings, influence, lambda done, all: shown.update(done, all)
        )
        for number, video, encoded in stream:
            row = number, encoded.person
            found[row] = video
            if pictures is not None and video.status == "ok":
                try:
                    pictures.write(number, video, encoded)
                except BadVideoError as error:  # it was changed since, or removed
                    found[row] = failed(video.name, str(error))
    yield from (found[row] for row in sorted(found))


@dataclass(frozen=True)
class _Pictures:
    """Writes what can be seen of a prediction."""

    out: Path
    predictor: "Predictor"
    influence: "Influence"
    overlay: bool
    written: set[Path] = field(default_factory=set)

    def write(self, number: int, video: "VideoPrediction", encoded: "Encoded") -> None:
        """Raises BadVideoError if the video is no longer as it was read."""
        from pipeline.predict.written import write_overlay, write_strip, write_timeline

        shown = self.predictor.pictures(video, encoded)
        paths = write_strip(self.out, number, video, shown, self.influence)
        if len(video.windows) > 1:
            paths += write_timeline(self.out, number, video)
        if self.overlay:
            paths += write_overlay(self.out, number, video, encoded, self.influence)
        self.written.update(paths)


def _write(pictures: _Pictures, videos: "Sequence[VideoPrediction]") -> None:
    from pipeline.predict.written import PredictionFile, write_predictions

    predictor = pictures.predictor
    content = PredictionFile(
        networks=tuple(predictor.networks),
        classes=predictor.classes,
        influence=pictures.influence,
        features=predictor.data,
        videos=tuple(videos),
    )
    for path in write_predictions(pictures.out, content, pictures.written):
        print(f"written: {show(path)}")


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
        return [show(video.name), "", "failed", "", "", "", "", show(video.reason)]
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
