"""FERV39k trees: lists without a header, labels in two orders, ids that need their folders."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.datasets.ferv39k import survey_ferv39k
from support.trees import add_frames, write

WORDS = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
ALPHABETICAL = sorted(WORDS)
SCENES = ("Crime", "Daily Life")
IDS = [f"{scene}/{word}/0063" for scene in SCENES for word in WORDS]
TEST = IDS[:7]
OFFICIAL = "4_setups/All_scenes/{part}_All.csv"

Rows = Callable[[Iterable[str]], str]


def official(ids: Iterable[str]) -> str:
    return "".join(f"{i} {i.split('/')[1]}\n" for i in ids)


def numbered(order: Iterable[str], base: int = 0) -> Rows:
    known = [*order]
    return lambda ids: "".join(
        f"/data/2_ClipsforFaceCrop/{i} 20 {known.index(i.split('/')[1]) + base}\n" for i in ids
    )


def add_set(root: Path, layout: str = OFFICIAL, rows: Rows = official) -> None:
    write(root / layout.format(part="train"), rows(IDS[7:]))
    write(root / layout.format(part="test"), rows(TEST))


def add_clips(root: Path, name: str = "2_ClipsforFaceCrop", ids: Iterable[str] = IDS) -> None:
    for video_id in ids:
        add_frames(root / name / video_id, count=2)


def expect_the_known_set(root: Path) -> None:
    survey = survey_ferv39k(root)
    assert survey.labels == {i: WORDS.index(i.split("/")[1]) for i in sorted(IDS)}
    assert survey.folds[0].test == tuple(TEST)
    assert len(survey.video_list().videos) == len(IDS)
    for video in survey.video_list().videos:
        assert video.path.parts[-3:] == tuple(video.id.split("/"))


@pytest.mark.parametrize(
    "layout",
    [OFFICIAL, "All_scenes/{part}_All.csv", "annotation/FERV39K_{part}.txt", "ferv39k/{part}.csv"],
)
@pytest.mark.parametrize(
    "rows",
    [official, numbered(WORDS), numbered(ALPHABETICAL), numbered(WORDS, 1)],
    ids=["words", "DFEW's order", "alphabetical", "from 1"],
)
def test_every_order_of_labels_and_every_place_of_lists_is_read(
    tmp_path: Path, layout: str, rows: Rows
) -> None:
    add_set(tmp_path, layout, rows)
    add_clips(tmp_path)
    expect_the_known_set(tmp_path)


def test_the_first_row_is_a_video_and_no_header(tmp_path: Path) -> None:
    add_set(tmp_path)
    add_clips(tmp_path)
    assert "Crime/Happy/0063" in survey_ferv39k(tmp_path).folds[0].test


@pytest.mark.parametrize(
    "names",
    [
        ("2_ClipsforFaceCrop/2_ClipsforFaceCrop",),
        ("2_ClipsforFaceCrop-001", "2_ClipsforFaceCrop-002"),
        ("2_ClipsforFaceCrop-001/2_ClipsforFaceCrop", "2_ClipsforFaceCrop-002/2_ClipsforFaceCrop"),
        ("FERV39k/2_ClipsforFaceCrop",),
        (".",),
    ],
)
def test_doubled_packed_and_wrapped_folders_are_found(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    add_set(tmp_path)
    for n, name in enumerate(names):
        add_clips(tmp_path, name, IDS[n :: len(names)])
    expect_the_known_set(tmp_path)


def test_folders_in_another_case_than_the_lists_are_found_and_noted(tmp_path: Path) -> None:
    add_set(tmp_path)
    add_clips(tmp_path, ids=[video_id.lower() for video_id in IDS])
    survey = survey_ferv39k(tmp_path)
    assert [*survey.labels] == sorted(IDS)
    sources = {video.id: video.source for video in survey.video_list().videos}
    assert sources == {i: f"2_ClipsforFaceCrop/{i.lower()}/" for i in sorted(IDS)}
    assert re.search(r"^14 videos .* such as [a-z /]+/0063 for [A-Z]", survey.notes[0])
    add_clips(tmp_path, ids=IDS[:1])
    with pytest.raises(RefusedError, match=r"(?i)/crime/happy/0063 share an id, (?-i:Crime/Happy)"):
        survey_ferv39k(tmp_path)
    write(tmp_path / OFFICIAL.format(part="test"), official([IDS[-1].lower(), *TEST]))
    with pytest.raises(
        RefusedError, match=r"'Daily Life/Fear/0063' .* 'daily .* one video spelled"
    ):
        survey_ferv39k(tmp_path)


def test_a_count_of_frames_between_commas_is_refused_with_the_reason(tmp_path: Path) -> None:
    add_set(tmp_path, rows=lambda ids: "".join(f"{i},20,0\n" for i in ids))
    add_clips(tmp_path)
    with pytest.raises(RefusedError, match=r"test_All.csv:1: .*; between commas only path and"):
        survey_ferv39k(tmp_path)


def test_a_label_that_disagrees_with_its_path_is_refused_with_three_examples(
    tmp_path: Path,
) -> None:
    add_set(tmp_path, rows=lambda ids: official(ids).replace(" Happy\n", " Sad\n"))
    add_clips(tmp_path)
    with pytest.raises(RefusedError, match=r"2 labels disagree .*Crime/Happy/0063 has label Sad"):
        survey_ferv39k(tmp_path)
    first, *rest = numbered(WORDS)(IDS[7:]).splitlines(keepends=True)
    lists = tmp_path / "4_setups/All_scenes"
    write(lists / "train_All.csv", "".join([first.replace(" 0\n", " 3\n"), *rest]))
    write(lists / "test_All.csv", numbered(WORDS)(TEST))
    with pytest.raises(RefusedError, match=r"train_All.csv:1: .*Daily Life/Happy/0063 has label 3"):
        survey_ferv39k(tmp_path)


def test_numbers_repeat_in_other_folders_and_are_no_ids(tmp_path: Path) -> None:
    add_set(tmp_path)
    add_clips(tmp_path)
    ids = [*survey_ferv39k(tmp_path).labels]
    assert len({video_id.split("/")[2] for video_id in ids}) == 1
    assert len({*ids}) == len(IDS)


def test_lists_of_single_scenes_are_read_on_request_only(tmp_path: Path) -> None:
    add_set(tmp_path)
    for scene in SCENES:
        ids = [i for i in IDS if i.startswith(scene)]
        write(tmp_path / f"4_setups/22_scenes/{scene}/train_{scene}.csv", official(ids[1:]))
        write(tmp_path / f"4_setups/22_scenes/{scene}/test_{scene}.csv", official(ids[:1]))
    add_clips(tmp_path)
    expect_the_known_set(tmp_path)
    one = survey_ferv39k(tmp_path, tmp_path / "4_setups/22_scenes/Crime")
    assert one.folds[0].test == ("Crime/Happy/0063",)
    for part in ("train", "test"):
        (tmp_path / OFFICIAL.format(part=part)).unlink()
    with pytest.raises(RefusedError, match=r"both are the .* list of set 1; .*--annotation"):
        survey_ferv39k(tmp_path)


def test_missing_and_short_videos_are_counted(tmp_path: Path) -> None:
    add_set(tmp_path)
    add_clips(tmp_path, ids=IDS[1:])
    add_frames(tmp_path / "2_ClipsforFaceCrop" / IDS[-1], count=16)
    account = survey_ferv39k(tmp_path).account()
    assert account.missing == (IDS[0],)
    assert sum(count.listed for count in account.counts) == 14
    assert sum(count.short or 0 for count in account.counts) == 12
    message = f"1 of 14 listed videos .*{re.escape(IDS[0])}"
    with pytest.raises(RefusedError, match=message):
        survey_ferv39k(tmp_path).video_list()
