"""Lists of one's own: every format, every column, and every way in which they can be wrong."""

import re
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import RefusedError
from pipeline.datasets.list import _parquet_rows, survey_list
from pipeline.datasets.template import write_templates
from support.trees import add_frames, add_video, write

# path -> label; the ids are no numbers, and one path has a space.
VIDEOS = {"clips/a 1.mp4": "bored", "frames/b2": "Happy", "c.avi": "bored", "frames/d/e": "proud"}
IDS = {"clips/a 1": "bored", "frames/b2": "happiness", "c": "bored", "frames/d/e": "proud"}
CSV = "path,label\n" + "".join(f"{path},{label}\n" for path, label in VIDEOS.items())


def add_files(root: Path) -> None:
    for path in VIDEOS:
        add_video(root / path) if "." in path else add_frames(root / path)


def expect_the_known_set(root: Path, file: Path | None = None) -> None:
    survey = survey_list(root, file)
    assert {i: survey.classes[k] for i, k in survey.labels.items()} == IDS
    assert survey.classes == ("bored", "happiness", "proud")
    found = {video.id: video.path for video in survey.video_list().videos}
    assert found == {video_id: root / path for video_id, path in zip(IDS, VIDEOS, strict=True)}


FORMATS: dict[str, str | bytes] = {
    "list.csv": CSV,
    "list.tsv": CSV.replace(",", "\t"),
    "list.txt": CSV.replace(",", " ").partition("\n")[2],
    "commas.txt": CSV.partition("\n")[2],
    "named.txt": "path label split\n"
    + "".join(
        f"{path} {label} {'test' if '/' in path else 'train'}\n" for path, label in VIDEOS.items()
    ),
    "dots.csv": CSV.replace("clips/", "./clips//").replace("c.avi", "./././c.avi"),
    "columns.csv": CSV.replace("\n", ",,\n"),
    "columns.txt": CSV.partition("\n")[2].replace("\n", ",\n"),
    "said.csv": "sep=;\r\n" + CSV.replace(",", ";") + ";\n",
    "quoted.csv": "".join(f'"{path}","{label}"\r\n' for path, label in VIDEOS.items()),
    "excel.csv": b"\xef\xbb\xbf" + CSV.replace(",", ";").replace("\n", "\r\n").encode(),
    "no header.csv": CSV.partition("\n")[2].rstrip("\n"),
    "bare.csv": CSV.replace(".mp4", "").replace(".avi", ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_a_list_is_read(tmp_path: Path, name: str) -> None:
    add_files(tmp_path)
    file = write(tmp_path / name, FORMATS[name])
    expect_the_known_set(tmp_path, None if name.startswith("list") else file)


def test_parquet_is_read_or_says_what_it_needs(tmp_path: Path) -> None:
    add_files(tmp_path)
    file = tmp_path / "list.parquet"
    if find_spec("pyarrow") is None:
        write(file, b"PAR1")
        with pytest.raises(RefusedError, match=r"needs pyarrow; .*or save the list as CSV"):
            survey_list(tmp_path)
        return
    import pandas as pd

    pd.DataFrame(list(VIDEOS.items()), columns=["path", "label"]).to_parquet(file)
    expect_the_known_set(tmp_path)


@pytest.mark.parametrize("kind", ["Int64", "string", "category"])
def test_what_is_missing_in_parquet_is_an_empty_cell(tmp_path: Path, kind: str) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"path": ["a", "b"], "label": ["x", "y"]})
    values = [None, 3] if kind == "Int64" else [None, "3"]
    table["subject"] = pd.Series(values, dtype=kind)
    table.to_parquet(tmp_path / "list.parquet")
    rows = [cells for _, cells in _parquet_rows(tmp_path / "list.parquet")]
    assert rows[1:] == [["a", "x", ""], ["b", "y", "3"]]


