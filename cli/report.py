"""tgdfer report: finished runs -> one page with tables, figures and videos."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cache.errors import RefusedError
from cli.options import (
    DATASETS,
    DEFAULT_CONFIG,
    DEFAULT_OUT,
    DEFAULT_RUNS,
    DEFAULT_STORE,
    ConfigOption,
    DeviceOption,
    OutOption,
    RowsOption,
    RunsOption,
    SeedsOption,
    SetOption,
    StoreOption,
    TablesArgument,
    VaryOption,
    is_rendered,
    refuse_unread,
)
from cli.progress import progress
from cli.show import command, count, show
from cli.training import as_asked, leave_if_damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cache.store import Store
    from pipeline.config import Run
    from pipeline.report.contents import Asked, Leading
    from pipeline.report.tables import Table
    from pipeline.train.records import Records

    Frames = dict[int, NDArray[np.uint8]]

FRAMES_MAX = 2000  # on the page, of all videos together
SHOWN = 3  # reasons why videos are not shown, or names of figures


def report(
    context: typer.Context,
    tables: TablesArgument = None,
    varied: VaryOption = [],  # noqa: B006  (typer copies it)
    rows: RowsOption = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = DEFAULT_CONFIG,
    settings: SetOption = [],  # noqa: B006  (typer copies it)
    seeds: SeedsOption = 1,
    runs: RunsOption = DEFAULT_RUNS,
    out: OutOption = DEFAULT_OUT,
    device: DeviceOption = "auto",
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Folder of the data set, for frames of its videos.",
            show_default="data/DATASET, for faces the user's cache folder; without it, no frames",
        ),
    ] = None,
) -> None:
    """Write what finished runs say as one page, and its figures.

    Tables are named as for ablate, with its options; nothing is trained, and what is missing is
    said. Without a table, the page compares all settings that the runs of the store have. It needs
    no network and no other file: reports/index.html; figures are in reports/figures, as SVG and
    PNG.

    \b
    All settings that were trained:
      tgdfer report
    The paper's Table 3, as ablate trained it:
      tgdfer report table3 --set optimiser.epochs=20
    With frames of DFEW:
      tgdfer report --store data/dfew-ViT-B-32-quickgelu.zarr --root /data/DFEW
    """
    from cache.store import open_store
    from pipeline.config import load_method
    from pipeline.device import device_kind
    from pipeline.report.ablation import try_factors
    from pipeline.report.contents import Asked, found_runs
    from pipeline.report.figures import FOLDER
    from pipeline.report.page import PAGE
    from pipeline.report.tables import LIST, choose_rows, find_tables, names_of_rows, vary
    from pipeline.report.written import check_reports
    from pipeline.train.records import Records

    chosen = find_tables(tables or []) + ([vary(varied)] if varied else [])
    if not chosen:
        refuse_unread(
            context, ("rows", "seeds"), "read only with a table; the runs say which they have"
        )
    if any(not table.rows for table in chosen):
        raise RefusedError(
            "table encoders: a report is of one store; see what tgdfer ablate encoders has written"
        )
    base = load_method(config, settings)
    opened = open_store(store)
    if rows == LIST:
        print("\n".join(map(show, names_of_rows(chosen, opened, base))))
        return
    fitted = choose_rows(chosen, opened, base, rows)
    place = _folder_of(opened, root)
    check_reports(out, PAGE)
    check_reports(out / FOLDER)
    records = Records(runs, opened, device_kind(device))
    found, others = found_runs(records)
    folds = [name for name, _, _ in opened.folds]
    tried = try_factors(fitted, base, folds, range(seeds), records)
    asked = Asked(fitted, base, folds, range(seeds), tried.factors, tried.lacking)
    if not fitted:
        asked = _found(found, others, records)
    words = [*(tables or []), *(word for own in varied for word in ("--vary", own))]
    options = as_asked(store, runs, config, settings, seeds)
    every = [*words, *(["--rows", rows] if rows else []), *options]
    commands = {
        "report": command("tgdfer", "report", *every, *(["--root", root] * bool(root))),
        **{own.name: command("tgdfer", "ablate", *_named(own, varied), *options) for own in fitted},
        "settings": "",  # found, not asked for
    }
    _write(out, asked, records, commands, [*_left_out(runs, others), *asked.notes], place)


def _named(table: "Table", varied: Sequence[str]) -> list[str]:
    """The words with which a command names a table and its rows."""
    from pipeline.report.tables import VARIED

    words = [word for own in varied for word in ("--vary", own)]
    rows = ["--rows", ",".join(row.name for row in table.rows)] if table.narrowed else []
    return [*(words if table.name == VARIED else [table.name]), *rows]


def _folder_of(store: "Store", root: Path | None) -> Path | None:
    """The folder of the data set, if it is there; raises RefusedError if a named one is not."""
    if root is not None:
        if not root.is_dir():
            raise RefusedError(f"--root {root}: no such folder")
        return root
    places = [Path("data") / store.name] if store.name in DATASETS else []
    if is_rendered(store.name):
        from pipeline.demo.faces import faces_folder, named_spec

        with suppress(RefusedError):  # a set of another version
            places.append(faces_folder(named_spec(store.name)))
    return next((place for place in places if place.is_dir()), None)


def _found(runs: "Sequence[Run]", others: Counter[str], records: "Records") -> "Asked":
    from pipeline.report.contents import ask_for_found

    if not runs:
        left = "".join(f"; {count(number, 'run')} {why}" for why, number in others.items())
        raise RefusedError(
            f"{records.root}: no run of {records.store.path} by this code{left}; train some with: "
            "tgdfer train --cached"
        )
    return ask_for_found(runs, [name for name, _, _ in records.store.folds])


def _left_out(runs: Path, others: Counter[str]) -> list[str]:
    if not others:
        return []
    left = ", ".join(f"{number} {why}" for why, number in sorted(others.items()))
    return [f"Runs in {runs} that do not count here: {left}."]


def _write(
    out: Path,
    asked: "Asked",
    records: "Records",
    commands: Mapping[str, str],
    notes: list[str],
    place: Path | None,
) -> None:
    """Fill the tables, draw the figures, and write the page."""
    from pipeline.report.ablation import header_of
    from pipeline.report.answer import answer
    from pipeline.report.contents import draw_leading, draw_tables, fill, find_leading
    from pipeline.report.figures import FOLDER, files_of
    from pipeline.report.page import PAGE, About, render
    from pipeline.report.written import write_reports

    store = records.store
    filled = fill(asked, records)
    leading = find_leading(filled, store)
    frames: Frames = {}
    if leading is not None:
        frames, lacking = _read_frames(leading, store, place)
        notes = [*notes, *lacking]
    header = header_of(store, asked.base, len(asked.folds), len(asked.seeds), asked.tables)
    header |= {"runs": str(records.root), "code": records.code}
    pictures = draw_tables(filled, header)
    if leading is not None:
        pictures += draw_leading(leading, store, frames)
    about = About(header, commands, notes)
    page = render(filled, leading, pictures, _strips(frames), store, about)
    *_, path = write_reports({**files_of(pictures), PAGE: page}, out)
    for own in filled:
        print(" ".join(map(show, answer(own.table, own.rows))))
    for note in notes:
        print(show(note))
    print(f"written: {show(path)}, with {count(len(pictures), 'figure')} in {show(out / FOLDER)}")
    _name_others(out / FOLDER, {f"{own.name}.{end}" for own in pictures for end in ("svg", "png")})
    leave_if_damaged(sum(line.damaged for own in filled for line in own.rows))


def _name_others(folder: Path, drawn: set[str]) -> None:
    """Say which figures are not of this page; they are left as they are."""
    others = sorted({path.name for path in folder.iterdir()} - drawn)
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        named = ", ".join(map(show, others[:SHOWN])) + more
        print(f"not of this page, and left as found in {show(folder)}: {named}")


def _read_frames(
    leading: "Leading", store: "Store", place: Path | None
) -> "tuple[Frames, list[str]]":
    """(frames of some videos, why others are not shown)."""
    from pipeline.predict.thumbnails import frames_of
    from pipeline.report.contents import choose_videos

    if place is None or store.plan.videos.sources is None:
        why = "its videos are not here; say where with --root DIR"
        if store.plan.videos.sources is None:
            why = "the store does not say from which files it was made"
        return {}, [f"The page shows no frames: {why}."]
    rows = choose_videos(leading.pooled, max(2, FRAMES_MAX // store.frames)).tolist()
    frames: Frames = {}
    reasons = []
    with progress("reading frames", len(rows), "videos") as shown:
        for row, found in frames_of(store, place, rows):
            if isinstance(found, str):
                reasons.append(f"The frames of video {store.ids[row]} are not shown: {found}.")
            else:
                frames[row] = found
            shown.advance()
    more = [f"{len(reasons) - SHOWN} more videos are not shown."] * (len(reasons) > SHOWN)
    return frames, [*reasons[:SHOWN], *more]


def _strips(frames: "Frames") -> dict[int, bytes]:
    from pipeline.predict.thumbnails import jpeg_strip

    return {row: jpeg_strip(own) for row, own in frames.items()}
