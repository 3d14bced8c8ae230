"""The data commands, and data sets from their files to trained runs, with real decoders."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

import tgdfer as api
from cache.check import inspect, plan_repair
from cache.errors import RefusedError
from cache.files import sha256_file
from cache.store import open_store
from cli.main import app
from pipeline.datasets.known import known_datasets
from pipeline.datasets.texts import class_texts
from pipeline.encoders.clip import find_encoder
from pipeline.extract.planning import ExtractSettings, without_sources
from pipeline.extract.repair import repair_store
from pipeline.train.record import read_records
from pipeline.train.trained import read_checkpoint
from pipeline.video.frames import source_sha256
from support.commands import tgdfer
from support.sources import write_encoder
from support.trees import add_frames, add_video, write

FAST = ("--set", "optimiser.epochs=1", "--set", "optimiser.batch=16")


def add_ferv39k(root: Path) -> None:
    rows = []
    for word in ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"):
        for number in (1, 2):
            add_frames(root / f"2_ClipsforFaceCrop/Crime/{word}/{number:04d}")
            rows.append(f"Crime/{word}/{number:04d} {word}\n")
    write(root / "4_setups/All_scenes/train_All.csv", "".join(rows[::2]))
    write(root / "4_setups/All_scenes/test_All.csv", "".join(rows[1::2]))


def add_mafw(root: Path) -> None:
    rows = [f"{n:05d}.mp4 {name}\n" for n, name in enumerate(2 * known_datasets()["mafw"].classes)]
    for n in range(len(rows)):
        add_video(root / f"clips/{n:05d}.mp4")
    write(root / "no_caption/set_1/train.txt", "".join(rows[:11]))
    write(root / "no_caption/set_1/test.txt", "".join(rows[11:]))


def add_crema_d(root: Path) -> None:
    for actor in range(1001, 1006):
        for word in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"):
            add_video(root / f"VideoFlash/{actor}_DFA_{word}_XX.flv")


def add_own_list(root: Path) -> None:
    rows = ["path,label,subject"]
    for n, name in enumerate(3 * ["bored", "proud", "shy", "happy"]):
        add_frames(root / f"clips {n % 3}/{name}-{n}")
        rows.append(f"clips {n % 3}/{name}-{n},{name},person {n % 3}")
    write(root / "list.csv", "\n".join(rows))


def add_own_folders(root: Path) -> None:
    for name in ("bored", "Happy"):
        for n in range(4):
            add_video(root / name / f"{n}.webm")


# How each is extracted; then its classes, and its folds as extracted.
DFER_CLIP = ["--views", "2", "--sampling", "dfer-clip", "--augmentation", "dfer-clip"]
FAMILIES: dict[str, tuple[Callable[[Path], None], list[str], int, int]] = {
    "ferv39k": (add_ferv39k, DFER_CLIP, 7, 1),
    "mafw": (add_mafw, ["--views", "1"], 11, 1),
    "crema-d": (add_crema_d, ["--views", "1", "--folds", "2", "--by", "subject"], 6, 2),
    "list": (add_own_list, ["--views", "1", "--folds", "2"], 4, 2),
    "folders": (add_own_folders, ["--views", "1", "--folds", "2"], 2, 2),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny one; features as wide as tokens, which a visual prompt put before them needs."""
    return write_encoder(tmp_path_factory.mktemp("encoder") / "clip", dim=8)