def test_arrays_and_whole_numbers_in_parquet_are_read_as_in_csv(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    add_files(tmp_path)
    votes = [[1.0, 0.0, 0.5], [0.0, 2.0, 0.0], None][: len(VIDEOS)]
    votes += [None] * (len(VIDEOS) - len(votes))
    table = pd.DataFrame(list(VIDEOS.items()), columns=["path", "label"])
    table["votes"], table["subject"] = votes, [1.0, 2.0, *[None] * (len(VIDEOS) - 2)]
    table.to_parquet(tmp_path / "list.parquet")
    rows = list(_parquet_rows(tmp_path / "list.parquet"))
    assert [cells[2:] for _, cells in rows[1:3]] == [["1 0 0.5", "1"], ["0 2 0", "2"]]
    assert rows[3][1][2:] == ["", ""]


def test_a_name_without_suffix_that_two_videos_have_is_refused(tmp_path: Path) -> None:
    for name in ("a.avi", "a.mp4"):
        write(tmp_path / name, b"x")
    write(tmp_path / "list.csv", "path,label\na,happy\n")
    with pytest.raises(RefusedError, match=r"list\.csv:2: a could be a\.avi and a\.mp4; add the"):
        survey_list(tmp_path)
    (tmp_path / "a.avi").unlink()
    (tmp_path / "a").mkdir()
    with pytest.raises(RefusedError, match=r"a could be a and a\.mp4; .*move one away"):
        survey_list(tmp_path)


def test_paths_may_start_from_another_folder_or_be_absolute(tmp_path: Path) -> None:
    add_files(tmp_path / "else")
    write(tmp_path / "list.csv", CSV.replace("c.avi", f"{tmp_path}/else/c.avi"))
    survey = survey_list(tmp_path, source="else")
    assert [*survey.labels] == sorted(IDS)
    assert survey.video_list().videos[1].path == tmp_path / "else/clips/a 1.mp4"


def test_splits_subjects_votes_and_labels_of_frames_are_kept(tmp_path: Path) -> None:
    add_files(tmp_path)
    lines = ["path,label,split,subject,frame_labels,votes"]
    more = ("train,anna,bored;-;proud,3 0 1", "test,ben,,0 1 0", "val,,,", "train,anna,-,0;0;9.5")
    lines += [f"{p},{k},{rest}" for (p, k), rest in zip(VIDEOS.items(), more, strict=True)]
    write(tmp_path / "list.csv", "\n".join(lines))
    survey = survey_list(tmp_path)
    assert survey.folds[0].train == ("clips/a 1", "frames/d/e")
    assert survey.folds[0].test == ("frames/b2",)
    assert survey.subsets == {"validation": {"c"}}
    videos = {video.id: video for video in survey.video_list().videos}
    assert videos["clips/a 1"].subject == "anna"
    assert videos["c"].subject is None
    np.testing.assert_array_equal(videos["clips/a 1"].frame_labels, [0, -1, 2])
    assert videos["frames/b2"].frame_labels is None
    assert videos["frames/d/e"].votes == (0, 0, 9.5)


def test_without_a_test_part_validation_is_tested(tmp_path: Path) -> None:
    add_files(tmp_path)
    splits = dict(zip(VIDEOS, ("train", "train", "dev", "dev"), strict=True))
    rows = [f"{path},{label},{splits[path]}" for path, label in VIDEOS.items()]
    write(tmp_path / "list.csv", "\n".join(["path,label,split", *rows]))
    assert survey_list(tmp_path).folds[0].test == ("c", "frames/d/e")


def test_a_column_of_folds_says_where_each_video_is_tested(tmp_path: Path) -> None:
    add_files(tmp_path)
    rows = [f"{path},{label},{n % 2 + 9}" for n, (path, label) in enumerate(VIDEOS.items())]
    write(tmp_path / "list.csv", "\n".join(["path,label,fold", *rows]))
    folds = survey_list(tmp_path).folds
    assert [fold.name for fold in folds] == ["9", "10"]
    assert folds[0].test == folds[1].train == ("c", "clips/a 1")


def test_numbers_and_quotes_of_other_programs_are_read(tmp_path: Path) -> None:
    add_files(tmp_path)
    folds = ("1", "\uff10\u2460", "2.0", "\u0662")  # full-width, circled, Arabic
    rows = [
        f"{path},{n % 2}.0,{folds[n]},{n % 2}.0 1.00" for n, path in enumerate(sorted(VIDEOS), 0)
    ]
    write(tmp_path / "list.csv", "\n".join(["path,label,fold,frame_labels", *rows]))
    survey = survey_list(tmp_path, classes=("happiness", "bored"))
    assert [*survey.labels.values()] == [0, 1, 0, 1]
    assert [fold.test for fold in survey.folds] == [("c", "clips/a 1"), ("frames/b2", "frames/d/e")]
    np.testing.assert_array_equal(survey.frames["c"][0], [0, 1])
    write(tmp_path / "list.csv", "path,label\nc.avi,'bored'\nframes/b2,proud\n")
    assert survey_list(tmp_path).classes == ("bored", "proud")


@pytest.mark.parametrize("base", [0, 1])
def test_numbers_are_classes_in_the_order_given(tmp_path: Path, base: int) -> None:
    add_files(tmp_path)
    numbers = {"bored": 2 + base, "Happy": base, "proud": 1 + base}
    rows = [f"{path},{numbers[label]},{numbers[label]};-" for path, label in VIDEOS.items()]
    write(tmp_path / "list.csv", "\n".join(["path,label,frame_labels", *rows]))
    survey = survey_list(tmp_path, classes=("happiness", "proud", "bored"))
    assert {i: survey.classes[k] for i, k in survey.labels.items()} == IDS
    np.testing.assert_array_equal(survey.frames["c"][0], [2, -1])
    with pytest.raises(RefusedError, match=r"the labels are numbers; .*--texts"):
        survey_list(tmp_path)
    for wrong in (base - 1, base + 3):
        lines = ["path,label,frame_labels", *rows[1:], rows[0].replace("-", str(wrong))]
        write(tmp_path / "list.csv", "\n".join(lines))
        message = rf"csv:5: label {wrong}; expected {base} to {base + 2}, .* - is the label of"
        with pytest.raises(RefusedError, match=message):
            survey_list(tmp_path, classes=("happiness", "proud", "bored"))


@pytest.mark.parametrize(("base", "names"), [(0, "10"), (1, "01")])
def test_classes_called_by_other_numbers_than_the_labels_are_refused(
    tmp_path: Path, base: int, names: str
) -> None:
    add_files(tmp_path)
    write(tmp_path / "list.csv", f"path,label\nc.avi,{base}\nframes/b2,{base + 1}\n")
    with pytest.raises(RefusedError, match=rf"count from {base}, .* label {base} .*\[{names[0]}\]"):
        survey_list(tmp_path, classes=tuple(names))
    assert survey_list(tmp_path, classes=(str(base), str(base + 1))).labels == {
        "c": 0,
        "frames/b2": 1,
    }


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "a video twice": (CSV + "c.mp4,bored\n", r"list.csv:6: video c is listed twice, .*csv:4"),
    "a path out of the root": ("../x.mp4,bored\n", r"list.csv:1: path '../x.mp4' is not below"),
    "an absolute path": ("/etc/passwd,bored\n", r"path '/etc/passwd' is not below"),
    "a drive": ("D:\\x\\a.mp4,bored\n", r"path 'D:/x/a.mp4' is not below"),
    "a dot": (".,bored\n", r"path '.' is not below"),
    "a path out of the root behind a dot": (
        "./../x.mp4,bored\n",
        r"path './../x.mp4' is not below",
    ),
    "a header in other words": (
        "file,emotion\nclips/a 1.mp4,bored\nc.avi,bored\n",
        r"list.csv:1: there is no video 'file', .*call them path and label",
    ),
    "labels before paths": ("bored,c.avi\nbored,a.mp4\n", r"csv:1: the label 'c.avi' is a video"),
    "two spellings": (
        "c.avi,Bored\nclips/a 1.mp4,bored\nframes/b2,Bored\n",
        r"list.csv: 'Bored' \(2 videos, such as c\) and 'bored' \(1 videos, such as clips/a 1\) ",
    ),
    "two encodings": (
        "c.avi,\u00e9t\u00e9\nclips/a 1.mp4,e\u0301te\u0301\nframes/b2,\u00e9t\u00e9\n",
        r"'\\xe9t\\xe9' \(2 .*'e\\u0301te\\u0301' \(1 videos, .*one class spelled in two ways",
    ),
    "two spellings of a person": (
        "path,label,subject\nc.avi,x,Anna\nframes/b2,y,anna\n",
        r"'Anna' \(1 .* and 'anna' \(1 .* are one subject spelled in two ways",
    ),
    "two spellings of a numbered person": (
        "path,label,subject\nc.avi,x,01\nframes/b2,y,1\n",
        r"'01' \(1 .* and '1' \(1 .* are one subject spelled in two ways",
    ),
    "two spellings of a fold": (
        "path,label,fold\nc.avi,x,fold0\nframes/b2,y,Fold 0\n",
        r"'fold0' \(1 .* and 'Fold 0' \(1 .* are one fold spelled in two ways",
    ),
    "a person with a letter that is not seen": (
        "path,label,subject\nc.avi,x,anna\nframes/b2,y,anna\u200b\n",
        r"'anna' \(1 .* and 'anna\\u200b' \(1 .* are one subject spelled in two ways",
    ),
    **{
        f"fold 1 as {fold}": (
            f"path,label,fold\nc.avi,x,1\nframes/b2,y,{fold}\nframes/d/e,y,2\n",
            rf"'1' \(1 .* and '{fold}' \(1 .* are one fold spelled in two ways",
        )
        for fold in ("fold1", "Set 01", "split_1")
    },
    **{
        f"a fold called {fold}": (
            f"path,label,fold\nc.avi,x,fold1\nframes/b2,y,{fold}\nframes/d/e,y,fold2\n",
            rf"csv:3: fold '{re.escape(fold)}' has no number .* as 'fold1' has: number all of",
        )
        for fold in ("nan", "1.5", "1;2", "+1")
    },
    "a person who is nobody": (
        "path,label,subject\nc.avi,x,anna\nframes/b2,y,nan\n",
        r"the subject of frames/b2 is 'nan', which would make one person of .*: leave the cell",
    ),
    "a fraction among numbers": (
        "path,label\nc.avi,1\nframes/b2,1.5\nframes/d/e,2\n",
        r"list.csv:3: the label 1.5 is no whole number, and others are; write all as",
    ),
    "a number among words": (CSV + "x,1\n", r"list.csv:6: the label 1 is a number, and others"),
    "parts called folds": (
        "path,label,fold\nc.avi,x,train\nframes/b2,y,test\n",
        r"list.csv:2: fold 'train' is a part and no fold; call the column split",
    ),
    "one fold": (
        "path,label,fold\nc.avi,x,1\nframes/b2,y,1\n",
        r"list.csv: all videos are tested in one fold, 1, so .*--folds 5",
    ),
    "a ragged row": (CSV + "x,y,z\n", r"list.csv:6: 3 cells, expected 2 \(path, label\)"),
    "no label": (CSV + "x,\n", r"list.csv:6: a row without a path or a label"),
    "an unclosed quote": (CSV + '"x,bored\n', r"list.csv:6: unexpected end of data"),
    "an unknown column": (
        "path,label,age\nx,y,3\n",
        r"csv:1: the columns are path, label, age; exp",
    ),
    "no column of labels": ("path,subject\nx,y\n", r"csv:1: the columns are path, subject; exp"),
    "a split and a fold": (
        "path,label,split,fold\nc.avi,bored,train,1\n",
        r"both a column split and a column fold",
    ),
    "a split for some": (
        "path,label,split\na.mp4,x,train\nb.mp4,y,\n",
        r"list.csv:3: video b has no split, others have one",
    ),
    "a split that is none": (
        "path,label,split\na.mp4,x,learn\n",
        r"csv:2: video a has split 'learn'; ex",
    ),
    "only a test part": ("path,label,split\na.mp4,x,test\n", r"0 train, 1 test videos"),
    "too few votes": ("path,label,votes\na.mp4,x,3 4\n", r"csv:2: votes '3 4'; expected 1 num"),
    "votes that are none": ("path,label,votes\na.mp4,x,nan\n", r"csv:2: votes 'nan'; expected 1"),
    "a frame label": ("path,label,frame_labels\na.mp4,x,y\n", r"csv:2: label 'y'; expected one"),
    "nothing": ("", r"the list has no videos"),
    "NUL": ("a\0,b\n", r"list.csv:1: byte 0x00 is no text"),
    "GBK": ("人脸,bored\n".encode("gbk"), r"list.csv:1: byte 0xc8 is no text; save the file as"),
}


