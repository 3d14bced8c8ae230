"""Three new faces: strangers to every fold, real files, and a page that says what was right."""

import base64
import re
from pathlib import Path

import pytest

from pipeline.datasets.dfew import CLASSES
from pipeline.demo.faces import FacesSpec, plan_videos, write_script
from pipeline.demo.newcomers import plan_newcomers
from support.commands import ROOT, tgdfer
from support.trained import Trained


def test_newcomers_are_in_no_fold() -> None:
    spec = FacesSpec()
    known = plan_videos(spec)
    people = {repr(write_script(spec, own).person) for own in known[:50]}
    for new in plan_newcomers():
        assert new.subject not in {own.subject for own in known}
        assert new.id not in {own.id for own in known}
        assert repr(write_script(spec, new).person) not in people
    assert len({new.subject for new in plan_newcomers()}) == 3


@pytest.mark.slow
def test_command_predicts_three_faces_and_writes_a_page_without_other_files(
    trained: Trained, tmp_path: Path
) -> None:
    done = tgdfer("demo", "--run", trained.folders[0], "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:4]]
    assert [line[1] for line in lines] == [CLASSES[own.label] for own in plan_newcomers()]
    for path, label, predicted, _, verdict in lines:
        assert verdict == ("right" if label == predicted else "wrong")
        assert (tmp_path / path).read_bytes()[4:8] == b"ftyp"
    page = (tmp_path / "reports/demo/index.html").read_text()
    right = sum(line[4] == "right" for line in lines)
    assert f"{right} of 3 labels are right" in page
    strips = re.findall(r'src="([^"]*)"', page)
    assert len(strips) == 3
    for strip in strips:
        kind, _, data = strip.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "http" not in page
    assert done.stderr.splitlines()[-1].startswith("next: tgdfer predict reports/demo/00701.mp4")


def test_make_demo_is_what_the_command_suggests() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo: ")[2].partition("\n\n")[0]
    for command in ("tgdfer extract", "tgdfer train", "tgdfer export", "tgdfer demo"):
        assert f"$(BIN)/{command}" in recipe
