"""Tables fit where they are read."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.store import Store
from pipeline.config import load_method
from pipeline.evaluate.statistics import Difference
from pipeline.markdown import groups, item, table
from pipeline.report.ablation import Cell, FilledRow, Rates, collect
from pipeline.report.forms import write_tables
from pipeline.report.tables import TABLES, vary
from pipeline.train.records import Records
from support.stores import random_store

WIDE = Difference(-0.23456, -0.34567, -0.12345, 0.05, 0.0001)
SCORE = Cell(88.888, 11.111)
EDGE = Rates(10.0, 0.1, 0.01, diverged=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store") / "s.zarr", 70, frames=2, dim=4)


def full(line: FilledRow) -> FilledRow:
    """The row with scores and differences of many digits."""
    return replace(
        line,
        uar=SCORE,
        war=SCORE,
        done=line.expected,
        recalls=dict.fromkeys(line.recalls, SCORE),
        differences=dict.fromkeys(line.differences, WIDE),
        behind=WIDE,
        pooled=dict.fromkeys(("UAR", "WAR"), replace(WIDE, value=0.8, low=0.7, high=1.0)),
        calibration={"ECE": 0.123, "AURC": 0.234},
        rates=dict.fromkeys("12345", EDGE) if "head" in line.row.settings else {},
    )


@pytest.mark.parametrize(
    "name", [name for name in TABLES if name not in ("robustness", "population", "encoders")]
)
def test_tables_fit_a_terminal_and_a_page(store: Store, tmp_path: Path, name: str) -> None:
    own = TABLES[name]
    rows = [
        full(line) for line in collect(own, load_method(), ["1"], [0], Records(tmp_path, store))
    ]
    md, _, tex, _ = write_tables([(own, rows)], {"data": "x " * 90}, tmp_path)
    assert max(map(len, md.read_text().splitlines())) <= 100
    for line in tex.read_text().splitlines():
        if line.endswith(r"\\"):
            cells = re.sub(r"\$\\\w+\$", "~", line.removesuffix(r" \\")).split(" & ")
            shown = [re.sub(r"\\textbf|[\\{}$]", "", cell) for cell in cells]
            assert sum(map(len, shown)) * 4.25 + 6 * (len(cells) - 1) <= 345, line
    assert [line for line in md.read_text().splitlines() if line.startswith("| ")]


def test_negative_numbers_have_a_minus_in_latex_and_names_keep_their_hyphens(
    store: Store, tmp_path: Path
) -> None:
    own = vary(['store.encoder=["ViT-B-32", "1e-3", "DFER-CLIP"]', "optimiser.lr=[0.1]"])
    rows = [
        full(line) for line in collect(own, load_method(), ["1"], [0], Records(tmp_path, store))
    ]
    _, _, tex, _ = write_tables([(own, rows)], {"data": "x"}, tmp_path)
    text = tex.read_text()
    assert r"$-$23.46 {[}$-$34.57, $-$12.35]" in text
    assert [name for name in ("ViT-B-32", "1e-3", "DFER-CLIP") if f" & {name} & " not in text] == []


def test_columns_that_do_not_fit_go_below_with_the_first_one_again() -> None:
    lines = table(["", "UAR", "WAR"], [["a|b", "60.17", "71.62"], ["c", "1", "2"]], width=16)
    assert lines == [
        "|      | UAR   |",
        "| ---- | ----- |",
        r"| a\|b | 60.17 |",
        "| c    | 1     |",
        "",
        "|      | WAR   |",
        "| ---- | ----- |",
        r"| a\|b | 71.62 |",
        "| c    | 2     |",
    ]
    assert groups([4, 3, 3, 9, 1], 10) == [[0, 1, 2], [0, 3], [0, 4]]
    assert groups([4, 3, 3, 9, 1], 20) == [[0, 1, 2, 3, 4]]
    assert item("encoder: mini, frozen", 16) == "- encoder: mini,\n  frozen"


def test_json_holds_confusion_and_scores_of_each_class(store: Store, tmp_path: Path) -> None:
    own = TABLES["table6"]
    rows = collect(own, load_method(), ["1"], [0], Records(tmp_path, store))
    counts = np.zeros((7, 7))
    counts[0, :2], counts[1, 1] = (3, 1), 4
    rows[0] = replace(rows[0], scores=replace(rows[0].scores, counts_KK=counts))
    *_, path = write_tables([(own, rows)], {"data": "x", "command": "tgdfer ablate"}, tmp_path)
    content = json.loads(path.read_text())
    assert content["about"] == {"data": "x", "command": "tgdfer ablate"}
    line = content["tables"][0]["rows"][0]
    assert line["confusion"] == counts.tolist()
    assert line["classes"]["happiness"] == {
        "videos": 4,
        "recall": 75,
        "precision": 100,
        "f1": pytest.approx(600 / 7),
    }
    assert line["classes"]["fear"] == {"videos": 0, "recall": None, "precision": None, "f1": None}
