"""Data sets whose files and folders say class, part and subject: CAER, AFEW, CREMA-D and others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.errors import RefusedError
from pipeline.datasets.afew import survey_afew
from pipeline.datasets.caer import survey_caer
from pipeline.datasets.check import check_survey
from pipeline.datasets.crema_d import survey_crema_d
from pipeline.datasets.enterface import survey_enterface
from pipeline.datasets.folders import survey_folders
from pipeline.datasets.named import part_of
from pipeline.datasets.ravdess import CODES, survey_ravdess
from pipeline.datasets.read import survey_dataset, videos_of
from pipeline.datasets.survey import Survey
from support.trees import add_frames, add_video, write

CAER = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def by_class(survey: Survey) -> dict[str, str]:
    return {video_id: survey.classes[label] for video_id, label in survey.labels.items()}


def test_caer_trains_on_train_and_keeps_validation_apart(tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        for word in CAER:
            add_video(tmp_path / part / word / "0001.avi")
    survey = survey_caer(tmp_path)
    assert len(survey.labels) == 21  # numbers repeat in every folder
    assert by_class(survey)["test/Happy/0001"] == "happiness"
    assert {i.split("/")[0] for i in survey.folds[0].train} == {"train"}
    assert {i.split("/")[0] for i in survey.folds[0].test} == {"test"}
    assert {i.split("/")[0] for i in survey.subsets["validation"]} == {"validation"}
    assert survey.video_list().videos[0].path.suffix == ".avi"
    add_video(tmp_path / "train/anger/0001.avi")
    with pytest.raises(RefusedError, match=r"'train/Anger/0001' .* are one video spelled in two"):
        survey_caer(tmp_path)


def test_afew_is_tested_on_validation_in_whatever_folders(tmp_path: Path) -> None:
    for part in ("Train_AFEW", "Val_AFEW"):
        for word in ("Angry", "Happy", "Sad"):
            add_frames(tmp_path / "AFEW" / part / word / "000046280", suffix=".png")
    survey = survey_afew(tmp_path)
    assert survey.folds[0].test[0].startswith("validation/")
    assert set(by_class(survey).values()) == {"anger", "happiness", "sadness"}
    assert survey.notes[0].startswith("clips with the number of another: train/Angry/000")
    add_frames(tmp_path / "Test" / "Sad" / "000000900 (1)")
    add_frames(tmp_path / "Test" / "Sad" / "000000900")
    survey = survey_afew(tmp_path)
    assert survey.subsets == {"test": {"test/Sad/000000900", "test/Sad/000000900 (1)"}}
    assert "test/Sad/000000900 and test/Sad/000000900 (1)" in survey.notes[0]
    shutil.rmtree(tmp_path / "Test")
    with pytest.raises(RefusedError, match="3 train, 0 test videos"):
        survey_caer(tmp_path)


def test_folders_that_are_no_class_are_refused_and_empty_ones_missing(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for word in ("Angry", "Happy"):
            add_frames(tmp_path / part / word / "01")
    (tmp_path / "train/Angry/02").mkdir()
    survey = survey_afew(tmp_path)
    assert survey.account().missing == ("train/Angry/02",)
    with pytest.raises(RefusedError, match="1 of 5 listed videos have no frames"):
        survey.video_list()
    add_frames(tmp_path / "train/Bored/01")
    with pytest.raises(RefusedError, match=r"'Bored' of train/Bored/01 names none of the classes"):
        survey_afew(tmp_path)


def add_crema_d(root: Path, folder: str, suffix: str) -> None:
    for actor in range(1001, 1008):
        for word in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            add_video(root / folder / f"{actor}_DFA_{word}_XX{suffix}")


@pytest.mark.parametrize(
    ("folder", "suffix"), [("VideoFlash", ".flv"), ("mp4", ".mp4"), (".", ".avi")]
)
def test_crema_d_has_folds_by_actor(tmp_path: Path, folder: str, suffix: str) -> None:
    add_crema_d(tmp_path, folder, suffix)
    survey = survey_crema_d(tmp_path)
    assert by_class(survey)["1003_DFA_HAP_XX"] == "happiness"
    assert survey.subjects["1003_DFA_HAP_XX"] == "1003"
    assert [len(fold.test) for fold in survey.folds] == [12, 12, 6, 6, 6]
    for fold in survey.folds:
        people = [{survey.subjects[i] for i in part} for part in (fold.train, fold.test)]
        assert not people[0] & people[1]
    assert {i for fold in survey.folds for i in fold.test} == set(survey.labels)


def test_crema_d_in_two_formats_is_a_question(tmp_path: Path) -> None:
    add_crema_d(tmp_path, "VideoFlash", ".flv")
    add_crema_d(tmp_path, "VideoMP4", ".mp4")
    with pytest.raises(RefusedError, match=r"VideoFlash and VideoMP4 both hold .*--source"):
        survey_crema_d(tmp_path)
    assert survey_crema_d(tmp_path, "VideoMP4").found.name == "VideoMP4"


@pytest.mark.parametrize(
    ("survey", "path", "message"),
    [
        (survey_crema_d, "HAP/1003_DFA_ANG_XX", r"another class .*/HAP/.* is anger by"),
        (survey_crema_d, "1005/1003_DFA_ANG_XX", r"another subject .* is 1003 by its name"),
        (survey_ravdess, "Actor_05/01-01-03-01-01-02-06", r"another subject .* is 06 by"),
        (
            survey_enterface,
            "subject 1/anger/sentence 3/s2_an_3",
            r"another subject .* is 2 by",
        ),
    ],
)
def test_folders_that_say_another_class_or_person_than_the_name_are_refused(
    tmp_path: Path, survey: Callable[[Path], Survey], path: str, message: str
) -> None:
    add_video(tmp_path / f"{path}.avi")
    with pytest.raises(RefusedError, match=message):
        survey(tmp_path)


def test_folders_that_say_the_class_and_the_person_of_the_name_are_read(tmp_path: Path) -> None:
    for path in ("ANG/1003/1003_DFA_ANG_XX", "hap/1004/1004_DFA_HAP_XX", "2020/1005_DFA_SAD_XX"):
        add_video(tmp_path / "crema" / f"{path}.avi")
    assert len(survey_crema_d(tmp_path / "crema").labels) == 3
    add_video(tmp_path / "1080/Video_Speech_Actor_05/Actor_05/01-01-03-01-01-02-05.mp4")
    assert [*survey_ravdess(tmp_path).subjects.values()] == ["05"]


def add_ravdess(root: Path, modality: str, folder: str = "Actor_{:02d}") -> None:
    for actor in range(1, 9):
        for code in CODES:
            name = f"{modality}-01-{code}-01-01-01-{actor:02d}.mp4"
            add_video(root / folder.format(actor) / name)


@pytest.mark.parametrize(
    "folder", ["Actor_{:02d}", "Video_Speech_Actor_{0:02d}/Actor_{0:02d}", "."]
)
def test_ravdess_takes_speech_once_and_has_folds_of_four_actors(
    tmp_path: Path, folder: str
) -> None:
    add_ravdess(tmp_path, "02", folder)
    add_ravdess(tmp_path, "01", folder)
    add_video(tmp_path / "Actor_01/02-02-03-01-01-01-01.mp4")  # a song
    survey = survey_ravdess(tmp_path)
    assert survey.found.ignored == ("Actor_01/02-02-03-01-01-01-01.mp4",)
    assert len(survey.labels) == 64
    assert {i[:2] for i in survey.labels} == {"01"}
    assert survey.notes[0].startswith("64 videos without sound are left out")
    assert by_class(survey)["01-01-02-01-01-01-05"] == "calm"
    tests = [{survey.subjects[i] for i in fold.test} for fold in survey.folds]
    assert tests == [{"01", "02", "03", "04"}, {"05", "06", "07", "08"}]


def test_ravdess_with_sound_only_is_read_too(tmp_path: Path) -> None:
    add_ravdess(tmp_path, "01")
    assert len(survey_ravdess(tmp_path).labels) == 64
    stray = tmp_path / "Actor_03/02-01-03-01-01-01-03.mp4"
    add_video(stray)
    survey = survey_ravdess(tmp_path)
    assert len(survey.labels) == len(survey.video_list().videos) == 64
    assert survey.notes[0].startswith("1 videos without sound are left out")
    (stray.parent / stray.name.replace("02", "01", 1)).unlink()
    survey = survey_ravdess(tmp_path)
    assert [i for i in survey.labels if i.startswith("02")] == [stray.stem]
    assert survey.notes == ("1 of 64 performances are there without sound only",)


def test_enterface_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    words = {"an": "anger", "di": "disgust", "fe": "fear", "ha": "happiness", "sa": "sadness"}
    for subject in range(1, 7):
        for code, word in words.items():
            folder = tmp_path / f"subject {subject}" / word
            # Subject 6 has no folders for sentences, subject 3 other names.
            name = f"s_{subject}_{code}_1" if subject == 3 else f"s{subject}_{code}_1"
            add_video((folder if subject == 6 else folder / "sentence 1") / f"{name}.avi")
    survey = survey_enterface(tmp_path)
    assert by_class(survey)["s3_fe_1"] == "fear"
    assert survey.subjects["s6_an_1"] == "s6"
    assert len(survey.labels) == 30
    assert [len(fold.test) for fold in survey.folds] == [10, 5, 5, 5, 5]
    (tmp_path / "subject 1/anger").rename(tmp_path / "subject 1/happiness_")
    (tmp_path / "subject 1/happiness_").rename(tmp_path / "subject 1/neutral")
    with pytest.raises(
        RefusedError, match=r"folders of 1 videos say another .*s1_an_1.avi is anger"
    ):
        survey_enterface(tmp_path)


def test_folders_of_ones_own_are_classes(tmp_path: Path) -> None:
    add_frames(tmp_path / "bored" / "a")
    add_frames(tmp_path / "bored" / "anna" / "b")
    add_video(tmp_path / "Happy" / "c 1.mp4")
    survey = survey_folders(tmp_path)
    assert survey.classes == ("happiness", "bored")
    assert by_class(survey) == {
        "Happy/c 1": "happiness",
        "bored/a": "bored",
        "bored/anna/b": "bored",
    }
    assert survey.folds == ()


def test_folders_may_be_split_and_lie_in_a_wrapper(tmp_path: Path) -> None:
    for part in ("training", "val", "test"):
        for word in ("bored", "a 10", "a 9"):
            add_frames(tmp_path / "data" / part / word / "x")
    survey = survey_folders(tmp_path)
    assert survey.classes == ("a 9", "a 10", "bored")
    assert {i.split("/")[1] for i in survey.folds[0].train} == {"training"}
    assert {i.split("/")[1] for i in survey.folds[0].test} == {"test"}
    assert len(survey.subsets["validation"]) == 3


def test_parts_may_lie_in_the_folders_of_the_classes(tmp_path: Path) -> None:
    for word in ("bored", "Happy"):
        add_video(tmp_path / word / "train" / "a.mp4")
        add_video(tmp_path / word / "test" / "b.mp4")
    survey = survey_folders(tmp_path)
    assert survey.classes == ("happiness", "bored")
    assert survey.folds[0].test == ("Happy/test/b", "bored/test/b")
    add_video(tmp_path / "bored" / "c.mp4")
    survey = survey_folders(tmp_path)
    assert survey.folds == ()
    assert survey.notes[0].startswith("Happy/test, Happy/train, bored/test, bored/train: not read")
    assert not survey.subjects
    with pytest.raises(RefusedError, match=r"nothing says which .*; Happy/test, .*: not read as a"):
        videos_of(survey)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("train/Sad/a test/Sad/b extra/Sad/c", r"test, train are parts .* there are extra: move"),
        ("train/a test/b", r"test/b is in no folder that says its class"),
        (
            "anna/Sad/a ben/Happy/b",
            r"whether anna, ben are the classes, .*, Happy, Sad: .*data init",
        ),
        ("fold1/Sad/a fold2/Sad/b", r"whether fold1, fold2 are the .*, Sad: .*with --source"),
        ("anna/Sad ben/Happy", r"whether anna, ben are the classes, .*, Happy, Sad: "),
        (
            "anna/bored/a anna/shy/1 ben/bored/b ben/shy/2",
            r"anna, ben are .*, bored, shy: .*--texts",
        ),
        ("train/anna/Sad/a train/ben/Sad/b test/anna/Sad/c", r"whether anna, ben are .*, Sad: "),
        ("anna/bored/a anna/Happy/b ben/Happy/c", r"whether anna, ben are .* in them, Happy: "),
        (
            "anna/bored/a anna/shy/b ben/bored/c ben/shy/d ben/odd/e",
            r"whether anna, ben are .* in them, bored, odd, shy: ",
        ),
        ("fold1/anna/Sad/a fold2/ben/Sad/b", r"whether fold1, fold2 are .* in them, Sad: "),
        ("fold_1/shy/a Fold2/bored/b", r"whether Fold2, fold_1 are .* what is in them: if"),
        (
            "RAF/train/Sad/a RAF/test/Sad/b CK/train/Sad/c CK/test/Sad/d",
            r"whether CK, RAF are .* in them, Sad: ",
        ),
        (
            "set1/train/shy/a set1/test/shy/b set2/train/bored/a set2/test/bored/b",
            r"whether set1, set2 are the classes",
        ),
        ("1/a 2/b Happy/c", r"folders 1, 2 are numbers, and Happy are words: call the former"),
        ("1/a/x 2/b/x", r"folders 1, 2 are numbers; say which .*--texts FILE; if .* data init"),
        ("anna/1/a anna/1/b anna/2/c ben/1/d ben/2/e", r"whether anna, ben are .* them, 1, 2: "),
        ("S1/c1/a S1/c1/b S1/c2/c S2/c1/d S2/c2/e", r"whether S1, S2 are .* in them, c1, c2: "),
        (
            "Sad/fold1/a Sad/fold2/b Happy/fold1/c Happy/fold2/d",
            r"Happy/fold1, .*Sad/fold2 say how the videos are split, where it is not read: .*init",
        ),
        (
            "Sad/anna/train/a Sad/anna/test/b Happy/ben/train/c Happy/ben/test/d",
            r"Happy/ben/test, .* say how .* move train and test above or into the folders",
        ),
    ],
)
def test_folders_at_the_top_that_are_no_classes_are_refused(
    tmp_path: Path, paths: str, message: str
) -> None:
    for path in paths.split():
        add_video(tmp_path / f"{path}.mp4")
    with pytest.raises(RefusedError, match=message):
        survey_folders(tmp_path)


@pytest.mark.parametrize(
    "paths",
    [
        "bored/s1/a bored/s2/b shy/s1/c shy/s2/d",
        "bored/001/clip bored/002/clip shy/001/clip shy/002/clip",
        "bored/001/faces/0 bored/002/faces/0 shy/001/faces/0 shy/002/faces/0",
        "level1/c1/a level1/c2/b level2/c1/c level2/c2/d",
        "bored/train/a bored/test/b shy/train/a shy/test/b",
        "bored/anna/a bored/ben/b shy/anna/c shy/cleo/d",
    ],
)
def test_folders_in_which_nothing_may_be_the_classes_are_the_classes(
    tmp_path: Path, paths: str
) -> None:
    for path in paths.split():
        add_video(tmp_path / f"{path}.mp4")
    assert survey_folders(tmp_path).classes == tuple(
        dict.fromkeys(path.split("/")[0] for path in paths.split())
    )


def test_folders_that_texts_name_are_the_classes(tmp_path: Path) -> None:
    for path in ("bored/anna", "bored/ben", "shy/anna", "shy/ben"):
        add_video(tmp_path / path / "a.mp4")
    texts = write(tmp_path / "texts.toml", "[shy]\n[bored]\n")
    assert survey_dataset("folders", tmp_path, texts=texts).classes == ("bored", "shy")
    with pytest.raises(RefusedError, match="whether bored, shy are the classes"):
        survey_dataset("folders", tmp_path)


def test_folders_of_one_name_in_those_of_several_classes_are_people(tmp_path: Path) -> None:
    for word in ("Happy", "bored"):
        for person in ("anna", "ben", "S01"):
            add_video(tmp_path / word / person / "session 2" / "a.mp4")
    add_video(tmp_path / "bored/b.mp4")
    survey = survey_dataset("folders", tmp_path, folds=3)
    assert {*survey.subjects.values()} == {"S01", "anna", "ben"}
    assert survey.notes[0].startswith("S01, anna, ben: taken for people, in folders of classes; ")
    assert not any(check_survey(survey).shared_subjects.values())
    rows = "".join(f"{i},person {n % 2}\n" for n, i in enumerate(survey.labels))
    other = write(tmp_path.with_suffix(".csv"), rows)
    survey = survey_dataset("folders", tmp_path, subjects=other)
    assert {*survey.subjects.values()} == {"person 0", "person 1"}
    for folder in ("train/Sad", "test/Sad", "train/Happy", "test/Happy"):
        for person in ("anna", "ben", "cleo"):
            add_video(tmp_path / "split" / folder / "videos" / person / "a.mp4")
    assert check_survey(survey_folders(tmp_path / "split")).shared_subjects == {"1": 3}


@pytest.mark.parametrize(
    "inner", [("videos",), ("front", "side"), ("001", "002", "003"), ("cv1",), ("Val Kilmer",)]
)
def test_folders_that_are_nobody_do_not_hinder_folds(
    tmp_path: Path, inner: tuple[str, ...]
) -> None:
    for word in ("Happy", "Sad"):
        for name in inner:
            for n in range(1 if name.isdecimal() else 4):
                add_video(tmp_path / word / name / f"{n}.mp4")
    survey = survey_dataset("folders", tmp_path, folds=3)
    assert (survey.subjects, len(survey.folds)) == ({}, 3)
    assert [("too few" in note) for note in survey.notes] == [True] * (len(inner) == 2) + [
        False
    ] * (inner == ("cv1",))


def test_people_in_two_spellings_are_refused_before_they_are_on_both_sides(tmp_path: Path) -> None:
    for n in range(1, 4):
        add_video(tmp_path / f"Happy/S0{n}/a.mp4")
        add_video(tmp_path / f"Sad/s{n}/a.mp4")
    with pytest.raises(RefusedError, match="one person spelled in two ways"):
        survey_dataset("folders", tmp_path, folds=3)


def test_folds_that_people_do_not_allow_are_refused_with_who_was_taken_for_one(
    tmp_path: Path,
) -> None:
    for word in ("Happy", "Sad"):
        for part in ("part a", "part b", "part c"):
            for n in range(3):
                add_video(tmp_path / word / part / f"{n}.mp4")
    with pytest.raises(
        RefusedError, match=r"there are 3 subjects.*part a.*taken for people.*--sub"
    ):
        survey_dataset("folders", tmp_path, folds=5)


@pytest.mark.parametrize(
    "paths",
    [
        "1/Sad/a 1/Happy/b 2/Sad/c 2/Happy/d",
        "1/train/Sad/a 1/test/Happy/b 2/train/Sad/c 2/test/Happy/d",
    ],
)
def test_people_who_are_numbers_are_not_the_classes_of_texts(tmp_path: Path, paths: str) -> None:
    for path in paths.split():
        add_video(tmp_path / f"root/{path}.mp4")
    texts = write(tmp_path / "texts.toml", "[sadness]\n[happiness]\n")
    with pytest.raises(RefusedError, match=r"whether 1, 2 are the classes, or what is in them, "):
        survey_dataset("folders", tmp_path / "root", texts=texts)


@pytest.mark.parametrize("base", [0, 1])
def test_folders_that_are_numbers_are_the_classes_of_texts_in_their_order(
    tmp_path: Path, base: int
) -> None:
    add_video(tmp_path / f"{base}/a.mp4")
    add_video(tmp_path / f"{base + 1}/b.mp4")
    texts = write(tmp_path / "texts.toml", "[shy]\n[bored]\n")
    survey = survey_dataset("folders", tmp_path, texts=texts)
    assert by_class(survey) == {f"{base}/a": "shy", f"{base + 1}/b": "bored"}
    write(texts, f"[{1 - base}]\n[{2 - base}]\n")
    with pytest.raises(RefusedError, match=rf"count from {base}, .* label {base} .*\[{1 - base}\]"):
        survey_dataset("folders", tmp_path, texts=texts)


def test_a_folder_of_images_with_a_video_in_it_is_a_question(tmp_path: Path) -> None:
    add_frames(tmp_path / "bored" / "a")
    add_video(tmp_path / "bored" / "a" / "clip.mp4")
    with pytest.raises(RefusedError, match=r"bored/a holds images, .* video bored/a/clip in it"):
        survey_folders(tmp_path)


def test_an_image_beside_videos_is_not_read_and_noted(tmp_path: Path) -> None:
    for word in ("bored", "shy"):
        add_video(tmp_path / word / "v1.mp4")
        add_video(tmp_path / word / "v2.mp4")
    add_frames(tmp_path / "bored", count=2)
    survey = survey_folders(tmp_path)
    assert [*survey.labels] == ["bored/v1", "bored/v2", "shy/v1", "shy/v2"]
    assert survey.notes == ("images beside the videos in bored are not read",)
    add_frames(tmp_path / "bored", count=3)
    with pytest.raises(RefusedError, match=r"bored holds images, and there is a video bored/v1 in"):
        survey_folders(tmp_path)


def test_links_out_of_the_root_are_refused_and_links_in_a_circle_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    add_frames(root / "bored" / "a")
    add_frames(root / "shy" / "b")
    (root / "shy" / "again").symlink_to(root / "bored")
    (root / "bored" / "back").symlink_to(root / "shy")
    assert by_class(survey_folders(root)) == {"bored/a": "bored", "shy/b": "shy"}
    add_frames(tmp_path / "elsewhere" / "c")
    for link, target in (("proud", "elsewhere"), ("shy/b/4.jpg", "elsewhere/c/1.jpg")):
        (root / link).symlink_to(tmp_path / target)
        with pytest.raises(RefusedError, match=f"{link}: a link to .*{target}, which is not in"):
            survey_folders(root)
        (root / link).unlink()


def test_two_folders_of_one_class_and_videos_in_none_are_refused(tmp_path: Path) -> None:
    add_frames(tmp_path / "happy" / "a")
    add_frames(tmp_path / "Happiness" / "b")
    with pytest.raises(RefusedError, match="Happiness and happy are one class, happiness: put"):
        survey_folders(tmp_path)
    texts = write(tmp_path / "texts.toml", "[happiness]\n[boredm]\n")
    shutil.move(tmp_path / "Happiness", tmp_path / "bored")
    with pytest.raises(
        RefusedError, match=r"\[boredm\] is no class of folders, .*bored, happiness;"
    ):
        survey_dataset("folders", tmp_path, texts=texts)
    add_frames(tmp_path / "Bored" / "c")
    with pytest.raises(
        RefusedError, match=r"'Bored' \(1 videos, such as Bored/c\) and 'bored' \(1"
    ):
        survey_folders(tmp_path)
    add_video(tmp_path / "c.mp4")
    with pytest.raises(RefusedError, match="c is in no folder that says its class"):
        survey_folders(tmp_path)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        *(("Train_AFEW", "train"), ("trainset", "train"), ("contest", None), ("device", None)),
        *(("val", "validation"), ("interval", None), ("test_2", "test"), ("evaluation", None)),
    ],
)
def test_words_that_only_contain_a_part_are_none(word: str, part: str | None) -> None:
    assert part_of(word) == part
