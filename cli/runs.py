"""tgdfer runs: list, show, watch and remove runs."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cache.errors import RefusedError
from cli.options import DEFAULT_RUNS, RunsOption, did_you_mean, refuse_unread
from cli.show import columns, count, duration, next_step, show

if TYPE_CHECKING:
    from rich.console import Group

    from pipeline.train.record import Record
    from pipeline.train.watched import Look, Watched

runs_app = typer.Typer(rich_markup_mode=None, help="List, show, watch and remove runs.")

SHOWN_DIGITS = 8  # of a store's digest
SIGNS = {"finished": "#", "running": ">", "waiting": ".", "diverged": "x", "damaged": "!"}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@runs_app.callback(invoke_without_command=True)
def runs(context: typer.Context, root: RunsOption = DEFAULT_RUNS) -> None:
    """List, show, watch and remove runs.

    \b
    All runs:
      tgdfer runs
    """
    if context.invoked_subcommand is None:
        list_(root)
    else:
        name = context.invoked_subcommand
        refuse_unread(
            context, ("root",), f"give it after the command: tgdfer runs {name} --runs DIR"
        )


@runs_app.command(name="list")
def list_(root: RunsOption = DEFAULT_RUNS, as_json: JsonOption = False) -> None:
    """List runs: data, fold, seed, scores, code and the settings that differ.

    \b
    tgdfer runs list --runs runs
    """
    rows = _rows(root)
    if as_json:
        print(json.dumps([_without_nan(row) for row in rows], indent=1))
        return
    from pipeline.report.runs import varying_settings

    names = varying_settings(rows)
    head = ("run", "data", "fold", "seed", "UAR %", "WAR %", "code", *names)
    print(columns([head, *(_cells(row, names) for row in rows)]))
    others = sum(row["code"] != "this" for row in rows if row["status"] != "damaged")
    print(f"{count(len(rows), 'run')}, {others} of them made by other code.")
    damaged = [show(row["damage"]) for row in rows if row["damage"]]
    for damage in damaged:
        print(f"damaged: {damage}", file=sys.stderr)
    if damaged:
        next_step("tgdfer", "runs", "prune", "--damaged", "--dry-run", "--runs", root)
    elif others:
        next_step("tgdfer", "runs", "prune", "--other-code", "--dry-run", "--runs", root)


@runs_app.command(name="show")
def show_(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run, or its start.")],
    root: RunsOption = DEFAULT_RUNS,
) -> None:
    """Show one run: its settings, data, versions, scores and files.

    \b
    tgdfer runs show 3f2a
    """
    record = _find(root, run).with_network()
    versions = record.metadata.get("versions", {})
    about = {f"version of {name}": value for name, value in versions.items()}
    if not record.folder.is_symlink():
        about["files"] = ", ".join(sorted(path.name for path in record.folder.glob("*")))
    status = {"status": record.status} | ({"damage": record.damage} if record.damage else {})
    result = {k: v for k, v in (record.result or status).items() if k != "sha256"}
    rows = [("folder", record.folder), *(record.identity | result | about).items()]
    print(columns([(show(name), show(value)) for name, value in rows]))


@runs_app.command()
def watch(
    root: RunsOption = DEFAULT_RUNS,
    once: Annotated[bool, typer.Option("--once", help="Look once, then end.")] = False,
    seconds: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.2, help="Between two looks.")
    ] = 2.0,
) -> None:
    """Watch what other shells train: finished, running and waiting runs, and the time left.

    Ends when nothing is trained any more; without a terminal, after one look.

    \b
    tgdfer runs watch
    tgdfer runs watch --once --runs /shared/runs
    """
    from rich.live import Live

    from pipeline.train.watched import read_watched

    if not (commands := read_watched(root)):
        print(f"nothing is trained in {show(root)} now", file=sys.stderr)
        next_step("tgdfer", "runs", "--runs", root)
        return
    console = _console()
    if once or not console.is_terminal:
        console.print(_picture(root, commands))
        return
    with Live(_picture(root, commands), console=console, auto_refresh=False) as live:
        while commands:
            shown = _picture(root, commands)
            live.update(shown, refresh=True)
            time.sleep(seconds)
            commands = read_watched(root)
    next_step("tgdfer", "runs", "--runs", root)


@runs_app.command()
def prune(
    root: RunsOption = DEFAULT_RUNS,
    other_code: Annotated[
        bool, typer.Option("--other-code", help="Runs made by other code.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Runs that were interrupted.")
    ] = False,
    diverged: Annotated[bool, typer.Option("--diverged", help="Runs that diverged.")] = False,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="Runs whose files are not as they were left.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove runs of the given kinds; runs in training are left alone.

    \b
    What would be removed:
      tgdfer runs prune --other-code --dry-run
    Without being asked:
      tgdfer runs prune --other-code --unfinished --yes
    """
    from pipeline.train.record import read_records
    from pipeline.train.records import remove_record

    kinds = {
        "other code": other_code,
        "unfinished": unfinished,
        "diverged": diverged,
        "damaged": damaged,
    }
    if not any(kinds.values()):
        raise RefusedError(
            "nothing selected: use --other-code, --unfinished, --diverged or --damaged"
        )
    chosen = [
        (record, why)
        for record in (r.with_network() if damaged else r for r in read_records(root))
        if (why := [kind for kind in _kinds(record) if kinds[kind]])
    ]
    for record, why in chosen:
        print(f"{show(record.folder)}: {', '.join(why)}")
    print(f"{count(len(chosen), 'run')} to remove")
    if dry_run or not chosen:
        return
    if not yes and not _confirmed(len(chosen)):
        raise RefusedError("nothing was removed; use --yes to remove without being asked")
    left = {record.folder: reason for record, _ in chosen if (reason := remove_record(record))}
    print(f"{count(len(chosen) - len(left), 'run')} removed")
    for folder, reason in left.items():
        print(f"{show(folder)}: left alone, since {reason}")


