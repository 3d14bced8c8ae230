"""Votes in an Excel sheet beside DFEW's lists: read where its columns say what they are."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from pipeline.datasets.dfew import CLASSES, survey_dfew
from support.trees import add_frames, write

pytest.importorskip("python_calamine")

WORDS = ("1happy", "2sad", "3neutral", "4angry", "5surprise", "6disgust", "7fear")
Cells = Sequence[Sequence[object]]


def write_xlsx(path: Path, rows: Cells) -> None:
    """The smallest workbook of one sheet, with its texts inline."""
    lines = []
    for row in rows:
        cells = (
            f"<c><v>{cell}</v></c>"
            if isinstance(cell, int | float)
            else f'<c t="inlineStr"><is><t>{escape(str(cell))}</t></is></c>'
            for cell in row
        )
        lines.append(f"<row>{''.join(cells)}</row>")
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/s.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="a" '
        f'Type="{relation}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{relation}"><sheets>'
        '<sheet name="s" sheetId="1" r:id="a"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="a" Type="{relation}/worksheet" Target="s.xml"/></Relationships>',
        "xl/s.xml": f"<worksheet {main}><sheetData>{''.join(lines)}</sheetData></worksheet>",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Video n has label n % 7; half are for training."""
    for part in (0, 1):
        rows = "".join(f"{n},{n % 7 + 1}\n" for n in range(14) if n // 7 == part)
        name = f"EmoLabel_DataSplit/{('train', 'test')[part]}(single-labeled)/set_1.csv"
        write(tmp_path / name, f"video_name,label\n{rows}")
    for n in range(14):
        add_frames(tmp_path / f"Clip/clip_224x224/{n:05d}", 1)
    return tmp_path


def votes(n: int, shift: int = 0) -> list[int]:
    """Ten annotators; most say the label, and one the next class."""
    return [9 if k == (n + shift) % 7 else int(k == (n + shift + 1) % 7) for k in range(7)]


def sheet(shift: int = 0) -> Cells:
    return [["order", *WORDS, "annotation"], *([n, *votes(n, shift), n % 7] for n in range(20))]


def test_votes_are_read_by_the_names_of_the_columns(root: Path) -> None:
    file = root / "EmoLabel_DataSplit/annotation.xlsx"
    rows = [list(row) for row in sheet()]
    for row in rows:
        row[1], row[5] = row[5], row[1]  # another order of the columns
    rows[4][2] = "?"
    write_xlsx(file, rows)
    survey = survey_dfew(root)
    assert survey.notes[0] == (
        "annotation.xlsx: votes of 13 of 14 videos; rows without votes: 1, such as row 5"
    )
    assert survey.votes == {f"{n:05d}": tuple(votes(n)) for n in range(14) if n != 3}
    assert survey.video_list().lists[0][0] == "EmoLabel_DataSplit/annotation.xlsx"


REFUSED: dict[str, tuple[Cells | bytes, str]] = {
    "no class named": ([["order", *"abcdefg"]], "its columns are order, a, b, c"),
    "no id": ([["happy", *WORDS[1:]]], "expected one of order, video_name"),
    "a class twice": ([["order", *WORDS, "happiness"]], "and one named after each of happiness"),
    "votes of other videos": (sheet(shift=2), "its votes are for other labels than the lists'"),
    "nothing": ([], "its columns are "),
    "no workbook": (b"PK", "File is not a zip file"),
    "another archive": (b"PK\x05\x06" + bytes(18), "annotation.xlsx is not read: "),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_sheet_that_does_not_say_what_it_is_changes_nothing_and_is_named(
    root: Path, fault: str
) -> None:
    plain = survey_dfew(root).video_list()
    content, message = REFUSED[fault]
    file = root / "annotation.xlsx"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        write_xlsx(file, content)
    survey = survey_dfew(root)
    assert message in survey.notes[0]
    assert survey.video_list() == plain
    assert survey.classes == CLASSES
