"""``tgdfer store`` as users type it, on a store extracted from real videos."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest

from cache.files import canonical_json, sha256
from cache.store import open_store
from cli.main import run
from pipeline.demo.faces import FacesSpec, write_faces
from support.hostile import contents, forge_manifest, forge_plan, replace_by_link
from support.tiny import flip, store_bytes

Tgdfer = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user's, with a small face set in DFEW's layout."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(faces, folder / "DFEW")
    return folder


@pytest.fixture
def tgdfer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tgdfer:
    """Run a command in ``place``; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(place)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tgdfer", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run()
        return int(left.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def store(place: Path, tgdfer: Tgdfer) -> Path:
    """A store of the face set; extracted once, copied for each test."""
    whole = place / "whole.zarr"
    if not whole.exists():
        options = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", 1]
        assert tgdfer("extract", *options, "--store", whole)[0] == 0
    shutil.rmtree(place / "s.zarr", ignore_errors=True)
    return Path(shutil.copytree(whole, place / "s.zarr"))


def test_inspect_prints_the_identity(store: Path, tgdfer: Tgdfer) -> None:
    code, out, _ = tgdfer("store", "inspect", store)
    assert code == 0
    opened = open_store(store)
    for fact in (opened.digest, opened.identity.digest, "dfew: 35 videos", "in 3 blocks"):
        assert fact in out
    rows = {line.partition("  ")[0]: line.split("  ")[-1].strip() for line in out.splitlines()}
    assert rows["source"] == "Clip/clip_224x224: 35 folders of images"
    hashes = {row.id: row.sha256 for row in opened.load_rows(0)}
    assert rows["contents"] == f"sha256 {sha256(canonical_json(hashes))} of those of all videos"
    files = sorted(Path("DFEW/EmoLabel_DataSplit").rglob("set_*.csv"))
    assert [rows[f"list {number}"] for number in range(1, 11)] == [
        f"{file.relative_to('DFEW')}, sha256 {sha256(file.read_bytes())}" for file in files
    ]
    assert f"encoder.weights_sha256       {opened.identity.encoder.weights_sha256}" in out


def test_migrated_store_is_inspected_as_before(store: Path, tgdfer: Tgdfer) -> None:
    _, before, _ = tgdfer("store", "inspect", store)
    code, out, _ = tgdfer("store", "migrate", store)
    assert code == 0
    assert "the plan of 35 videos is now in two files, 0.0 MiB" in out
    assert open_store(store).digest in out
    _, after, _ = tgdfer("store", "inspect", store)
    assert [line for line in after.splitlines() if not line.startswith("size ")] == [
        line for line in before.splitlines() if not line.startswith("size ")
    ]
    assert "nothing to do, it has the newest schema" in tgdfer("store", "migrate", store)[1]


def test_verify_is_silent_about_nothing(store: Path, tgdfer: Tgdfer) -> None:
    assert tgdfer("store", "verify", "--deep", store)[0] == 0
    flip(store / "features/c.1.0.0.0")
    assert tgdfer("store", "verify", store)[0] == 0
    code, out, _ = tgdfer("store", "verify", "--deep", store)
    assert code == 3
    assert "content     features/c.1.0.0.0: is not as it was committed (sha256)" in out


def test_canary_of_the_same_machine_is_identical(store: Path, tgdfer: Tgdfer) -> None:
    code, out, err = tgdfer("store", "verify", store, "--canary", 3, "--root", "DFEW")
    assert code == 0, err
    assert out.count(": identical") == 3


def test_canary_finds_videos_that_changed(store: Path, place: Path, tgdfer: Tgdfer) -> None:
    shutil.copytree(place / "DFEW", place / "turned")
    (place / "turned/EmoLabel_DataSplit/frames.csv").unlink()  # it describes each video's frames
    clips = place / "turned/Clip/original"
    names = sorted(path.name for path in clips.iterdir())
    for ours, theirs in zip(names, reversed(names), strict=True):
        shutil.copy(place / "DFEW/Clip/original" / theirs, clips / ours)
    for folder in (place / "turned/Clip").iterdir():
        if folder.name != "original":
            shutil.rmtree(folder)
    code, out, err = tgdfer("store", "verify", store, "--canary", 4, "--root", "turned")
    assert code == 3, err
    assert out.count(": cosine ") == 4


def test_canary_of_another_encoder_is_refused(store: Path, place: Path, tgdfer: Tgdfer) -> None:
    from support.sources import write_encoder

    other = write_encoder(place / "other")
    arguments = ["--canary", 1, "--root", "DFEW", "--encoder", other]
    code, _, err = tgdfer("store", "verify", store, *arguments)
    assert code == 2
    assert "was made with another encoder" in err
    assert "local-dir:other" in err


def test_repair_says_first_and_then_does(store: Path, place: Path, tgdfer: Tgdfer) -> None:
    flip(store / "features/c.1.0.0.0")
    before = store_bytes(store)
    code, out, _ = tgdfer("store", "repair", "--dry-run", store)
    assert code == 3
    assert "remove features/c.1.0.0.0" in out
    assert "extract again: view 0 of block 1" in out
    assert store_bytes(store) == before
    code, out, err = tgdfer("store", "repair", store, "--root", "DFEW")
    assert code == 0, err
    assert "16 done now" in out
    assert store_bytes(store) == store_bytes(place / "whole.zarr")
    code, out, _ = tgdfer("store", "repair", store, "--root", "DFEW")
    assert (code, "nothing to repair" in out) == (0, True)


def test_repair_with_other_videos_is_refused_before_anything_is_removed(
    store: Path, place: Path, tgdfer: Tgdfer
) -> None:
    flip(store / "features/c.1.0.0.0")
    before = store_bytes(store)
    write_faces(place / "few", FacesSpec(videos=14), workers=1)
    code, _, err = tgdfer("store", "repair", store, "--root", "few")
    assert code == 2
    assert "number of ids" in err
    assert store_bytes(store) == before


def test_repair_without_extraction_needs_no_videos(
    store: Path, place: Path, tgdfer: Tgdfer
) -> None:
    flip(store / "manifest.json")
    assert tgdfer("store", "repair", store, "--root", "nowhere")[0] == 0
    assert store_bytes(store) == store_bytes(place / "whole.zarr")


def test_diff_of_two_stores(store: Path, place: Path, tgdfer: Tgdfer) -> None:
    assert tgdfer("store", "diff", store, place / "whole.zarr")[:2] == (
        0,
        "the same store: equal digests\n",
    )
    options = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", 1]
    tgdfer("extract", *options, "--limit", 20, "--precision", "fp32", "--store", "few.zarr")
    code, out, _ = tgdfer("store", "diff", store, "few.zarr")
    assert code == 3
    assert "number of ids" in out
    assert "15 videos only in" in out


def test_exported_store_is_imported_without_options_that_it_does_not_need(
    store: Path, tgdfer: Tgdfer
) -> None:
    digest = open_store(store).digest
    assert digest in tgdfer("store", "export", store, "s.h5")[1]
    code, _, err = tgdfer("store", "import", "s.h5", "t.zarr", "--root", "DFEW")
    assert (code, "--root: not read, since s.h5 is an exported store" in err) == (2, True)
    assert digest in tgdfer("store", "import", "s.h5", "t.zarr")[1]


def test_mended_video_is_taken_in_by_repair(store: Path, place: Path, tgdfer: Tgdfer) -> None:
    shutil.copytree(place / "DFEW/EmoLabel_DataSplit", place / "bad/EmoLabel_DataSplit")
    shutil.copytree(place / "DFEW/Clip/original", place / "bad/Clip/original")
    video = sorted((place / "bad/Clip/original").iterdir())[3]
    good = video.read_bytes()
    video.write_bytes(b"")
    options = ["--dataset", "dfew", "--root", "bad", "--encoder", "mini", "--views", 1]
    assert tgdfer("extract", *options, "--store", "bad.zarr")[0] == 3
    code, out, _ = tgdfer("store", "repair", "bad.zarr", "--root", "bad")
    assert (code, "1 without features" in out) == (3, True)
    assert (place / "bad.zarr.failed.txt").read_text().startswith(video.stem)
    video.write_bytes(good)
    assert tgdfer("store", "repair", "bad.zarr", "--root", "bad")[0] == 0
    assert not open_store(place / "bad.zarr").missing
    assert not (place / "bad.zarr.failed.txt").exists()


def test_help_shows_every_command_with_an_example(tgdfer: Tgdfer) -> None:
    for command in ("inspect", "verify", "repair", "diff", "export", "import"):
        code, out, _ = tgdfer("store", command, "--help")
        assert code == 0
        assert f"tgdfer store {command}" in " ".join(out.split())


EXTRACT = ("--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", "1")
COMMANDS = (
    ("store", "inspect", "s.zarr"),
    ("store", "verify", "s.zarr"),
    ("store", "verify", "--deep", "s.zarr"),
    ("store", "repair", "s.zarr", "--root", "DFEW"),
    ("store", "export", "s.zarr", "s.h5"),
    ("store", "import", "whole.h5", "s.zarr"),
    ("store", "diff", "s.zarr", "whole.zarr"),
    ("train", "--store", "s.zarr", "--fold", "no such fold"),
    (
        "extract",
        *[
            "--dataset",
            "dfew",
            "--root",
            "DFEW",
            "--encoder",
            "mini",
            "--views",
            "1",
            "--store",
            "s.zarr",
        ],
    ),
)


@pytest.mark.parametrize("name", ["journal", ".tmp", "features", "rows", "locks", "manifest.json"])
@pytest.mark.parametrize("finished", [True, False])
def test_no_command_changes_what_a_link_in_a_store_points_to(
    place: Path, store: Path, tgdfer: Tgdfer, tmp_path: Path, name: str, finished: bool
) -> None:
    if not (place / "whole.h5").exists():
        assert tgdfer("store", "export", "whole.zarr", "whole.h5")[0] == 0
    for command in COMMANDS:
        shutil.rmtree(store)
        shutil.rmtree(tmp_path / "victim", ignore_errors=True)
        shutil.copytree(place / "whole.zarr", store)
        if not finished:
            (store / "manifest.json").unlink()
        replace_by_link(store, name, tmp_path / "victim")
        before = contents(tmp_path / "victim")
        (place / "s.h5").unlink(missing_ok=True)
        code, _, err = tgdfer(*command)
        assert code in (0, 2, 3), (command, err)
        said = err.splitlines()
        counted = 7 + 2 if command[0] == "extract" and said[0].startswith("dfew: lists") else 0
        assert len(said) - counted <= 3, (command, err)  # besides the videos of each class
        assert contents(tmp_path / "victim") == before, command
        if name in ("journal", ".tmp") and command[1] in ("repair", "import"):
            assert code == 2, command
            assert f"{name} is a symbolic link, expected a file or a folder" in err


def name_file(name: str, manifest: dict[str, Any]) -> None:
    manifest["files"][name] = [1, "0" * 64]


def test_repair_removes_nothing_that_a_manifest_names_outside_the_store(
    place: Path, store: Path, tgdfer: Tgdfer
) -> None:
    (place / "victim.txt").write_text("mine")
    for name in ("../victim.txt", str(place / "victim.txt")):
        forge_manifest(store, partial(name_file, name))
        assert tgdfer("store", "repair", store, "--root", "DFEW")[0] == 0
        assert tgdfer("store", "verify", "--deep", store)[0] == 0
        assert store_bytes(store) == store_bytes(place / "whole.zarr")
    assert (place / "victim.txt").read_text() == "mine"


def test_store_with_a_video_in_training_and_test_is_not_trained_on(
    store: Path, tgdfer: Tgdfer
) -> None:
    row = int(open_store(store).folds[0][2][0])
    forge_plan(store, lambda plan: plan["videos"]["folds"][0]["train"].append(row))
    for command in (("train",), ("ablate", "table3"), ("compare",)):
        code, _, err = tgdfer(*command, "--store", store)
        assert code == 2
        assert f"row {row} is in both training and test of fold 1" in err
        assert len(err.splitlines()) == 1
    assert not (store.parent / "runs").exists()


def test_altered_export_leaves_nothing_behind(place: Path, store: Path, tgdfer: Tgdfer) -> None:
    assert tgdfer("store", "export", store, "altered.h5")[0] == 0
    with h5py.File(place / "altered.h5", "r+") as file:
        file["features"][0, 0, 0, 0] += 1
    code, _, err = tgdfer("store", "import", "altered.h5", "altered.zarr")
    assert (code, "it was exported with" in err) == (2, True)
    assert not (place / "altered.zarr").exists()
