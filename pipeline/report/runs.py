"""Records of runs -> one row per run: its settings, data, code and scores."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.identity import flatten
from pipeline.config import MethodConfig
from pipeline.train.record import LATER, Record, read_records

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = (
    *("folder", "status", "damage", "data", "store", "fold", "seed", "uar", "war"),
    *("code", "device", "precision"),
)


def read_runs(root: Path | str = "runs") -> "pd.DataFrame":
    """Every run below ``root`` as a row of a DataFrame.

    Columns: ``folder``, ``status`` ("done", "diverged", "unfinished" or "damaged"), ``damage``
    (which file is not as it was left, and why), ``data``, ``store``, ``fold``, ``seed``, ``uar``
    and ``war`` in [0, 1], ``code`` ("this" or the digest of another), ``device``, ``precision``,
    and every setting under its dotted name.
    """
    import pandas as pd

    rows = [row_of(record) for record in read_records(Path(root))]
    settings = flatten(MethodConfig().model_dump(mode="json", exclude={"store"}))
    return pd.DataFrame(rows or None, columns=None if rows else [*COLUMNS, *settings])


def row_of(record: Record) -> dict[str, Any]:
    """One run as a value per column."""
    identity, result = record.metadata.get("identity", {}), record.result or {}
    code = identity.get("code", "")
    row: dict[str, Any] = {
        "folder": str(record.folder),
        "status": record.status,
        "damage": record.damage,
        "data": record.metadata.get("data", ""),
        "store": identity.get("store", ""),
        "fold": identity.get("fold", ""),
        "seed": identity.get("seed", -1),
        "uar": result.get("uar", float("nan")),
        "war": result.get("war", float("nan")),
        "code": code[:8] or "unknown" if record.changed_code() else "this",
        "device": identity.get("device", ""),
        "precision": identity.get("precision", ""),
    }
    method = flatten(identity.get("method", {}))
    settings = LATER | method if method else {}
    return row | {name: value for name, value in settings.items() if "." in name}


def varying_settings(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The settings in which some rows differ, by their dotted names."""
    rows = [row for row in rows if row["store"]]  # others are damaged, their settings unknown
    names = dict.fromkeys(name for row in rows for name in row if "." in name)
    names |= dict.fromkeys(("device", "precision"))
    return [name for name in names if len({str(row.get(name)) for row in rows}) > 1]
