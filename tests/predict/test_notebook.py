"""docs/predict.ipynb: its cells run one after the other, and it keeps no outputs."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from pipeline.demo.newcomers import plan_newcomers
from pipeline.predict.export import export
from support.commands import ROOT
from support.sources import pictures, write_video
from support.trained import Trained

NOTEBOOK = json.loads((ROOT / "docs/predict.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_notebook_keeps_no_outputs() -> None:
    assert NOTEBOOK["nbformat"] == 4
    assert len(CODE) > 3
    for cell in CODE:
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_notebook_goes_from_a_video_to_a_timeline(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib.use("Agg")
    for folder in ("docs", "reports/demo"):
        (tmp_path / folder).mkdir(parents=True)
    export(trained.folders, tmp_path / "data/demo.tgdfer", with_encoder=True)
    name = f"{plan_newcomers()[0].id}.mp4"  # the first that tgdfer demo writes
    write_video(tmp_path / "reports/demo" / name, pictures(30))
    monkeypatch.chdir(tmp_path / "docs")
    found: dict[str, Any] = {}
    for cell in CODE:
        exec(compile("".join(cell["source"]), "docs/predict.ipynb", "exec"), found)
    lines = found["axes"].lines
    assert [line.get_label() for line in lines] == list(trained.store.classes)
    for window, middle in zip(found["video"].windows, lines[0].get_xdata(), strict=True):
        assert window.start < middle < window.end
    at_first = [line.get_ydata()[0] for line in lines]
    assert at_first == list(found["video"].windows[0].probabilities.values())
