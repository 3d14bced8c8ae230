"""Two files of ``tgdfer ablate`` in JSON -> their rows side by side."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from cache.errors import RefusedError
from cache.outside import MIB, read_text
from pipeline.markdown import item, table


class _Row(BaseModel):
    row: str
    uar_mean: float | None
    war_mean: float | None


class _Table(BaseModel):
    name: str
    rows: list[_Row]


class _Tables(BaseModel):
    about: dict[str, str]
    tables: list[_Table]

    def rows(self) -> dict[tuple[str, str], _Row]:
        """By the names of table and row."""
        return {(own.name, row.row): row for own in self.tables for row in own.rows}


def versus_tables(a: Path, b: Path) -> str:
    """Markdown: the rows that both have, their scores and differences, and what differs around it.

    Tables hold no predictions, so the differences have no intervals. Raises RefusedError for a file
    that is no such table, or if no row is in both.
    """
    first, second = _read(a), _read(b)
    ours, theirs = first.rows(), second.rows()
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise RefusedError(f"{a} and {b} have no row in common")
    cells = [[*key, *_cells(ours[key], theirs[key])] for key in shared]
    head = ["table", "row", "UAR, A", "UAR, B", "B − A", "WAR, A", "WAR, B", "B − A"]
    left = len(ours) + len(theirs) - 2 * len(shared)
    notes = [
        *(f"{letter}: {path}" for letter, path in (("A", a), ("B", b))),
        *_differences(first.about, second.about),
        *[f"rows of only one of them: {left}"] * bool(left),
        "differences of means, without intervals: tables hold no predictions; name two folders of "
        "runs or two settings for these",
    ]
    blocks = ["\n".join(map(item, notes)), "\n".join(table(head, cells))]
    return "\n\n".join(blocks) + "\n"


def _read(path: Path) -> _Tables:
    try:
        return _Tables.model_validate_json(read_text(path, "tables in JSON", 64 * MIB))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise RefusedError(
            f"{path}: not tables as tgdfer ablate writes them: {where}: {first['msg']}"
        ) from None


def _cells(a: _Row, b: _Row) -> Iterator[str]:
    for one, other in ((a.uar_mean, b.uar_mean), (a.war_mean, b.war_mean)):
        yield from ("–" if own is None else f"{own:.2f}" for own in (one, other))
        yield "–" if one is None or other is None else f"{other - one:+.2f}"


def _differences(a: dict[str, str], b: dict[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name) != b.get(name):
            yield f"{name}: A {a.get(name, 'not said')}; B {b.get(name, 'not said')}"
