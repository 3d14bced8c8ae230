"""Ablation tables of the paper as Python lists of rows: what each row changes in the method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache.errors import RefusedError
from pipeline.train.config import MethodConfig, Run, method_from


@dataclass(frozen=True)
class Row:
    """One row: its letter in the paper, the cells that describe it, the settings it changes."""

    name: str
    cells: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]

    def method(self, base: MethodConfig) -> MethodConfig:
        """``base`` with this row's settings."""
        merged = base.model_dump()
        for table, values in self.settings.items():
            merged[table] = {**merged[table], **values}
        return method_from(merged, f"row {self.name}")


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


DEPTHS = [
    (0, 0),
    (0, 1),
    (0, 2),
    (1, 0),
    (1, 1),
    (1, 2),
    (2, 0),
    (2, 1),
    (2, 2),
    (1, 7),
    (7, 1),
    (7, 7),
]

TABLE3 = Table(
    "table3",
    "Depths of the multi-grained temporal network (Table 3 of the paper)",
    ("fine", "coarse"),
    tuple(
        Row(
            letter,
            (str(fine or "none"), str(coarse or "none")),
            {"temporal": {"fine_depth": fine, "coarse_depth": coarse}},
        )
        for letter, (fine, coarse) in zip("abcdefghijkl", DEPTHS, strict=True)
    ),
)

TABLES = {table.name: table for table in (TABLE3,)}


def find_tables(names: Sequence[str]) -> list[Table]:
    """The named tables; raises RefusedError for a name that is not known."""
    for name in names:
        if name not in TABLES:
            raise RefusedError(f"no table {name}; there are: {', '.join(TABLES)}")
    return [TABLES[name] for name in names]


def runs_of(method: MethodConfig, folds: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """One run per fold and seed."""
    return [Run(method=method, fold=fold, seed=seed) for seed in seeds for fold in folds]
