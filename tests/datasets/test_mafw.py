"""MAFW trees: five folds, captions in GBK, and labels numbered in three orders."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.datasets.check import check_survey
from pipeline.datasets.known import known_datasets
from pipeline.datasets.labels import find_order
from pipeline.datasets.mafw import survey_mafw
from pipeline.datasets.tree import Place
from support.trees import add_frames, add_video, write

KNOWN = known_datasets()["mafw"]
LABELS = {3700 + n: name for n, name in enumerate(KNOWN.classes)} | {9999: "anger"}
TEST = (3700, 3705)
HERE = Place(Path("here"))

Rows = Callable[[Iterable[int]], str | bytes]


def official(ids: Iterable[int]) -> str:
    return "".join(f"{i:05d}.mp4 {LABELS[i]}\n" for i in ids)


def captioned(ids: Iterable[int]) -> bytes:
    return "".join(
        f"{i:05d}.mp4\t{LABELS[i]}\t<br>一个男人, 眉头紧蹙\t<br>A man, 2 of them.\n" for i in ids
    ).encode("gbk")


def with_commas(caption: str) -> Rows:
    return lambda ids: (
        "name,label,caption\n" + "".join(f"{i:05d}.mp4,{LABELS[i]},{caption}\n" for i in ids)
    )


UNQUOTED = with_commas("一个男人, 眉头紧蹙,A man, 2 of them, sad, ")
QUOTED = with_commas('"一个男人, 眉头紧蹙","A man says ""no"", 3, sad"')


def add_lists(
    root: Path, layout: str = "no_caption/set_1/{part}.txt", rows: Rows = official
) -> None:
    write(root / layout.format(part="train"), rows([i for i in LABELS if i not in TEST]))
    write(root / layout.format(part="test"), rows(TEST))


def add_clips(root: Path, name: str = "data/faces") -> None:
    for i in LABELS:
        add_frames(root / name / f"{i:05d}", count=2, suffix=".png")


def expect_the_known_set(root: Path) -> str:
    survey = survey_mafw(root)
    assert survey.labels == {f"{i:05d}": KNOWN.classes.index(name) for i, name in LABELS.items()}
    assert survey.folds[0].test == tuple(f"{i:05d}" for i in TEST)
    return survey.video_list().source


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ("no_caption/set_1/{part}.txt", official),
        ("split/single/no_caption/set_1/{part}.txt", official),
        ("with_caption/set_1/{part}.txt", captioned),
        ("with_caption/set_1/{part}.csv", UNQUOTED),
        ("with_caption/set_1/{part}.csv", QUOTED),
        ("with_caption/set_1/{part}.csv", with_commas('a 5" screen; sad, works 24/7, 24/7, 80.5')),
        ("with_caption/set_1/{part}.csv", with_commas("An, angry man")),
        ("annotation/MAFW_set_1_{part}_faces.txt", official),
    ],
)
def test_lists_with_and_without_captions_are_read(tmp_path: Path, layout: str, rows: Rows) -> None:
    add_lists(tmp_path, layout, rows)
    add_clips(tmp_path)
    assert expect_the_known_set(tmp_path) == "data/faces"


@pytest.mark.parametrize(
    "row",
    [
        "03700.mp4,anger,disgust",
        "03700.mp4,anger,anger_disgust,A man",
        "03700.mp4,anger,disgust&sadness",
        "03700.mp4,anger,fear sadness",
        "03700.mp4,anger,train",
        "03700.mp4,anger,-1",
        "03700.mp4,anger,,AX",
        "03700.mp4,anger,an,A man",
        "03700.mp4;anger;disgust;A man",
        "0 03700 anger",
        "03700.mp4,20,3",
        "1,anger,03700.mp4,A man",
        "A man,03700.mp4,anger",
        "03700.mp4\t20\t3",
    ],
)
def test_columns_that_are_no_captions_are_refused(tmp_path: Path, row: str) -> None:
    add_lists(tmp_path)
    write(tmp_path / "no_caption/set_1/test.txt", row)
    add_clips(tmp_path)
    message = r"test.txt:1: .* is not a row; expected .*a caption of"
    is_split = re.search(r"[,;\t]", row)
    with pytest.raises(RefusedError, match=message + (".*: remove the other" if is_split else "")):
        survey_mafw(tmp_path)


def test_lists_without_captions_come_first_and_faces_before_whole_frames(tmp_path: Path) -> None:
    add_lists(tmp_path)
    add_lists(tmp_path, "with_caption/set_1/{part}.txt", captioned)
    add_clips(tmp_path, "data/frames")
    add_clips(tmp_path, "data/faces")
    assert expect_the_known_set(tmp_path) == "data/faces"


def test_lists_of_dfew_beside_them_are_left_alone(tmp_path: Path) -> None:
    add_lists(tmp_path, "annotation/MAFW_set_1_{part}.txt")
    for part in ("train", "test"):
        write(tmp_path / f"annotation/DFEW_set_1_{part}.txt", "data/dfew/00007 20 6\n")
        write(tmp_path / f"annotation/DFEW_set_2_{part}.txt", "data/dfew/00008 20 6\n")
    for i in LABELS:
        add_video(tmp_path / f"clips/{i:05d}.mp4")
    assert expect_the_known_set(tmp_path) == "clips"


def test_compound_expressions_are_refused_with_the_line(tmp_path: Path) -> None:
    add_lists(tmp_path, rows=lambda ids: official(ids).replace("disgust", "anger_disgust"))
    add_clips(tmp_path)
    with pytest.raises(
        RefusedError, match=r"train.txt:1: label 'anger_disgust'; expected .*; lists of comp"
    ):
        survey_mafw(tmp_path)


@pytest.mark.parametrize("annotation", [None, ".", "Train & Test Set"])
def test_the_split_as_distributed_is_read_without_its_compound_expressions(
    tmp_path: Path, annotation: str | None
) -> None:
    whole = "Train & Test Set/{}/{}/set_1/{{part}}.txt"
    add_lists(tmp_path, whole.format("single", "no_caption"))
    add_lists(tmp_path, whole.format("single", "with_caption"), captioned)
    for caption in ("no_caption", "with_caption"):
        compound = whole.format("compound", caption)
        add_lists(tmp_path, compound, lambda ids: official(ids).replace("anger", "anger_fear"))
    add_clips(tmp_path)
    survey = survey_mafw(tmp_path, None if annotation is None else tmp_path / annotation)
    assert survey.lists == tmp_path / "Train & Test Set/single/no_caption/set_1"
    assert survey.labels["09999"] == KNOWN.classes.index("anger")
    assert re.search("^4 compound lists were left out, such as .*compound/no_c", survey.notes[0])


ORDERS = [KNOWN.classes, *KNOWN.orders]


@pytest.mark.parametrize("order", ORDERS, ids=["anger first", "happiness first", "alphabetical"])
@pytest.mark.parametrize("base", [0, 1])
def test_three_orders_of_numbers_are_told_apart_by_the_counts(
    tmp_path: Path, order: tuple[str, ...], base: int
) -> None:
    names = [name for name in KNOWN.classes for _ in range(KNOWN.counts[name])]
    lines = [f"data/{n:05d} 30 {order.index(name) + base}\n" for n, name in enumerate(names)]
    write(tmp_path / "MAFW_set_3_train.txt", "".join(lines[1:]))
    write(tmp_path / "MAFW_set_3_test.txt", lines[0])
    add_frames(tmp_path / "faces/00000", count=1)
    labels = survey_mafw(tmp_path).labels
    assert [KNOWN.classes[label] for label in labels.values()] == names


@pytest.mark.parametrize("order", ORDERS, ids=["anger first", "happiness first", "alphabetical"])
def test_any_two_classes_exchanged_in_all_videos_are_refused(order: tuple[str, ...]) -> None:
    exchanged = 0
    for a, b in combinations(range(11), 2):
        numbered = [*order]
        numbered[a], numbered[b] = order[b], order[a]
        if tuple(numbered) not in ORDERS:
            counts = {k: KNOWN.counts[name] for k, name in enumerate(numbered)}
            with pytest.raises(RefusedError, match=r"in another order than MAFW"):
                find_order(counts, Path("lists"), KNOWN)
            exchanged += 1
    assert exchanged == 55


def test_numbers_in_no_known_order_and_few_numbers_are_refused(tmp_path: Path) -> None:
    names = [name for name in KNOWN.classes for _ in range(KNOWN.counts[name])]
    order = KNOWN.classes[::-1]
    lines = [f"data/{n:05d} 30 {order.index(name)}\n" for n, name in enumerate(names)]
    write(tmp_path / "MAFW_set_1_train.txt", "".join(lines[1:]))
    write(tmp_path / "MAFW_set_1_test.txt", lines[0])
    add_frames(tmp_path / "faces/00000", count=1)
    with pytest.raises(RefusedError, match=r"in another order than MAFW: .*\nnumber +class"):
        survey_mafw(tmp_path)
    write(tmp_path / "MAFW_set_1_train.txt", "".join(lines[1:-1:1500]) + lines[-1])
    with pytest.raises(RefusedError, match=r"in 3 orders; \d+ videos are too few"):
        survey_mafw(tmp_path)


def test_a_fold_is_a_published_one_if_its_parts_and_classes_are_as_large(tmp_path: Path) -> None:
    known = KNOWN.folds["3"]
    tested = {name: KNOWN.part_counts[name] for name in KNOWN.classes}
    names = [name for name, count in tested.items() for _ in range(count)]
    names += [name for name in tested for _ in range(KNOWN.counts[name] - tested[name])]
    rows = [f"{n:05d}.mp4 {name}\n" for n, name in enumerate(names)]
    write(tmp_path / "set_3/test.txt", "".join(rows[: known[1]]))
    write(tmp_path / "set_3/train.txt", "".join(rows[known[1] :]))
    add_frames(tmp_path / "faces/00000", count=1)
    survey = survey_mafw(tmp_path)
    complete = replace(
        survey, found=replace(survey.found, places=dict.fromkeys(survey.labels, HERE))
    )
    report = check_survey(complete)
    assert report.protocol == "in part: 1 of the 5 published folds are here"
    assert report.classes_of_part[0].name == "anger, fold 3, test"
    assert report.classes_of_part[0].published == report.classes_of_part[0].listed == 278
    labels = {video_id: 0 for video_id in survey.labels}
    assert check_survey(replace(complete, labels=labels)).protocol == (
        "none: anger has 9172 videos, published are 1390"
    )
    add_lists(tmp_path / "other")
    add_clips(tmp_path / "other")
    assert check_survey(survey_mafw(tmp_path / "other")).protocol == (
        "none: fold 1, train has 10 videos, published are 7333"
    )