@pytest.mark.parametrize("row", ["frames/a bored train", "a.mp4 bored train", "02522 66 5"])
def test_a_row_of_text_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, row: str) -> None:
    write(tmp_path / "list.txt", f"c.avi bored\n{row}\n")
    with pytest.raises(
        RefusedError, match=r"list\.txt:2: .* has three columns, or a path with spa"
    ):
        survey_list(tmp_path)
    write(tmp_path / "list.txt", "label path\nbored c.avi\n")
    with pytest.raises(RefusedError, match="the first column is label, expected path"):
        survey_list(tmp_path)


@pytest.mark.parametrize("fault", REFUSED)
def test_a_list_that_cannot_be_meant_is_refused_with_the_line(tmp_path: Path, fault: str) -> None:
    text, message = REFUSED[fault]
    add_files(tmp_path)
    write(tmp_path / "list.csv", text)
    with pytest.raises(RefusedError, match=message):
        survey_list(tmp_path)


def test_every_missing_file_is_counted_and_an_empty_folder_is_one(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", CSV)
    add_video(tmp_path / "c.avi")
    (tmp_path / "frames/b2").mkdir(parents=True)
    survey = survey_list(tmp_path)
    assert survey.account().missing == ("clips/a 1", "frames/b2", "frames/d/e")
    with pytest.raises(RefusedError, match="3 of 4 listed videos have no frames"):
        survey.video_list()


def test_a_folder_of_images_and_a_video_in_it_are_not_both_videos(tmp_path: Path) -> None:
    add_files(tmp_path)
    add_video(tmp_path / "frames/b2/x.mp4")
    write(tmp_path / "list.csv", "path,label\nframes/b2,x\nframes/b2/x.mp4,y\n")
    with pytest.raises(RefusedError, match=r"frames/b2 holds images, .* a video frames/b2/x in it"):
        survey_list(tmp_path)
    (tmp_path / "list.csv").unlink()
    with pytest.raises(RefusedError, match=r"frames/b2 holds images, .* a video frames/b2/x in it"):
        write_templates(tmp_path)


@pytest.mark.parametrize("name", [" a.mp4", "a\\b.mp4", "a\tb.mp4", "a\nb.mp4"])
def test_no_list_is_begun_of_a_name_that_it_could_not_say(tmp_path: Path, name: str) -> None:
    add_video(tmp_path / name)
    with pytest.raises(RefusedError, match="which a list cannot say: rename it"):
        write_templates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_links_may_not_leave_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "list.csv", CSV)
    add_files(tmp_path / "other")
    (root / "frames").symlink_to(tmp_path / "other/frames")
    with pytest.raises(RefusedError, match=r"a link to .*other/frames, which is not in"):
        survey_list(root)


def test_no_list_and_two_lists_are_two_messages(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"no list; expected one of .*tgdfer data init"):
        survey_list(tmp_path)
    write(tmp_path / "list.csv", CSV)
    write(tmp_path / "list.txt", CSV)
    with pytest.raises(RefusedError, match=r"list.csv and list.txt; expected one of"):
        survey_list(tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(
        st.text(
            st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="/\\:"), min_size=1
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda name: unicodedata.normalize("NFC", name.strip()),
    ),
    delimiter=st.sampled_from([",", "\t"]),
)
def test_any_names_come_back_from_a_list(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], delimiter: str
) -> None:
    import csv

    names = [f"x{name.strip()}x" for name in names if name.strip()]
    file = tmp_path_factory.mktemp("list") / "list.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, delimiter=delimiter)
        writer.writerow(["path", "label"])
        writer.writerows([name, "bored"] for name in names)
    if names:
        assert set(survey_list(file.parent).labels) == set(names)