def run(*arguments: object) -> str:
    """A command in this process: what it prints."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_data_set_goes_all_the_way_from_its_files_to_an_ablation_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, name: str
) -> None:
    add, options, classes, folds = FAMILIES[name]
    add(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    run(
        "extract", "--dataset", name, "--root", "set", "--encoder", encoder, "--frames", 4, *options
    )
    store = open_store(f"data/{name}-clip.zarr")
    assert (len(store.classes), len(store.folds), store.missing) == (classes, folds, {})
    assert np.isfinite(store.load_features()).all()
    # In the memory of this process, which then trains without starting others.
    fsspec.filesystem("memory").put(str(store.path), f"/{name}.zarr", recursive=True)
    asked = ("--store", f"memory://{name}.zarr", *FAST)
    run("train", "--cached", *asked)
    trained = {record.folder for record in read_records(Path("runs"))}
    assert len(trained) == folds
    table = run("ablate", "table5", "--seeds", 1, *asked)
    assert f"- data: {store.title}" in table
    rows = list(csv.DictReader(io.StringIO(Path("reports/ablation.csv").read_text())))
    assert {(row["n"], row["war_mean"] != "") for row in rows} == {(str(folds), True)}
    records = [*read_records(Path("runs"))]
    assert {record.status for record in records} == {"done"}
    # The main row is what was trained before; texts are known without the store.
    assert trained < {record.folder for record in records}
    assert len(records) <= len(rows) * folds
    checkpoint = read_checkpoint(records[0].folder)
    assert checkpoint.texts == class_texts(store.classes, store.texts)
    assert checkpoint.classes == store.classes


def test_classes_of_ones_own_have_texts_in_the_store_and_others_change_nothing(
    tmp_path: Path,
) -> None:
    add_own_list(tmp_path / "own")
    texts = write(tmp_path / "texts.toml", '[bored]\ndescriptors = "a yawn"\n[shy]\n')
    plain = api.read_dataset("list", tmp_path / "own", folds=3)
    assert plain.texts is not None
    assert dict(zip(plain.classes, plain.texts, strict=True))["shy"] == (
        "shy",
        "an expression of shy",
    )
    with pytest.raises(RefusedError, match=r"label 'happy'; expected one of bored, shy"):
        api.read_dataset("list", tmp_path / "own", texts=texts, folds=3)
    write(texts, texts.read_text() + "[happiness]\n[proud]\nname='pride'\n")
    own = api.read_dataset("list", tmp_path / "own", texts=texts, folds=3)
    assert own.classes == ("bored", "shy", "happiness", "proud")
    store = api.extract(own, tmp_path / "s.zarr", views=1, frames=2)
    assert store.texts == own.texts
    assert store.texts is not None
    assert (store.texts[0], store.texts[3]) == (
        ("bored", "a yawn"),
        ("pride", "an expression of proud"),
    )
    assert store.texts[2][1].startswith("raised cheeks")
    assert store.plan.schema_version == 3
    assert open_store(tmp_path / "s.zarr").plan == store.plan
    add_ferv39k(tmp_path / "ferv39k")
    videos = api.read_dataset("ferv39k", tmp_path / "ferv39k")
    other = api.extract(videos, tmp_path / "f.zarr", views=1, frames=2)
    assert (other.texts, other.plan.schema_version) == (None, 3)
    assert "texts" not in json.loads((tmp_path / "f.zarr/plan.json").read_bytes())["videos"]


def test_a_store_says_what_was_read_and_is_not_continued_from_elsewhere(tmp_path: Path) -> None:
    add_ferv39k(tmp_path / "set")
    lists = tmp_path / "lists"
    (tmp_path / "set/4_setups").rename(lists)
    folders = api.read_dataset("ferv39k", tmp_path / "set", annotation=lists)
    path = tmp_path / "s.zarr"
    store = api.extract(folders, path, views=1, frames=2)
    plan = store.plan
    assert plan.videos.sources is not None
    assert plan.videos.sources[0] == "2_ClipsforFaceCrop/Crime/Angry/0001/"
    names = [f"All_scenes/{part}_All.csv" for part in ("test", "train")]
    digests = [sha256_file(lists / name) for name in names]
    read = [(file.name, file.sha256) for file in plan.lists or ()]
    assert read == list(zip(names, digests, strict=True))
    assert inspect(store.path).history[-1]["lists"] == dict(read)
    hashes = [source_sha256(video.path) for video in folders.videos]
    assert [row.sha256 for row in store.load_rows(0)] == hashes
    moved = tmp_path / "moved/2_ClipsforFaceCrop"
    shutil.copytree(tmp_path / "set/2_ClipsforFaceCrop", moved)
    for video in folders.videos:
        add_video(tmp_path / f"set/original/{video.id}.mp4")
    other = {
        name: api.read_dataset("ferv39k", tmp_path / "set", annotation=lists, source=name)
        for name in ("original", str(moved))
    }
    files = other["original"]
    assert {video.source for video in files.videos} == {
        f"original/{v.id}.mp4" for v in files.videos
    }
    with pytest.raises(RefusedError, match=r"(?s)source of video 0 .*Angry/0001/ .*mp4.*--source"):
        api.extract(files, path, views=1, frames=2)
    # A copy of the tree has the same names, wherever it is.
    again = api.extract(other[str(moved)], path, views=1, frames=2)
    assert again.digest == store.digest


def test_a_store_without_sources_is_continued_and_repaired_as_it_is(tmp_path: Path) -> None:
    add_ferv39k(tmp_path / "set")
    videos = api.read_dataset("ferv39k", tmp_path / "set")
    earlier = replace(without_sources(videos), lists=())
    path = tmp_path / "s.zarr"
    api.extract(earlier, path, views=1, frames=2)
    fields = json.loads((tmp_path / "s.zarr/plan.json").read_bytes())
    assert (fields["schema_version"], fields.keys() & {"lists"}) == (2, set())
    assert "sources" not in fields["videos"]
    grown = api.extract(videos, path, views=2, frames=2)
    (tmp_path / "s.zarr/rows/0.1").unlink()
    settings = ExtractSettings(views=2, frames=2)
    summary = repair_store(plan_repair(tmp_path / "s.zarr"), videos, find_encoder("mini"), settings)
    assert (summary.digest, grown.plan.schema_version) == (grown.digest, 2)


TEXTS_REFUSED = {
    "one class": ("[a]\n", "1 classes, expected 2 to 100"),
    "another key": ("[a]\nx = 1\n[b]\n", r"\[a\] has keys other than name and descriptors"),
    "no table": ("a = 'x'\n[b]\n", r"\[a\] has keys other"),
    "a number": ("[a]\nname = 3\n[b]\n", r"\[a\] needs texts of 1 to 300 letters"),
    "too long": (f"[a]\nname = '{'x' * 301}'\n[b]\n", r"\[a\] needs texts of 1 to 300 letters"),
    "no TOML": ("[a\n", r"texts.toml: "),
}


@pytest.mark.parametrize("fault", TEXTS_REFUSED)
def test_texts_that_cannot_be_meant_are_refused(tmp_path: Path, fault: str) -> None:
    text, message = TEXTS_REFUSED[fault]
    add_own_list(tmp_path)
    with pytest.raises(RefusedError, match=message):
        api.read_dataset("list", tmp_path, texts=write(tmp_path / "texts.toml", text), folds=3)


def test_a_set_without_a_split_asks_for_folds_and_one_with_a_split_refuses_them(
    tmp_path: Path,
) -> None:
    add_own_list(tmp_path / "own")
    with pytest.raises(RefusedError, match=r"add --folds 5 .*, or a column split or fold"):
        api.read_dataset("list", tmp_path / "own")
    add_ferv39k(tmp_path / "ferv39k")
    with pytest.raises(RefusedError, match=r"ferv39k has a split already \(1 folds\)"):
        api.read_dataset("ferv39k", tmp_path / "ferv39k", folds=5)


@pytest.mark.slow
def test_check_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    add_ferv39k(tmp_path / "set")
    clips = tmp_path / "set/2_ClipsforFaceCrop/Crime"
    shutil.rmtree(clips / "Sad/0002")
    shutil.copytree(clips / "Happy/0001", clips / "Sad/0002")
    api.extract(api.read_dataset("ferv39k", tmp_path / "set"), tmp_path / "s", views=1, frames=2)
    (clips / "Fear/0002").rename(tmp_path / "gone")
    write(tmp_path / "set/2_ClipsforFaceCrop-002.zip", "")
    write(clips / "Angry/0001/1.jpg", "<html>")
    (clips / "Angry/0002/2.jpg").write_bytes(b"")
    shutil.rmtree(clips / "Neutral/0002")
    add_frames(clips / "Neutral/0002", 4)
    shutil.copy(clips / "Surprise/0001/1.jpg", clips / "Surprise/0002/1.jpg")
    options = ("--dataset", "ferv39k", "--root", "set", "--store", "s")
    done = tgdfer("data", "check", *options, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "the same bytes in training and test: 1 pair in fold 1" in done.stdout
    pair = ["1", "Crime/Sad/0002", "sadness", "Crime/Happy/0001", "happiness", "1.000"]
    assert [line.split() for line in done.stdout.splitlines()].count(pair) == 2
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["fear", "2", "1", "1", "0", "1", "-"] in lines
    assert ["anger", "2", "2", "0", "1", "2", "-"] in lines
    assert ["fold", "1,", "test", "7", "6", "1", "0", "6", "7847"] in lines
    assert ["fold", "1,", "train", "anger", "1", "1", "0", "1", "1"] in lines
    assert "missing Crime/Fear/0002" in done.stdout
    assert "unreadable Crime/Angry/0001: 1.jpg: not an image (JPEG, PNG, WEBP, BMP):" in done.stdout
    assert "2_ClipsforFaceCrop-002.zip is not unpacked: unzip 'set/2_Clips" in done.stdout
    assert "changed Crime/Neutral/0002: 4 frames, 3 in the store" in done.stdout
    assert "protocol: none: 1 of 14 videos are missing" in done.stdout
    found = json.loads(tgdfer("data", "check", *options, "--deep", "--json", cwd=tmp_path).stdout)
    assert found["missing"] == ["Crime/Fear/0002"]
    assert found["unreadable"].keys() == {"Crime/Angry/0001", "Crime/Angry/0002"}
    assert found["unreadable"]["Crime/Angry/0002"] == "2.jpg: 0 bytes"
    assert {i for i, why in found["changed"].items() if "other bytes" in why} == {
        "Crime/Surprise/0002"
    }
    assert [count for count in found["counts"] if count["label"] == "anger"][1] == {
        **{"fold": "1", "part": "test", "label": "anger", "listed": 1, "found": 1, "missing": 0},
        **{"unreadable": 1, "short": 1, "used": 0},
    }
    assert found["frames"] == [3, pytest.approx(40 / 13), 4]
    assert found["parts"][1]["published"] == 7847
    for name in ("same_bytes", "similar"):
        first = found[name][0]["pairs"][0]
        assert (first["train"], first["test"]) == ("Crime/Happy/0001", "Crime/Sad/0002")
        assert (found[name][0]["fold"], first["similarity"]) == ("1", pytest.approx(1))
    assert found["same_bytes"][0]["count"] == 1


@pytest.mark.slow
def test_init_writes_a_list_that_check_and_extract_read_once_it_is_filled_in(
    tmp_path: Path,
) -> None:
    add_own_folders(tmp_path / "mine")
    done = tgdfer("data", "init", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 videos: fill in mine/list.csv and mine/texts.toml\n"
    assert "next: tgdfer data check --dataset list --root mine --folds 5" in done.stderr
    file = tmp_path / "mine/list.csv"
    rows = list(csv.DictReader(file.open()))
    assert [row["path"] for row in rows][:2] == ["Happy/0.webm", "Happy/1.webm"]
    source = ("--dataset", "list", "--root", "mine", "--folds", 2)
    done = tgdfer("data", "check", *source, cwd=tmp_path)
    assert "list.csv:2: a row without a path or a label" in done.stderr
    lines = [f"{row['path']},{'calm' if n % 2 else 'tense'},," for n, row in enumerate(rows)]
    write(file, "\n".join([",".join(rows[0]), *lines]))
    small = ("--encoder", "mini", "--views", 1, "--frames", 4)
    done = tgdfer("extract", *source, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "list: lists mine/list.csv, source ." in done.stderr
    assert ["tense", "4", "4", "0", "unknown"] in [
        line.split() for line in done.stderr.splitlines()
    ]
    assert open_store(tmp_path / "data/list-mini.zarr").classes == ("calm", "tense")
    again = tgdfer("data", "init", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "mine/list.csv exists already" in again.stderr


@pytest.mark.slow
def test_list_shows_every_data_set_and_how_to_get_it(tmp_path: Path) -> None:
    shown = tgdfer("data", "list", cwd=tmp_path).stdout
    for name, known in known_datasets().items():
        assert name in shown
        assert known.obtain in shown
    one = tgdfer("data", "list", "dfew", cwd=tmp_path)
    assert "ROOT/EmoLabel_DataSplit" in one.stdout
    assert "next: tgdfer data check --dataset dfew --root ROOT" in one.stderr
