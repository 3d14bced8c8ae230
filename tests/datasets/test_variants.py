"""DFEW in the variants that public repositories ship, and what they say if they cannot be read."""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import RefusedError
from pipeline.datasets.dfew import CLASSES, read_dfew, survey_dfew
from pipeline.datasets.known import known_datasets
from pipeline.datasets.labels import _doubts, find_order, order_note, votes_for_others
from pipeline.datasets.rows import Row, Votes
from support.trees import add_frames, write

# id -> label from 0: happiness, sadness, neutral, anger, surprise, disgust, fear.
LABELS = {1: 0, 2: 1, 3: 2, 14: 3, 205: 4, 2522: 5, 16372: 6, 8: 0}
TEST = (1, 14, 2522, 8)
OFFICIAL = "EmoLabel_DataSplit/{part}(single-labeled)/set_1.csv"

Rows = Callable[[Iterable[int]], str]


def official(ids: Iterable[int]) -> str:
    return "video_name,label\n" + "".join(f"{i},{LABELS[i] + 1}\n" for i in ids)


def peer(ids: Iterable[int]) -> str:
    return "".join(f"data/DFEW_Frame_Face/{i:05d} 66 {LABELS[i]}\n" for i in ids)


def add_lists(root: Path, layout: str = OFFICIAL, rows: Rows = official) -> None:
    train = [i for i in LABELS if i not in TEST]
    write(root / layout.format(part="train"), rows(train))
    write(root / layout.format(part="test"), rows(TEST))


def add_clips(root: Path, name: str, ids: Iterable[int] = LABELS) -> None:
    for i in ids:
        add_frames(root / name / f"{i:05d}", count=2)


def expect_the_known_set(root: Path, source: str = "auto") -> str:
    videos = read_dfew(root, source=source)
    assert {int(v.id): v.label for v in videos.videos} == LABELS
    assert {int(i) for i in videos.folds[0].test} == set(TEST)
    return videos.source


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ("annotation/DFEW_set_1_{part}.txt", peer),
        ("org/split01/{part}.csv", peer),
        ("{part}(single-labeled)/{part}(single-labeled)/set_1.csv", official),
        ("EmoLabel_DataSplit/{part}_single_label.csv", official),
        ("label/single_{part}set_1.csv", official),
        ("DFEW-part2/EmoLabel_DataSplit/{part}(single-labeled)/set_1.csv", official),
        ("saved/data/dfew/org/split01/{part}.csv", peer),
    ],
)
def test_lists_of_public_repositories_are_found(tmp_path: Path, layout: str, rows: Rows) -> None:
    add_lists(tmp_path, layout, rows)
    add_clips(tmp_path, "Clip/clip_224x224")
    expect_the_known_set(tmp_path)


def test_a_test_list_may_be_called_a_validation_list(tmp_path: Path) -> None:
    add_lists(tmp_path, "org/split02/{part}.csv", peer)
    (tmp_path / "org/split02/test.csv").rename(tmp_path / "org/split02/val.csv")
    add_clips(tmp_path, "jpg_256")
    expect_the_known_set(tmp_path)
    write(tmp_path / "org/split02/test.csv", peer(TEST[:1]))
    write(tmp_path / "org/split02/val.csv", peer(TEST[1:]))
    assert [len(fold.test) for fold in read_dfew(tmp_path).folds] == [1]
    assert re.search("^1 validation lists .*/split02/val.csv$", survey_dfew(tmp_path).notes[0])


def test_lists_of_another_data_set_beside_them_are_left_alone(tmp_path: Path) -> None:
    add_lists(tmp_path, "annotation/DFEW_set_1_{part}.txt", peer)
    for part in ("train", "test"):
        write(tmp_path / f"annotation/MAFW_set_1_{part}.txt", "data/mafw/00007 20 10\n")
        write(tmp_path / f"annotation/MAFW_set_2_{part}.txt", "data/mafw/00008 20 10\n")
        write(tmp_path / f"annotation/FERV39K_{part}.txt", "2_Clips/Crime/Angry/0063 20 3\n")
    add_clips(tmp_path, "dataset")
    expect_the_known_set(tmp_path)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("DFEW_Frame_Face/Clip/jpg_256", "DFEW_Frame_Face/Clip/jpg_256"),
        ("EmoLabel_DataSplit", "EmoLabel_DataSplit"),
        ("dataset", "dataset"),
        ("train", "train"),
        ("DFEW-part2/Clip/clip_224x224", "DFEW/Clip/clip_224x224"),
        ("some/where/else", "some/where/else"),
        (".", "."),
    ],
)
def test_frames_are_found_wherever_they_are(tmp_path: Path, folder: str, source: str) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, folder)
    assert expect_the_known_set(tmp_path) == source


