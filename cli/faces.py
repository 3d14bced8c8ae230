"""tgdfer faces: a video -> whose face is cropped where, as a table and a sheet of pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import expect
from cli.show import columns, count, next_step, show

if TYPE_CHECKING:
    from pipeline.predict.people import Shown

NOBODY = 3
CROPPINGS = ("crop", "aligned")


def _check_cropping(value: str) -> str:
    expect("--faces", value, CROPPINGS)
    return value


def faces(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="Video, or folder of images.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for faces.csv and faces.png.")
    ],
    cropping: Annotated[
        str,
        typer.Option(
            "--faces",
            metavar="NAME",
            help="crop, or aligned.",
            callback=_check_cropping,
            autocompletion=lambda: list(CROPPINGS),
        ),
    ] = "crop",
) -> None:
    """Show which faces predict and extract cut out of a video.

    Writes faces.csv, the box of every person in every frame, and faces.png, frames with these boxes
    and the pictures that are cut out. Without a face, the exit code is 3.

    \b
    For example:
      tgdfer faces talk.mp4 --out faces
    """
    from cache.errors import RefusedError
    from pipeline.predict.people import CSV, SHEET, show_people
    from pipeline.report.written import check_reports, write_reports
    from pipeline.video.crops import Cropping
    from pipeline.video.detector import check_detector
    from pipeline.video.images import BadVideoError

    if not video.exists():
        raise RefusedError(f"no video at {video}; check the path")
    check_detector()
    check_reports(out, CSV, SHEET)
    chosen: Cropping = "aligned" if cropping == "aligned" else "crop"
    try:
        shown = show_people(video, chosen)
    except BadVideoError as error:
        print(f"{show(video)}: {show(str(error))}")
        raise typer.Exit(NOBODY) from None
    print(_describe(shown))
    for path in write_reports({CSV: shown.csv, SHEET: shown.sheet}, out):
        print(f"written: {show(path)}")
    if shown.people.nobody:
        raise typer.Exit(NOBODY)
    next_step("tgdfer", "predict", video, "--run", "RUN", "--faces", cropping, "--out", out)


def _describe(shown: "Shown") -> str:
    people = shown.people
    rows = [["person", "seconds", "frames", "found in", "px", "score"]]
    for person, track in enumerate(people.tracks):
        first, frames = track.span
        begin, end = shown.times_F[first], shown.times_F[first + frames - 1]
        found, score = count(len(track.seen), "look"), f"{track.faces_F[:, 14].mean():.2f}"
        cells = [f"#{person + 1}", f"{begin:.2f}-{end:.2f}", f"{frames}", found]
        rows.append([*cells, f"{track.side_px}", score])
    table = people.nobody or "\n".join((columns(rows), *people.flags))
    why = people.already_cropped
    auto = f"--faces auto would predict whole frames: {why}" if why else ""
    return "\n".join(filter(None, (table, auto)))
