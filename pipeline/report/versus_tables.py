"""Two files of ``tgdfer ablate`` in JSON -> their rows side by side."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints, ValidationError

from cache.errors import DamagedError, RefusedError
from cache.outside import MIB, read_text
from cache.store import Store
from pipeline.evaluate.statistics import Difference, holm
from pipeline.markdown import item, table
from pipeline.report.versus import LEVEL, Side, differences
from pipeline.train.record import check_finished

METRICS = ("UAR", "WAR")
SHOWN = 5  # reasons why rows have no interval
Key = tuple[str, str]  # the names of a table and of a row
Found = Mapping[Key, dict[str, Difference] | str]  # or why there are none


class _Row(BaseModel):
    row: str
    uar_mean: float | None
    war_mean: float | None
    runs: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]] = []


class _Table(BaseModel):
    name: str
    rows: list[_Row]


class _Tables(BaseModel):
    about: dict[str, str]
    tables: list[_Table]

    def rows(self) -> dict[Key, _Row]:
        """By the names of table and row."""
        return {(own.name, row.row): row for own in self.tables for row in own.rows}

    def side(self, name: str, row: _Row) -> Side:
        """The runs of a row, which are where the file says."""
        if not row.runs or "runs" not in self.about:
            raise RefusedError("a file names no runs whose predictions are those of the row")
        if not Path(self.about["runs"]).is_dir():
            raise RefusedError(f"there is no folder {self.about['runs']} here")
        return Side(name, [check_finished(Path(self.about["runs"]) / own) for own in row.runs])


def versus_tables(a: Path, b: Path, store: Store | str) -> str:
    """Markdown: the rows that both have, their scores and differences, and what differs around it.

    Differences are paired by video where the files name runs that are still there, and ``store``
    has their videos; if it is no store, it says why. Others have no interval. Raises RefusedError
    for a file that is no such table, or if no row is in both.
    """
    first, second = _read(a), _read(b)
    ours, theirs = first.rows(), second.rows()
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise RefusedError(f"{a} and {b} have no row in common")
    found = {key: _compared(first, second, ours[key], theirs[key], store) for key in shared}
    cells = [[" ".join(key), *_cells(ours[key], theirs[key], found[key])] for key in shared]
    head = ["row", *(f"{metric}, {own}" for metric in METRICS for own in ("A", "B", "B − A"))]
    left = len(ours) + len(theirs) - 2 * len(shared)
    notes = [
        *(f"{letter}: {path}" for letter, path in (("A", a), ("B", b))),
        *_differences(first.about, second.about),
        *[f"rows of only one of them: {left}"] * bool(left),
        "A and B are means over all runs of a row; differences with intervals are paired by video, "
        "over the folds and seeds that both have, so that they need not be those of the means; "
        "others are, and nothing is known of what chance does to them",
    ]
    reading = [*_clear(found), *_unpaired(found)]
    blocks = [map(item, notes), table(head, cells), map(item, reading)]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _read(path: Path) -> _Tables:
    try:
        return _Tables.model_validate_json(read_text(path, "tables in JSON", 64 * MIB))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise RefusedError(
            f"{path}: not tables as tgdfer ablate writes them: {where}: {first['msg']}"
        ) from None


def _compared(
    first: _Tables, second: _Tables, a: _Row, b: _Row, store: Store | str
) -> dict[str, Difference] | str:
    """B minus A by metric, or why there is no interval."""
    if isinstance(store, str):
        return store
    try:
        return differences(first.side("A", a), second.side("B", b), store, METRICS)
    except (RefusedError, DamagedError) as error:
        return str(error)


def _cells(a: _Row, b: _Row, found: dict[str, Difference] | str) -> Iterator[str]:
    scores = (a.uar_mean, b.uar_mean), (a.war_mean, b.war_mean)
    for metric, (one, other) in zip(METRICS, scores, strict=True):
        yield from ("–" if own is None else f"{own:.2f}" for own in (one, other))
        if isinstance(found, dict):
            yield found[metric].text("+.2f", 100)
        else:
            yield "–" if one is None or other is None else f"{other - one:+.2f}"


def _clear(found: Found) -> list[str]:
    tests = {
        f"{' '.join(key)} ({metric})": own.p
        for key, both in found.items()
        if isinstance(both, dict)
        for metric, own in both.items()
    }
    corrected = zip(tests, holm([*tests.values()]), strict=True)
    clear = ", ".join(name for name, p in corrected if p < LEVEL) or "none"
    text = f"Clear of zero at 5 % with all {len(tests)} tests counted (Holm): {clear}"
    return [text] * bool(tests)


def _unpaired(found: Found) -> list[str]:
    """Which rows have no interval, by the reason."""
    rows: dict[str, list[str]] = {}
    for key, why in found.items():
        if isinstance(why, str):
            rows.setdefault(why, []).append(" ".join(key))
    notes = [f"Without an interval: {', '.join(names)}: {why}" for why, names in rows.items()]
    more = [f"{len(notes) - SHOWN} more reasons of this kind"] * (len(notes) > SHOWN)
    return [*notes[:SHOWN], *more]


def _differences(a: dict[str, str], b: dict[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield f"{name}: A {a.get(name, 'not said')}; B {b.get(name, 'not said')}"