@pytest.mark.parametrize(
    "part", ["clip_224x224_part_{}", "data_part_{}", "DFEW-part{}/Clip", "a{}"]
)
def test_parts_of_the_frames_are_put_together(tmp_path: Path, part: str) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, part.format(1), list(LABELS)[:3])
    add_clips(tmp_path, part.format(2), list(LABELS)[3:])
    expect_the_known_set(tmp_path)


def test_parts_of_known_frames_come_before_videos_as_the_whole_would(tmp_path: Path) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, "Clip/clip_224x224_part_1", list(LABELS)[:3])
    add_clips(tmp_path, "Clip/clip_224x224_part_2", list(LABELS)[3:])
    for i in LABELS:
        write(tmp_path / f"Clip/original/{i:05d}.mp4", b"x")
    assert expect_the_known_set(tmp_path) == "Clip/clip_224x224"


def test_two_copies_of_unknown_names_are_a_question_and_an_answer(tmp_path: Path) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, "faces_a")
    add_clips(tmp_path, "faces_b")
    with pytest.raises(RefusedError, match=r"faces_a and faces_b both hold .*--source"):
        read_dfew(tmp_path)
    assert expect_the_known_set(tmp_path, "faces_b") == "faces_b"


def test_only_interpolated_frames_are_a_named_source(tmp_path: Path) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, "DFEW_Frame_Face/Clip/clip_224x224_16f")
    message = r"interpolated frames, .*--source DFEW_Frame_Face/Clip/clip_224x224_16f"
    with pytest.raises(RefusedError, match=message):
        read_dfew(tmp_path)
    source = expect_the_known_set(tmp_path, "clip_224x224_16f")
    assert source == "DFEW_Frame_Face/Clip/clip_224x224_16f"


def test_a_source_may_lie_anywhere(tmp_path: Path) -> None:
    add_lists(tmp_path / "root")
    add_clips(tmp_path / "root", "Clip/jpg_256")
    add_clips(tmp_path / "elsewhere", "mine")
    source = expect_the_known_set(tmp_path / "root", str(tmp_path / "elsewhere/mine"))
    assert source == str(tmp_path / "elsewhere/mine")
    with pytest.raises(RefusedError, match=r"for source 'nowhere'; there are Clip/jpg_256"):
        read_dfew(tmp_path / "root", source="nowhere")


@pytest.mark.parametrize(
    ("files", "command"),
    [
        (["Clip/clip_224x224.zip"], r"unzip '.*Clip/clip_224x224.zip' -d '.*Clip'"),
        (["DFEW-part1.zip", "DFEW-part1.z01"], r"zip -s 0 '.*DFEW-part1.zip' --out .*whole.zip"),
        (["clips.tar.gz"], r"tar -xf '.*clips.tar.gz'"),
        (["clips.zip.001"], r"7z x '.*clips.zip.001'"),
    ],
)
def test_frames_that_are_still_packed_come_with_the_command(
    tmp_path: Path, files: list[str], command: str
) -> None:
    add_lists(tmp_path)
    for name in files:
        write(tmp_path / name, b"PK")
    with pytest.raises(RefusedError, match=f"is not unpacked: .*{command}"):
        read_dfew(tmp_path)


def test_videos_that_are_missing_beside_an_archive_come_with_the_command(tmp_path: Path) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, "Clip/clip_224x224_part_1")
    shutil.rmtree(next((tmp_path / "Clip/clip_224x224_part_1").iterdir()))
    write(tmp_path / "Clip/clip_224x224_part_2.zip", b"PK")
    with pytest.raises(RefusedError, match=r"have no frames in .*is not unpacked: unzip '") as said:
        read_dfew(tmp_path)
    assert "remove the ids" not in str(said.value)


def test_a_spreadsheet_of_votes_is_no_split(tmp_path: Path) -> None:
    write(tmp_path / "annotation.xlsx", b"PK")
    add_clips(tmp_path, "jpg_256")
    with pytest.raises(RefusedError, match=r"no annotation; .*annotation.xlsx has no split in it"):
        read_dfew(tmp_path)


def voted(shift: int) -> Rows:
    def rows(ids: Iterable[int]) -> str:
        votes = [[0.5] * 7 for _ in LABELS]
        for n, label in enumerate(LABELS.values()):
            votes[n][(label + shift) % 7] = 8
        texts = dict(zip(LABELS, (" ".join(map(str, row)) for row in votes), strict=True))
        return "".join(f"D:/my faces/{i:05d} 66 {LABELS[i]} {texts[i]}\n" for i in ids)

    return rows


