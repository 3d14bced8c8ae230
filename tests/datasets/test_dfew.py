"""DFEW trees as users have them: every spelling read the same, every contradiction refused."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cache.errors import RefusedError
from pipeline.datasets.dfew import CLASSES, read_dfew, survey_dfew

# id -> official label, 1 to 7: happy, sad, neutral, angry, surprise, disgust, fear.
LABELS = {1: 1, 2: 2, 3: 3, 14: 4, 205: 5, 2522: 6, 16372: 7, 8: 1}
TEST_1, TEST_2 = (1, 14, 2522, 8), (2, 3, 205, 16372)
OFFICIAL = "EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv"


FRAMES = "video_name,frame,label,intensity\n"


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def official(ids: Iterable[int]) -> str:
    return "video_name,label\n" + "".join(f"{i},{LABELS[i]}\n" for i in ids)


def write_lists(root: Path, layout: str = OFFICIAL, rows: Callable[..., Any] = official) -> None:
    for fold, test in ((1, TEST_1), (2, TEST_2)):
        train = [i for i in LABELS if i not in test]
        for part, ids in (("train", train), ("test", test)):
            write(root / layout.format(part=part, fold=fold), rows(ids))


def write_frames(root: Path, name: str = "Clip/clip_224x224", digits: int = 5) -> None:
    for i in LABELS:
        folder = root / name / f"{i:0{digits}d}"
        folder.mkdir(parents=True)
        for number in (1, 2, 10):
            Image.new("RGB", (4, 4)).save(folder / f"{number}.jpg")


def write_videos(root: Path, name: str = "Clip/original", suffix: str = ".mp4") -> None:
    for i in LABELS:
        write(root / name / f"{i:05d}{suffix}", b"\0")


def expect_the_known_set(root: Path, **arguments: Any) -> None:
    videos = read_dfew(root, **arguments)
    assert videos.classes == CLASSES
    assert {int(v.id): v.label + 1 for v in videos.videos} == LABELS
    assert [v.id for v in videos.videos] == sorted(f"{i:05d}" for i in LABELS)
    tests = [{int(i) for i in fold.test} for fold in videos.folds]
    assert tests == [set(TEST_1), set(TEST_2)]
    for fold in videos.folds:
        assert set(fold.train) | set(fold.test) == {v.id for v in videos.videos}


@pytest.mark.parametrize(
    "layout",
    [
        OFFICIAL,
        "EmoLabel_DataSplit/{part}(single_labeled)/set_{fold}.csv",
        "EmoLabel_DataSplit/{part}_set_{fold}.csv",
        "EmoLabel_DataSplit/single_{part}set_{fold}.csv",
        "EmoLabel_DataSplit/{part}/set_{fold}.csv",
        "EmoLabel_DataSplit/DFEW_set_{fold}_{part}.txt",
        "DFEW/EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv",
        "{part}(single-labeled)/set_{fold}.csv",
    ],
)
def test_every_spelling_of_the_split_folder_is_read(tmp_path: Path, layout: str) -> None:
    write_lists(tmp_path, layout)
    write_frames(tmp_path)
    expect_the_known_set(tmp_path)


ROWS = {
    "official": official,
    "no header": lambda ids: official(ids).split("\n", 1)[1],
    "byte order mark": lambda ids: b"\xef\xbb\xbf" + official(ids).encode(),
    "CRLF": lambda ids: official(ids).replace("\n", "\r\n"),
    "no final newline": lambda ids: official(ids).rstrip("\n"),
    "blank lines": lambda ids: official(ids) + "\n,\n;;\n",
    "spaces": lambda ids: "".join(f" {i} , {LABELS[i]} \n" for i in ids),
    "quotes": lambda ids: "".join(f'"{i:05d}","{LABELS[i]}"\n' for i in ids),
    "from 0, padded": lambda ids: "".join(f"{i:05d},{LABELS[i] - 1}\n" for i in ids),
    "peer list": lambda ids: "".join(f"DFEW_Frame_Face/{i:05d} 66 {LABELS[i] - 1}\n" for i in ids),
    "peer list without counts": lambda ids: "".join(
        f"data/Clip/jpg_256/{i:05d} {LABELS[i] - 1}\n" for i in ids
    ),
    "Windows drive with spaces": lambda ids: "".join(
        f"D:\\my faces 2\\DFEW\\{i:05d} 66 {LABELS[i] - 1}\n" for i in ids
    ),
    "a folder in Chinese": lambda ids: "".join(
        f"人脸 数据/{i:05d} 66 {LABELS[i] - 1}\n" for i in ids
    ),
    "Excel's empty column": lambda ids: official(ids).replace("\n", ",\n"),
    "semicolons": lambda ids: official(ids).replace(",", ";"),
    "labels as floats": lambda ids: official(ids).replace("\n", ".0\n").replace("label.0", "label"),
    "video names": lambda ids: "".join(f"{i:05d}.mp4,{LABELS[i]}\n" for i in ids),
}


@pytest.mark.parametrize("spelling", ROWS)
def test_every_spelling_of_a_row_is_read(tmp_path: Path, spelling: str) -> None:
    write_lists(tmp_path, rows=ROWS[spelling])
    write_frames(tmp_path)
    expect_the_known_set(tmp_path)


def test_lists_may_lie_elsewhere(tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", "{part}_set_{fold}.csv")
    write_frames(tmp_path / "data")
    expect_the_known_set(tmp_path / "data", annotation=tmp_path / "lists")


@pytest.mark.parametrize(
    "name",
    [
        "Clip/clip_224x224",
        "Clip/clip_224x224/clip_224x224",
        "Clip/jpg_256",
        "clip_jpg_256",
        "DFEW_Frame_Face",
        "DFEW_Face",
        "data_affine/single_label/data",
    ],
)
@pytest.mark.parametrize("digits", [1, 5])
def test_frame_roots_are_found_padded_or_not(tmp_path: Path, name: str, digits: int) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path, name, digits)
    expect_the_known_set(tmp_path)
    assert read_dfew(tmp_path).videos[0].path == tmp_path / name / f"{1:0{digits}d}"


@pytest.mark.parametrize(
    ("name", "suffix"), [("Clip/original", ".mp4"), ("Clip/clip_224x224_avi", ".avi")]
)
def test_videos_are_found(tmp_path: Path, name: str, suffix: str) -> None:
    write_lists(tmp_path)
    write_videos(tmp_path, name, suffix)
    expect_the_known_set(tmp_path)
    assert read_dfew(tmp_path).source == name


def test_frame_folders_are_preferred_and_a_source_can_be_named(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_videos(tmp_path)
    write_frames(tmp_path)
    write_frames(tmp_path, "Clip/clip_224x224_16f")
    assert read_dfew(tmp_path).source == "Clip/clip_224x224"
    assert read_dfew(tmp_path, source="original").videos[0].path.suffix == ".mp4"
    assert read_dfew(tmp_path, source="Clip/original").source == "Clip/original"
    assert read_dfew(tmp_path, source="clip_224x224_16f").source == "Clip/clip_224x224_16f"


def test_interpolated_frames_are_never_chosen_unasked(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path, "Clip/clip_224x224_16f")
    with pytest.raises(RefusedError, match=r"Clip/clip_224x224_16f holds interpolated frames"):
        read_dfew(tmp_path)


def test_labels_that_reach_neither_end_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, rows=lambda ids: "".join(f"{i},{min(LABELS[i], 6)}\n" for i in ids))
    write_frames(tmp_path)
    with pytest.raises(RefusedError, match=r"labels run from 1 .* to 6 .*expected 1 to 7"):
        read_dfew(tmp_path)


def test_every_missing_video_is_counted_and_the_first_ten_are_named(tmp_path: Path) -> None:
    many = {i: 1 + i % 7 for i in range(1, 31)}
    text = "".join(f"{i},{label}\n" for i, label in many.items() if i <= 15)
    write(tmp_path / OFFICIAL.format(part="train", fold=1), text)
    text = "".join(f"{i},{label}\n" for i, label in many.items() if i > 15)
    write(tmp_path / OFFICIAL.format(part="test", fold=1), text)
    for i in range(13, 31):
        write(tmp_path / f"Clip/clip_224x224/{i:05d}/1.jpg", b"\0")
    (tmp_path / "Clip/clip_224x224/00001").mkdir()  # a folder without a frame is missing too
    with pytest.raises(RefusedError, match=r"12 of 30 listed .*00001, .*00010 and 2 more"):
        read_dfew(tmp_path)
    accounting = survey_dfew(tmp_path).account()
    assert len(accounting.missing) == 12
    assert sum(count.listed for count in accounting.counts) == 30
    assert sum(count.missing for count in accounting.counts) == 12
    assert sum(count.used for count in accounting.counts) == 0


def test_limit_keeps_the_first_videos_and_asks_only_for_their_frames(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path)
    shutil.rmtree(tmp_path / "Clip/clip_224x224/16372")
    few = read_dfew(tmp_path, limit=4)
    assert [int(video.id) for video in few.videos] == sorted(LABELS)[:4]
    assert [fold.test for fold in few.folds] == [("00001", "00008"), ("00002", "00003")]
    with pytest.raises(RefusedError, match="1 of 8 listed videos have no frames"):
        read_dfew(tmp_path, limit=8)


def test_accounting_of_a_complete_tree_adds_up(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path)
    counts = survey_dfew(tmp_path).account().counts
    assert len(counts) == 2 * 2 * len(CLASSES)
    assert all(c.listed == c.found == c.used and c.missing == 0 for c in counts)
    happy = [c for c in counts if (c.fold, c.part, c.label) == ("1", "test", "happiness")]
    assert [c.listed for c in happy] == [2]


def test_a_missing_root_an_empty_root_and_a_missing_annotation_are_three_messages(
    tmp_path: Path,
) -> None:
    with pytest.raises(RefusedError, match="no such folder"):
        read_dfew(tmp_path / "nowhere")
    with pytest.raises(RefusedError, match=r"is empty; unpack"):
        read_dfew(tmp_path)
    write_frames(tmp_path)
    with pytest.raises(RefusedError, match=r"no annotation; .*--annotation"):
        read_dfew(tmp_path)


def test_lists_without_any_pixels_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path)
    with pytest.raises(RefusedError, match=r"no frames or videos for source 'auto'.*unpack Clip"):
        read_dfew(tmp_path)


REFUSED_LISTS: dict[str, tuple[str, str | bytes, str]] = {
    "a video twice in one list": (
        "train",
        "1,1\n2,2\n1,1\n",
        r"set_9.csv:3: video 00001 .* line 1",
    ),
    "a padded and an unpadded id": ("train", "1,1\n00001,1\n", r"set_9.csv:2: .* line 1"),
    "a video trained and tested on": (
        "test",
        "3,3\n",
        r"test video 00003 is also a training video",
    ),
    "labels that disagree": ("test", "8,2\n", r"set_9.csv:1: video 00008 has label 2, but label 1"),
    "a row that is none": ("train", "1,1\nhello\n", r"set_9.csv:2: 'hello' is not a row"),
    "a label that is a word": (
        "train",
        "77,happy\n",
        r"set_9.csv:1: label 'happy' is a word, and others are numbers",
    ),
    "an empty list": ("train", "video_name,label\n", r"has no videos"),
    "a second header": (
        "train",
        "video_name,label\nname,label\n1,1\n",
        r"set_9.csv:2: .* not a row",
    ),
    "a row of three": ("train", "1,1\n2,3,4\n", r"set_9.csv:2: '2,3,4' is not a row"),
    "an index before the id": (
        "train",
        "1 00035 1\n",
        r"set_9.csv:1: .* may be an index and an id",
    ),
    "cells between commas": ("train", "a/00035,66,1\n", r"set_9.csv:1: .*remove the other columns"),
    "an unclosed quote": ("train", '"1,1\n', r"set_9.csv:1: a quote is not closed in '\"1,1'"),
    "an unclosed quote in the header": ("train", '"video,label\n1,1\n', r"set_9.csv:1: a quote"),
    "NUL": ("train", "1,1\n2,\0 1\n", r"set_9.csv:2: byte 0x00 is no text; save the file as UTF-8"),
    "Latin-1": ("train", "vidéo,label\n1,1\n".encode("latin-1"), r"set_9.csv:1: byte 0xe9 is no"),
    "GBK": ("train", "1,1\n人脸/2 1\n".encode("gbk"), r"set_9.csv:2: byte 0xc8 is no text"),
    "UTF-16": ("train", "1,1\n".encode("utf-16"), r"set_9.csv:1: byte 0xff is no text"),
    "an id of 5000 digits": ("train", "1,1\n" + "2" * 5000 + ",1\n", r"set_9.csv:2: '2222"),
    "a label of 4000 digits": ("train", "1," + "1" * 4000 + "\n", r"set_9.csv:1: '1,1111"),
    "digits of another script": ("train", "1,1\n٢,1\n", r"set_9.csv:2: '٢,1' is not a row"),
    "nan": ("train", "1,1\n77,nan\n", r"set_9.csv:2: label 'nan' is a word, and"),
    "a negative label": ("train", "77,-1\n", r"labels run from -1 \(.*set_9.csv:1\) to 7"),
    "a long line": ("train", "x" * 5000 + "\n1,1\n", r"set_9.csv:1: 'xxx"),
}


@pytest.mark.parametrize("fault", REFUSED_LISTS)
def test_a_contradiction_is_refused_with_file_and_line(tmp_path: Path, fault: str) -> None:
    part, text, message = REFUSED_LISTS[fault]
    other = "test" if part == "train" else "train"
    write_lists(tmp_path)
    write_frames(tmp_path)
    write(tmp_path / OFFICIAL.format(part=part, fold=9), text)
    write(tmp_path / OFFICIAL.format(part=other, fold=9), official([14, 3]))
    with pytest.raises(RefusedError, match=message):
        read_dfew(tmp_path)


def test_a_set_without_its_other_half_is_refused(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write(tmp_path / OFFICIAL.format(part="train", fold=3), official([1]))
    with pytest.raises(RefusedError, match="set 3 has a train list but no test list"):
        read_dfew(tmp_path)


def test_two_lists_for_one_set_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_lists(tmp_path, "EmoLabel_DataSplit/{part}_set_{fold}.csv")
    with pytest.raises(RefusedError, match=r"both are the test list of set 1; .* such as train_3"):
        read_dfew(tmp_path)


def test_two_folders_of_one_id_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path)
    write(tmp_path / "Clip/clip_224x224/1/1.jpg", b"\0")
    with pytest.raises(RefusedError, match="share an id"):
        read_dfew(tmp_path)


def test_truth_beside_the_lists_is_attached(tmp_path: Path) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path)
    assert read_dfew(tmp_path).videos[0].subject is None
    lists = tmp_path / "EmoLabel_DataSplit"
    truth = {"subjects": {"00001": "s1"}, "subsets": {"occluded": ["00001", "02522"]}}
    write(lists / "truth.json", json.dumps(truth))
    write(lists / "frames.csv", "video_name,frame,label,intensity\n00001,1,3,0\n00001,2,0,0.5\n")
    videos = read_dfew(tmp_path)
    assert videos.subsets == {"occluded": frozenset({"00001", "02522"})}
    assert videos.videos[0].subject == "s1"
    np.testing.assert_array_equal(videos.videos[0].frame_labels, [2, -1])
    np.testing.assert_array_equal(videos.videos[0].frame_intensities, [0, 0.5])
    assert videos.videos[1].frame_labels is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("truth.json", '{"subjects": {"00099": "s1"}}', "in no list: 00099"),
        ("frames.csv", "video_name,frame,label,intensity\n00099,1,1,0\n", "video 00099 is in no"),
        ("frames.csv", "video_name,frame,label,intensity\n00001,2,1,0\n", "are not 1, 2, 3"),
        ("frames.csv", FRAMES + "00001,1,1,0\n00001,1,1,0\n", r"csv:3: video 00001 is .* 1, 2, 3"),
        ("frames.csv", FRAMES + "00001,1,8,0\n", r"csv:2: label 8.*expected labels from 0 to 7"),
        ("frames.csv", FRAMES + "00001,1,1,nan\n", r"csv:2: '00001,1,1,nan' is not a row"),
        ("frames.csv", FRAMES + "00001,1,1,1e9\n", r"csv:2: label 1, intensity 1e\+09; expected"),
        ("frames.csv", FRAMES + "00001,1,1,1.0.0\n", r"csv:2: .*1\.0\.0"),
        ("frames.csv", FRAMES + "00001,1,1\n", r"csv:2: '00001,1,1' is not a row"),
        ("frames.csv", FRAMES + "00001," + "1" * 5000 + ",1,0\n", r"csv:2: '00001,111"),
        ("frames.csv", "frame,label\n", "csv:1: expected the header video_name,frame,label"),
        ("frames.csv", FRAMES + "\0", "csv:2: byte 0x00 is no text"),
        ("truth.json", "[" * 100000, "truth.json: not JSON"),
        ("truth.json", "[]", "truth.json: not JSON"),
        (
            "truth.json",
            '{"subjects": {"00001": 1}}',
            r"truth.json: subjects.00001: .* valid string",
        ),
        ("truth.json", '{"subsets": {"dark": {"a": 1}}}', r"truth.json: subsets.dark"),
        ("truth.json", '{"subsets": 3}', r"truth.json: subsets"),
    ],
)
def test_truth_of_unknown_videos_with_gaps_or_out_of_range_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path)
    write(tmp_path / "EmoLabel_DataSplit" / name, text)
    with pytest.raises(RefusedError, match=message):
        read_dfew(tmp_path)


@pytest.mark.parametrize("name", ["train(single-labeled)/set_1.csv", "truth.json", "frames.csv"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [("FIFO", "a device, FIFO or socket"), ("folder", "a folder"), ("zero", "device")],
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, name: str, kind: str, message: str
) -> None:
    write_lists(tmp_path)
    write_frames(tmp_path)
    path = tmp_path / "EmoLabel_DataSplit" / name
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(RefusedError, match=rf"{path.name}: cannot be read \(.*{message}"):
        read_dfew(tmp_path)


@pytest.mark.parametrize(
    "link",
    [
        "Clip",
        "Clip/clip_224x224",
        "Clip/clip_224x224/00002",
        "Clip/clip_224x224/00002/1.jpg",
        "EmoLabel_DataSplit",
        "EmoLabel_DataSplit/test(single-labeled)/set_1.csv",
    ],
)
def test_links_may_not_leave_the_root(tmp_path: Path, link: str) -> None:
    root, other = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root, other):
        write_lists(folder)
        write_frames(folder)
    path = root / link
    path.rename(root / "moved")
    path.symlink_to(root / "moved")
    expect_the_known_set(root)  # within the root, links are as good as anything
    (tmp_path / "link").symlink_to(root)
    expect_the_known_set(tmp_path / "link")
    path.unlink()
    path.symlink_to(other / link)
    with pytest.raises(
        RefusedError, match=r"a link to .*elsewhere.*, which is not in .*root; copy"
    ):
        read_dfew(root)


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(1, 99999), min_size=14, max_size=30, unique=True),
    base=st.sampled_from([0, 1]),
    folder=st.sampled_from(["", "a b/", "D:/x 5/", "C:\\data\\"]),
    counts=st.booleans(),
)
def test_any_ids_and_either_base_give_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], base: int, folder: str, counts: bool
) -> None:
    root = tmp_path_factory.mktemp("dfew")
    lines = [
        f"{folder}{i:05d}{' 17' if counts and folder else ''} {n % 7 + base}"
        for n, i in enumerate(ids)
    ]
    write(root / "train_set_1.csv", "\n".join(lines[:7]))
    write(root / "test_set_1.csv", "\n".join(lines[7:]))
    for i in ids:
        write(root / f"Clip/clip_224x224/{i:05d}/1.jpg", b"\0")
    videos = read_dfew(root)
    assert {int(v.id): v.label for v in videos.videos} == {i: n % 7 for n, i in enumerate(ids)}
