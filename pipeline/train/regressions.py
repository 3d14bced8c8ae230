"""Searched logistic regressions of a store's folds, which are kept beside the runs.

A search takes long, and whoever fills a table again would repeat it. Each is in one file, whose
name is the digest of all that the search depends on.
"""

import ast
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import RefusedError
from cache.files import canonical_json, make_directories, sha256, write_files
from cache.outside import parse_json, read_outside
from cache.store import Store
from pipeline.evaluate.baselines import PredictedLabels, searched_in_folds
from pipeline.train.code import PIPELINE, tree_digest
from pipeline.train.halving import searched_hold_out

FOLDER = ".regressions"
BYTES_MAX = 1 << 30
CODE = ("evaluate/baselines.py", "train/halving.py", "train/split.py")
VERSIONS = ("numpy", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Regressions:
    """Those of a store's folds, below the folder of the runs."""

    root: Path
    store: Store

    def find(self, fold: str) -> PredictedLabels | None:
        """What the regression of a fold says of its test videos; None if it is not searched yet.

        Nor is one whose file is not as it was left.
        """
        path = self._path(fold)
        if not path.exists():
            return None
        try:
            content = parse_json(read_outside(path, "a regression", BYTES_MAX), path)
            if content.pop("sha256") != sha256(canonical_json(content)):
                return None
            rows = self.store.rows_of(content["ids"])
            predicted = np.array(content["predicted"], np.int64)
            if predicted.shape != rows.shape:
                return None
            return PredictedLabels(content["name"], rows, predicted, note=content["note"])
        except (RefusedError, KeyError, TypeError, ValueError):
            return None

    def lacking(self, folds: Iterable[str]) -> list[str]:
        """The folds that are not searched yet, or whose file is damaged."""
        return [fold for fold in folds if self.find(fold) is None]

    def damaged(self, folds: Iterable[str]) -> dict[str, Path]:
        """The files that are not as they were left, by fold."""
        return {fold: self._path(fold) for fold in self.lacking(folds) if self._path(fold).exists()}

    def search(self, folds: Sequence[str], on_fit: Callable[[], None] = lambda: None) -> None:
        """Search the folds one after the other, and keep each as soon as it is found."""
        place, scratch = self.root / FOLDER, self.root / ".tmp"
        make_directories(place, scratch)
        found = searched_in_folds(self.store, searched_hold_out(self.store), folds, on_fit)
        for fold, own in zip(folds, found, strict=True):
            content = {
                "name": own.name,
                "note": own.note,
                "ids": [self.store.ids[row] for row in own.rows.tolist()],
                "predicted": own.predicted.tolist(),
            }
            data = canonical_json(content | {"sha256": sha256(canonical_json(content))})
            write_files({self._path(fold): data}, scratch)

    def _path(self, fold: str) -> Path:
        identity: dict[str, Any] = {
            "store": self.store.digest,
            "fold": fold,
            "code": {name: _digest(name) for name in CODE},
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        }
        return self.root / FOLDER / f"{sha256(canonical_json(identity))[:16]}.json"


def _digest(name: str) -> str:
    return tree_digest(ast.parse((PIPELINE / name).read_bytes()))