@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_votes_at_the_end_of_rows_are_kept(tmp_path: Path, separator: str) -> None:
    frames = " 66 " if separator == " " else separator

    def rows(ids: Iterable[int]) -> str:
        starts = (line.split(" 66 ") for line in voted(0)(ids).splitlines(keepends=True))
        return "".join(path + frames + rest.replace(" ", separator) for path, rest in starts)

    add_lists(tmp_path, rows=rows)
    add_clips(tmp_path, "jpg_256")
    expect_the_known_set(tmp_path)
    assert read_dfew(tmp_path).videos[0].votes == (8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)


def test_votes_in_another_order_than_the_labels_are_refused(tmp_path: Path) -> None:
    add_lists(tmp_path, rows=voted(2))
    add_clips(tmp_path, "jpg_256")
    with pytest.raises(RefusedError, match=r"largest vote of 8 of 8 .*another order"):
        read_dfew(tmp_path)


@pytest.mark.parametrize("circle", [(0, 2), (4, 6), (1, 3, 5)])
def test_votes_of_a_few_classes_that_went_round_are_in_another_order(
    circle: tuple[int, ...],
) -> None:
    """Most videos are of other classes, so that most votes agree with the labels."""
    labels = {f"{n}": n % 7 for n in range(70)}
    after = dict(zip(circle, circle[1:] + circle[:1], strict=True))

    def votes(moved: Mapping[int, int], until: int = 70) -> dict[str, Votes]:
        largest = {i: moved.get(k, k) if int(i) < until else k for i, k in labels.items()}
        return {i: tuple(float(k == own) for k in range(7)) for i, own in largest.items()}

    wrong = votes_for_others(votes(after), labels)
    assert {i: labels[i] for i in wrong} == {i: k for i, k in labels.items() if k in circle}
    assert not votes_for_others(votes({circle[0]: circle[1]}), labels)
    assert not votes_for_others(votes(after, until=14), labels)


def add_full_lists(root: Path, order: Iterable[str], keep: int = 1) -> None:
    """Lists as long as DFEW's, one row in ``keep``, that number the classes in ``order``."""
    counts, labels = known_datasets()["dfew"].counts, [*order]
    rows = [f"{labels.index(name)}" for name in CLASSES for _ in range(counts[name])][::keep]
    lines = [f"clips/{n:05d} 16 {label}\n" for n, label in enumerate(rows)]
    write(root / "DFEW_set_1_train.txt", "".join(lines[::2]))
    write(root / "DFEW_set_1_test.txt", "".join(lines[1::2]))
    add_frames(root / "jpg_256/00000", count=1)


# What one public repository numbers; read as DFEW's order, 7,358 of 11,697 labels are wrong.
PERMUTED = ("happiness", "sadness", "surprise", "fear", "disgust", "anger", "neutral")
SWAPPED = ("happiness", "anger", "neutral", "sadness", "surprise", "disgust", "fear")


@pytest.mark.parametrize(
    ("order", "keep"), [(PERMUTED, 1), (SWAPPED, 1), (PERMUTED, 7)], ids=["all", "two", "some"]
)
def test_classes_in_another_order_are_refused_with_both_tables(
    tmp_path: Path, order: tuple[str, ...], keep: int
) -> None:
    add_full_lists(tmp_path, CLASSES, keep)
    labels = survey_dfew(tmp_path).labels
    add_full_lists(tmp_path, order, keep)
    with pytest.raises(RefusedError, match="in another order than DFEW") as refused:
        survey_dfew(tmp_path)
    assert re.search(r"2  neutral +2669", str(refused.value))
    moved = sum(order.index(CLASSES[label]) != label for label in labels.values())
    if keep == 1:
        assert moved == (7358 if order == PERMUTED else 4067)


def test_two_classes_exchanged_are_found_though_some_videos_were_removed() -> None:
    known = known_datasets()["dfew"]
    published = [known.counts[name] for name in known.classes]
    for lost in (0, 1, 50):
        kept = dict(enumerate(published))
        kept[0] -= lost
        assert find_order(kept, Path("lists"), known) == tuple(range(7))
        for a, b in combinations(range(7), 2):
            exchanged = kept | {a: kept[b], b: kept[a]}
            with pytest.raises(RefusedError, match="in another order"):
                find_order(exchanged, Path("lists"), known)