def _console() -> Any:
    from rich.console import Console

    # A table in motion consists of the control characters that the stream would escape.
    return Console(file=getattr(sys.stdout, "stream", sys.stdout), markup=False, highlight=False)


def _picture(root: Path, commands: "Sequence[Watched]") -> "Group":
    """A table for each command, with one line for each setting."""
    from rich.console import Group
    from rich.text import Text

    from pipeline.train.watched import look

    parts: list[Any] = []
    for command in commands:
        looks = look(root, command)
        parts += [Text(show(command.command)), _table(looks), Text(_how_far(command, looks)), ""]
    return Group(*parts, Text(", ".join(f"{sign} {name}" for name, sign in SIGNS.items())))


def _table(looks: "Sequence[Look]") -> Any:
    from rich.table import Table

    folds = list(dict.fromkeys(one.run.fold for one in looks))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("settings", overflow="fold")
    for fold in folds:
        table.add_column(show(fold), no_wrap=True)
    for settings in dict.fromkeys(one.run.settings for one in looks):
        own = [one for one in looks if one.run.settings == settings]
        signs = ("".join(SIGNS[o.status] for o in own if o.run.fold == fold) for fold in folds)
        table.add_row(show(settings), *signs)
    return table


def _how_far(command: "Watched", looks: "Sequence[Look]") -> str:
    from pipeline.train.watched import seconds_left

    counts: Counter[str] = Counter(one.status for one in looks)
    named = [f"{counts[name]} {name}" for name in SIGNS if counts[name]]
    left = seconds_left(command, looks, time.time())
    more = [] if left is None else [f"about {duration(left)} left"]
    return f"{count(len(looks), 'run')}: {', '.join([*named, *more])}"


def _confirmed(runs: int) -> bool:
    return sys.stdin.isatty() and typer.confirm(f"Remove {count(runs, 'run')}?")


def _kinds(record: "Record") -> list[str]:
    if record.status == "damaged":  # its code is not known for sure
        return ["damaged"]
    kinds = ["other code"] if record.changed_code() else []
    return kinds if record.ok else [*kinds, record.status]


def _rows(root: Path) -> list[dict[str, Any]]:
    from pipeline.report.runs import row_of, varying_settings
    from pipeline.train.record import read_records

    rows = [row_of(record) for record in read_records(root)]
    if not rows:
        raise RefusedError(f"no runs in {root}; train some with: tgdfer train --cached")
    names = varying_settings(rows)
    return sorted(rows, key=lambda row: _order(row, names))


def _order(row: dict[str, Any], names: list[str]) -> tuple[Any, ...]:
    settings = [str(row.get(name)) for name in names]
    return row["code"] != "this", row["store"], settings, row["fold"], row["seed"]


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row.items()}


def _cells(row: dict[str, Any], names: list[str]) -> list[str]:
    scored = row["status"] == "done"
    scores = [f"{100 * row[name]:.2f}" if scored else "–" for name in ("uar", "war")]
    if scored and row.get("selection.rule") == "best_on_test":
        scores[1] += " (optimistic)"
    code = row["code"] if row["status"] == "done" else f"{row['code']}, {row['status']}"
    data = f"{row['data']} {row['store'][:SHOWN_DIGITS]}"
    start = [Path(row["folder"]).name, data, row["fold"], row["seed"], *scores, code]
    return [show(cell) for cell in (*start, *(row.get(name, "") for name in names))]


def _find(root: Path, name: str) -> "Record":
    from pipeline.train.record import read_records

    records = {record.folder.name: record for record in read_records(root)}
    found = [own for own in records if own.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} runs begin with" if found else "no run begins with"
        raise RefusedError(f"{root}: {what} {name}{did_you_mean(name, list(records))}")
    return records[found[0]]
