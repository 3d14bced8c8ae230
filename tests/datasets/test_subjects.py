"""Who is seen in each video: lists of it, and folds by subject in place of a data set's own."""

from functools import partial
from pathlib import Path

import pytest

from cache.errors import RefusedError
from cache.store import Store
from pipeline.config import load_method
from pipeline.datasets.check import check_survey
from pipeline.datasets.read import survey_dataset, videos_of
from pipeline.encoders.clip import find_encoder
from pipeline.extract.planning import ExtractSettings, make_plan
from pipeline.report.ablation import header_of
from support.trees import add_frames, add_video, write

VIDEOS = 24
SUBJECTS = "video,subject\n" + "".join(f"{n},person {n % 8}\n" for n in range(VIDEOS))


def add_mafw(root: Path) -> None:
    """One fold, in which everybody is on both sides."""
    rows = [f"{n:05d}.mp4 {('anger', 'fear', 'sadness')[n // 8]}\n" for n in range(VIDEOS)]
    for n in range(VIDEOS):
        add_frames(root / f"data/faces/{n:05d}", count=1)
    write(root / "no_caption/set_1/train.txt", "".join(rows[:16]))
    write(root / "no_caption/set_1/test.txt", "".join(rows[16:]))


def test_folds_by_subject_replace_those_of_the_set_and_say_so_wherever_results_are_shown(
    tmp_path: Path,
) -> None:
    add_mafw(tmp_path)
    file = write(tmp_path / "subjects.csv", SUBJECTS)
    own = survey_dataset("mafw", tmp_path, subjects=file)
    assert check_survey(own).shared_subjects == {"1": 8}
    drawn = survey_dataset("mafw", tmp_path, folds=4, subjects=file, by="subject")
    assert sorted(i for fold in drawn.folds for i in fold.test) == sorted(own.labels)
    for fold in drawn.folds:
        sides = ({own.subjects[i] for i in ids} for ids in (fold.train, fold.test))
        assert not set.intersection(*sides)
        assert sorted(own.labels[i] for i in fold.test) == [0, 0, 2, 2, 5, 5]
    report = check_survey(drawn)
    assert report.protocol == "none: folds drawn here by subject, in place of the published ones"
    assert {part.published for part in report.parts} == {None}
    stores = []
    for survey in (own, drawn):
        plan, _ = make_plan(videos_of(survey), find_encoder("mini"), ExtractSettings())
        stores.append(Store(tmp_path, "none", plan, {"missing": {}, "files": {}}))
    assert [store.plan.videos.resplit for store in stores] == [None, "by subject"]
    assert stores[0].identity.videos != stores[1].identity.videos
    said = [header_of(store, load_method(), 4, 1)["data"] for store in stores]
    assert said[0] == "mafw, 24 videos, 0 missing"
    assert said[1] == (
        "mafw re-split by subject (folds drawn here, not its own; not comparable with published "
        "results), 24 videos, 0 missing"
    )


def test_subjects_are_named_by_the_paths_of_a_list(tmp_path: Path) -> None:
    for name in "abcd":
        add_video(tmp_path / f"c/{name}.mp4")
    write(tmp_path / "list.csv", "c/a.mp4,x\nc/b.mp4,x\nc/c.mp4,y\nc/d.mp4,y\n")
    file = write(tmp_path / "s.csv", "./c/a.mp4,1\nc\\b.mp4,2\nc/c.mp4,1\nc/d,2\n")
    survey = survey_dataset("list", tmp_path, folds=2, subjects=file, by="subject")
    assert survey.subjects == {"c/a": "1", "c/b": "2", "c/c": "1", "c/d": "2"}
    write(file, "c/a.mp4,1\nc/b.mp4,\n")  # nothing is known of who is in the others
    assert survey_dataset("list", tmp_path, folds=2, subjects=file).subjects == {"c/a": "1"}


def test_folds_that_people_make_uneven_are_noted(tmp_path: Path) -> None:
    rows = ["path,label,subject"]
    for n in range(12):
        add_video(tmp_path / f"{n}.mp4")
        rows.append(f"{n}.mp4,{'xy'[n % 2]},{'anna' if n < 9 else n}")
    write(tmp_path / "list.csv", "\n".join(rows))
    notes = survey_dataset("list", tmp_path, folds=3).notes
    assert [note.partition(" tests")[2] for note in notes] == [
        " 9 of 12 videos, as nobody is in two folds"
    ]
    people = "\n".join(f"{row.rpartition(',')[0]},{row.split(',')[1]}" for row in rows[1:])
    write(tmp_path / "list.csv", f"{rows[0]}\n{people}")
    notes = survey_dataset("list", tmp_path, folds=2).notes
    assert notes[0] == "fold 1 does not train on a class that it tests, as nobody is in two folds"


def test_folds_by_subject_need_everybody_to_be_known(tmp_path: Path) -> None:
    add_mafw(tmp_path)
    asked = partial(survey_dataset, "mafw", tmp_path, folds=4, by="subject")
    with pytest.raises(RefusedError, match=r"in 24 of 24 videos: .*with --subjects FILE"):
        asked()
    file = write(tmp_path / "subjects.csv", SUBJECTS.replace("7,person 7\n", "", 1))
    with pytest.raises(RefusedError, match=r"who is seen in 1 of 24 videos: 00007; say it with"):
        asked(subjects=file)
    with pytest.raises(RefusedError, match=r"split already .*; --by subject replaces it"):
        survey_dataset("mafw", tmp_path, folds=4)
    with pytest.raises(RefusedError, match=r"--by subject: how many folds\?"):
        survey_dataset("mafw", tmp_path, by="subject")


def test_sets_whose_names_say_the_subject_are_re_split_without_a_list(tmp_path: Path) -> None:
    for actor in range(1001, 1007):
        add_video(tmp_path / f"VideoFlash/{actor}_DFA_{('ANG', 'HAP')[actor % 2]}_XX.mp4")
    survey = survey_dataset("crema-d", tmp_path, folds=3, by="subject")
    assert ([len(fold.test) for fold in survey.folds], survey.resplit) == ([2] * 3, "by subject")
    with pytest.raises(RefusedError, match=r"crema-d says itself who is seen"):
        survey_dataset("crema-d", tmp_path, subjects=write(tmp_path / "s.csv", SUBJECTS))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("99,anna", r"csv:3: video 99 is in no list of the data set; remove it"),
        ("0,anna", r"csv:3: video 0 is listed twice"),
        ("00001", r"csv:3: \['00001'\]; expected video,subject"),
        ("1,unknown", r"the subject of 00001 is 'unknown', .* leave the video out"),
        ("1,Anna", r"'anna' \(1 .*'Anna' \(1 .*one subject spelled in two ways"),
        ('1,"anna', r"csv:3: unexpected end of data"),
    ],
)
def test_a_list_of_subjects_that_cannot_be_meant_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    add_mafw(tmp_path)
    file = write(tmp_path / "subjects.csv", f"Video,Subject\n00000.mp4,anna\n{line}\n")
    with pytest.raises(RefusedError, match=message):
        survey_dataset("mafw", tmp_path, subjects=file)