def test_doubts_are_the_likelihood_ratio_to_the_best_of_all_orders() -> None:
    published = np.array([244, 189, 267, 14, 90], np.float64)
    found = np.array([20, 25, 31, 4, 9], np.float64)

    def logarithm(order: tuple[int, ...]) -> float:
        shares = published[[*order]] / published.sum()
        return float(found @ np.log(shares / (found / found.sum())))

    lacking = 1 - found.sum() / published.sum()
    best = max(map(logarithm, permutations(range(5)))) / lacking
    spread = max(1.0, -2 * best / 4)
    for order in ((0, 1, 2, 3, 4), (3, 1, 2, 0, 4)):
        shown = [int(count) for count in published[[*order]]]
        doubt = _doubts([*map(int, found)], [shown])
        np.testing.assert_allclose(doubt, (best - logarithm(order) / lacking) / spread, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(7, 11697),
    taken=st.sampled_from(["at random", "in proportion", "as many of each"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_some_of_the_videos_are_read_however_many_they_are(
    size: int, taken: str, seed: int
) -> None:
    known = known_datasets()["dfew"]
    published = np.array([known.counts[name] for name in known.classes])
    kept = np.minimum(published, size // 7)
    if taken == "at random":
        kept = np.random.default_rng(seed).multivariate_hypergeometric(published, size)
    elif taken == "in proportion":
        kept = published * size // published.sum()
    assert find_order(dict(enumerate(kept.tolist())), Path("lists"), known) == tuple(range(7))


@pytest.mark.parametrize("share", [0.97, 0.9, 0.5])
def test_two_classes_of_like_size_exchanged_are_found_in_half_of_the_videos(share: float) -> None:
    known = known_datasets()["dfew"]
    kept = [round(share * known.counts[name]) for name in known.classes]
    kept[0], kept[2] = kept[2], kept[0]
    with pytest.raises(RefusedError, match="in another order"):
        find_order(dict(enumerate(kept)), Path("lists"), known)


@pytest.mark.parametrize("wrapper", ["2023", "1/DFEW", "dataset_2024"])
def test_wrappers_with_numbers_are_neither_videos_nor_folds(tmp_path: Path, wrapper: str) -> None:
    add_lists(tmp_path / wrapper, "{part}.csv")
    add_clips(tmp_path / wrapper, "Clip/clip_224x224")
    expect_the_known_set(tmp_path)
    assert [fold.name for fold in survey_dfew(tmp_path).folds] == ["1"]


@pytest.mark.parametrize(
    ("layout", "fold"),
    [
        ("fold-3/{part}.csv", "3"),
        ("fold 3/{part}.csv", "3"),
        ("fd3/{part}.csv", "3"),
        ("DFEW_set_3/{part}.csv", "3"),
        ("{part}_set-3.csv", "3"),
        ("{part}_3.csv", "3"),
        ("5fold/{part}-3.csv", "3"),
        ("cv3_{part}.csv", "3"),
        ("set_1/set_3/{part}.csv", "3"),
        ("data_set_2/{part}.csv", "1"),
        ("face_set_3/{part}.csv", "1"),
        ("split2023/{part}.csv", "1"),
        ("{part}_80.csv", "1"),
        ("{part}_16f.csv", "1"),
        ("f3_{part}.csv", "1"),
    ],
)
def test_only_the_number_of_a_fold_is_read(tmp_path: Path, layout: str, fold: str) -> None:
    add_lists(tmp_path, layout)
    add_clips(tmp_path, "Clip/clip_224x224")
    expect_the_known_set(tmp_path)
    survey = survey_dfew(tmp_path)
    assert [found.name for found in survey.folds] == [fold]
    unread = [note for note in survey.notes if "no number in its name is read as" in note]
    assert len(unread) == (layout in ("{part}_80.csv", "f3_{part}.csv"))


@pytest.mark.parametrize("folder", [".", "lists", "EmoLabel_DataSplit"])
def test_lists_in_folders_that_are_numbers_are_found_from_the_root(
    tmp_path: Path, folder: str
) -> None:
    for n in (1, 2):
        add_lists(tmp_path, f"{folder}/{n}/{{part}}.txt", peer)
    add_clips(tmp_path, "my_frames")
    expect_the_known_set(tmp_path)
    assert [found.name for found in survey_dfew(tmp_path).folds] == ["1", "2"]


@pytest.mark.parametrize("folder", ["set_3", "Fold 3", "3", "DFEW", "DFEW/2023"])
def test_the_folder_that_is_named_may_be_that_of_a_fold(tmp_path: Path, folder: str) -> None:
    add_lists(tmp_path / "lists" / folder, "{part}.csv")
    add_clips(tmp_path / "root", "Clip/clip_224x224")
    survey = survey_dfew(tmp_path / "root", tmp_path / "lists" / folder.partition("/")[0])
    assert [fold.name for fold in survey.folds] == ["3" if "3" in folder[:6] else "1"]


@pytest.mark.parametrize("layout", ["{part}_{n}.csv", "set {n}/{part}.csv", "{n}/{part}.csv"])
def test_several_folds_are_kept_apart(tmp_path: Path, layout: str) -> None:
    for n in range(1, 6):
        add_lists(tmp_path / "lists", layout.format(n=n, part="{part}"))
    add_clips(tmp_path / "root", "Clip/clip_224x224")
    survey = survey_dfew(tmp_path / "root", tmp_path / "lists")
    assert [fold.name for fold in survey.folds] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("label,video_name\n1,7\n", r"set_2.csv: the first column is label; expected 'video_name"),
        (
            "/data/MAFW/faces/00009 20 1\n",
            r"set_2.csv:1: .* of another data set, mafw, by its path",
        ),
    ],
)
def test_rows_of_another_order_or_data_set_are_refused(
    tmp_path: Path, row: str, message: str
) -> None:
    add_lists(tmp_path)
    add_lists(tmp_path, OFFICIAL.replace("1.csv", "2.csv"), lambda ids: row)
    add_clips(tmp_path, "Clip/clip_224x224")
    with pytest.raises(RefusedError, match=message):
        survey_dfew(tmp_path)


def test_names_of_the_classes_are_read_in_place_of_numbers(tmp_path: Path) -> None:
    add_lists(
        tmp_path,
        rows=lambda ids: "video_name,label\n" + "".join(f"{i},{CLASSES[LABELS[i]]}\n" for i in ids),
    )
    add_clips(tmp_path, "Clip/clip_224x224")
    expect_the_known_set(tmp_path)


@pytest.mark.parametrize("name", ["dfew", "mafw"])
def test_an_order_that_the_counts_do_not_prove_is_noted(name: str) -> None:
    known = known_datasets()[name]
    numbers = [k for k, one in enumerate(known.classes) for _ in range(known.counts[one])]

    def note(labels: list[int]) -> tuple[str, ...]:
        rows = {f"{n}": Row(f"{n}", str(k + 1), "here") for n, k in enumerate(labels)}
        return order_note(rows, {f"{n}": k for n, k in enumerate(labels)}, known)

    assert note(numbers) == ()
    for few in (numbers[::5], [k for k in numbers if k % 2 or k == 0], numbers[:1] * 99):
        what = f"read as 1 {known.classes[0]}"
        assert re.search(rf"^{len(few)} videos are too few, .* {what}\b", note(few)[0])
    assert order_note({"1": Row("1", "fear", "here")}, {"1": 0}, known) == ()


def test_counts_that_fit_no_order_are_the_users_own_choice(tmp_path: Path) -> None:
    rows = [f"clips/{n:05d} 16 {n % 7}\n" for n in range(700)]
    write(tmp_path / "DFEW_set_1_train.txt", "".join(rows[::2]))
    write(tmp_path / "DFEW_set_1_test.txt", "".join(rows[1::2]))
    add_frames(tmp_path / "jpg_256/00000", count=1)
    assert survey_dfew(tmp_path).labels["00008"] == 1


def test_every_folder_is_scanned_once_and_of_the_frames_only_those_that_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_lists(tmp_path)
    add_clips(tmp_path, "Clip/clip_224x224")
    add_clips(tmp_path, "Clip/jpg_256")
    scanned: list[str] = []
    scandir = os.scandir

    def noted(path: str) -> object:
        scanned.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", noted)
    survey_dfew(tmp_path)
    clips = [path for path in scanned if re.search(r"\d{5}$", path)]
    assert sorted(clips) == [str(tmp_path / f"Clip/clip_224x224/{i:05d}") for i in sorted(LABELS)]
    assert len(set(scanned)) == len(scanned)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("D:/00001 66 0 7 0.5 0.5 0.5 0.5 0.5 0.5\n", r"00001 has other votes in .*set_1.csv:1"),
        ("D:/00001 66 0 0 0 0 0 0 0 0\n", r"set_2.csv:1: the largest vote of video 00001 is 0"),
    ],
)
def test_votes_that_contradict_themselves_are_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    rows = voted(0)
    add_lists(tmp_path, rows=rows if "other" in message else peer)
    add_lists(
        tmp_path,
        OFFICIAL.replace("1.csv", "2.csv"),
        lambda ids: "".join(
            line if n == 1 else row for n, row in zip(ids, rows(ids).splitlines(True), strict=True)
        ),
    )
    with pytest.raises(RefusedError, match=message):
        survey_dfew(tmp_path)
