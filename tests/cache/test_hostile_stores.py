"""Stores that somebody else made: links, names and values that no writer of ours would leave."""

import io
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from cache.check import diff, inspect, plan_repair, verify
from cache.errors import DamagedError, RefusedError
from cache.files import append_record, locked, sweep, write_files
from cache.hdf5 import export_store
from cache.local import LocalPath, StrangeFileError
from cache.plan import TRUTH_DTYPE, encode_truth
from cache.store import create_store, open_store, status
from support.commands import python
from support.hostile import (
    contents,
    forge_file,
    forge_manifest,
    forge_plan,
    forge_records,
    replace_by_link,
)
from support.tiny import (
    DIM,
    FRAMES,
    LocalStore,
    fill,
    fixed_files,
    kinds,
    make_plan,
    open_local,
    store_bytes,
)

VIDEOS = 70  # two blocks
TRUTH = encode_truth(np.array([(0, 1, 0.5), (0, -1, 0), (3, 2, 1)], TRUTH_DTYPE))
FOLDERS = ("features", "frame_index", "rows", "journal", "locks", ".tmp")
FILES = (
    "plan.json",
    "manifest.json",
    "zarr.json",
    "features/zarr.json",
    "features/c.0.0.0.0",
    "frame_index/c.1.1.0",
    "rows/0.0",
    "text.json",
    "text.safetensors",
    "truth.npy",
    "journal/final.jsonl",
    "provenance.jsonl",
    "locks/plan",
    "locks/0",
    ".tmp/0123456789abcdef0123456789abcdef",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    path = tmp_path_factory.mktemp("hostile") / "whole"
    writer = create_store(path, make_plan(VIDEOS, truth=TRUTH), fixed_files(TRUTH))
    writer.note(shard=[0, 1])
    fill(writer, failed=(3,))
    writer.finalise()
    return open_local(path)


@pytest.fixture
def copy(whole: LocalStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "s"))


def resume(path: Path) -> None:
    """What ``tgdfer extract`` does."""
    writer = create_store(path, make_plan(VIDEOS, views=3, truth=TRUTH), fixed_files(TRUTH))
    writer.note(shard=[0, 1])
    for row in (0, 5):
        writer.decoding_mark(row).touch()
        writer.decoding_mark(row).unlink()
    fill(writer, failed=(3,))
    writer.finalise()


def repair(path: Path) -> None:
    planned = plan_repair(path)
    planned.begin()
    if planned.extraction:
        resume(path)


def load(path: Path) -> None:
    """What training does."""
    store = open_store(path)
    store.load_features()
    store.frame_truth()
    store.load_rows(0)
    _ = store.text_weights, store.text_config


def export(path: Path) -> None:
    export_store(path, path.parent / "s.h5")


COMMANDS: list[Callable[[Path], object]] = [
    inspect,
    status,
    verify,
    lambda path: verify(path, deep=True),
    load,
    export,
    lambda path: diff(path, path),
    repair,
    resume,
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_what_a_link_in_a_store_points_to_is_never_changed(
    whole: LocalStore, tmp_path: Path, name: str, finished: bool
) -> None:
    for number, command in enumerate(COMMANDS):
        place = tmp_path / str(number)
        store = Path(shutil.copytree(whole.path, place / "s"))
        replace_by_link(store, name, place / "victim")
        if not finished:
            (store / "manifest.json").unlink(missing_ok=True)
        before = contents(place / "victim")
        with suppress(RefusedError):
            command(store)
        assert contents(place / "victim") == before, number


@pytest.mark.parametrize("name", FOLDERS)
def test_link_in_place_of_a_folder_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    replace_by_link(copy, name, tmp_path / "victim")
    with pytest.raises(StrangeFileError, match=f"{name} is a symbolic link, expected a file"):
        verify(copy)
    for write in (resume, repair):
        with pytest.raises(StrangeFileError, match=f"{name} is a symbolic link"):
            write(copy)
    readers_ignore = name in ("journal", "locks", ".tmp")
    if not readers_ignore:
        with pytest.raises(StrangeFileError):
            load(copy)


def test_link_in_place_of_a_damaged_file_is_removed_by_repair(
    whole: LocalStore, copy: Path, tmp_path: Path
) -> None:
    replace_by_link(copy, "features/c.0.0.0.0", tmp_path / "victim")
    before = contents(tmp_path / "victim")
    assert kinds(verify(copy)) == [("content", "features/c.0.0.0.0")]
    with pytest.raises(StrangeFileError):
        open_store(copy)
    planned = plan_repair(copy)
    planned.begin()
    writer = create_store(copy, planned.plan, fixed_files(TRUTH))
    fill(writer, failed=(3,))
    writer.finalise()
    assert store_bytes(copy) == store_bytes(whole.path)
    assert contents(tmp_path / "victim") == before


@pytest.mark.parametrize("name", ["plan.json", "locks/plan", "rows/0.0", "provenance.jsonl"])
def test_pipe_or_socket_in_place_of_a_file_is_refused_and_not_waited_for(
    copy: Path, name: str
) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(StrangeFileError, match="is a pipe"):
        resume(copy)
    (copy / name).unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(copy / name))
        with pytest.raises(StrangeFileError, match="is a socket"):
            resume(copy)


def test_nothing_is_appended_to_a_file_with_another_name(copy: Path, tmp_path: Path) -> None:
    os.link(copy / "provenance.jsonl", tmp_path / "mine")
    before = (tmp_path / "mine").read_bytes()
    with pytest.raises(StrangeFileError, match="a hard link"):
        resume(copy)
    assert (tmp_path / "mine").read_bytes() == before


def test_store_itself_may_be_reached_by_a_link(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(copy.parent)
    load(tmp_path / "way/s")
    (tmp_path / "direct").symlink_to(copy)
    resume(tmp_path / "direct")
    assert verify(copy, deep=True) == []


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", ".", "", "a/../b", "a\0b", "a/"])
def test_names_that_lead_out_of_a_store_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedError, match="cannot be a name inside the store"):
        _ = LocalPath(tmp_path) / name


def test_scratch_and_locks_of_runs_are_not_followed_either(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    for name in (".tmp", ".locks"):
        (tmp_path / name).symlink_to(victim)
    scratch = tmp_path / ".tmp"
    with pytest.raises(StrangeFileError):
        sweep(scratch)
    with pytest.raises(StrangeFileError):
        write_files({tmp_path / "a": b"1"}, scratch)
    with pytest.raises(StrangeFileError), locked(tmp_path / ".locks/run", wait=False):
        pass
    (tmp_path / "journal").symlink_to(victim / "mine")
    with pytest.raises(StrangeFileError):
        append_record(tmp_path / "journal", {})
    assert contents(victim) == {"mine": b"mine"}


def test_sweeping_leaves_folders_alone(tmp_path: Path) -> None:
    (tmp_path / ".tmp/somebodys").mkdir(parents=True)
    (tmp_path / ".tmp/somebodys/mine").write_text("mine")
    (tmp_path / ".tmp/0123456789abcdef0123456789abcdef").write_text("x")
    sweep(tmp_path / ".tmp")
    assert contents(tmp_path) == {
        ".tmp": "folder",
        ".tmp/somebodys": "folder",
        ".tmp/somebodys/mine": b"mine",
    }


WATCHED = """
import sys
from pathlib import Path

store, seen = sys.argv[1] + "/", []
CALLS = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir"}

def watch(event, arguments):
    if event in CALLS:
        seen.extend(str(a) for a in arguments if isinstance(a, (str, Path)) and store in str(a))

from support.faults import damaged, extract, repair
from support.tiny import make_plan, fixed_files
from cache.check import diff, inspect, verify
from cache.hdf5 import export_store
from cache.store import create_store, open_store, status
path = Path(sys.argv[1])
damaged(path)
sys.addaudithook(watch)
repair(path)
writer = create_store(path, make_plan(130, 3), fixed_files())
writer.decoding_mark(0).touch()
extract_more = [writer.todo(), status(path)]
from support.tiny import fill
fill(writer, failed=(70,))
writer.finalise()
opened = open_store(path)
_ = opened.load_features(), opened.load_rows(0), opened.text_weights, opened.text_config
inspect(path), verify(path, deep=True), diff(path, path)
export_store(path, path.parent / "s.h5")
print(sorted(set(seen)))
"""


def test_no_file_of_a_store_is_opened_by_its_path(tmp_path: Path) -> None:
    done = python("-c", WATCHED, tmp_path / "s")
    assert done.stdout == "[]\n", done.stdout + done.stderr


def first_fold(plan: dict[str, Any]) -> dict[str, Any]:
    fold: dict[str, Any] = plan["videos"]["folds"][0]
    return fold


def huge_chunk(plan: dict[str, Any]) -> None:
    plan["identity"].update(frames=1 << 12, batch_frames=1 << 12)
    plan.update(frames=1 << 12, block_videos=1 << 20)


def give_votes(plan: dict[str, Any], first: Any = (3.0, 1.0, 0.0), version: int = 3) -> Any:
    plan["schema_version"] = version
    return {"votes": plan["videos"].setdefault("votes", [first, *[None] * (VIDEOS - 1)])}


PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "overlap": (lambda p: first_fold(p)["test"].append(5), "row 5 is in both training and test"),
    "negative row": (lambda p: first_fold(p)["train"].append(-1), "greater than or equal to 0"),
    "row too large": (lambda p: first_fold(p)["train"].append(VIDEOS), "row 70 of a fold"),
    "row twice": (
        lambda p: first_fold(p)["train"].append(5),
        "row 5 is listed twice for",
    ),
    "no test": (lambda p: first_fold(p).update(test=[]), "fold 1 has no test videos"),
    "no training": (lambda p: first_fold(p).update(train=[]), "fold 1 has no training videos"),
    "fold twice": (lambda p: p["videos"]["folds"].append(first_fold(p)), "fold 1 is listed twice"),
    "id twice": (lambda p: p["videos"]["ids"].__setitem__(1, "video 0"), "video 0 is listed twice"),
    "class twice": (lambda p: p["videos"]["classes"].__setitem__(1, "happy"), "class happy is"),
    "no classes": (lambda p: p["videos"].update(classes=[]), "0 classes"),
    "label": (lambda p: p["videos"]["labels"].__setitem__(1, 3), "label 3, but there are 3"),
    "negative label": (lambda p: p["videos"]["labels"].__setitem__(1, -1), "greater than or equal"),
    "labels": (lambda p: p["videos"]["labels"].pop(), "69 labels of 70 videos"),
    "subjects": (lambda p: p["videos"]["subjects"].append("x"), "71 subjects of 70 videos"),
    "votes in version 2": (
        lambda p: give_votes(p, version=2),
        "fields of schema version 3 in a plan of 2",
    ),
    "votes of nobody": (lambda p: give_votes(p, None), "70 votes of 70 videos, 0 of them known"),
    "too few rows of votes": (lambda p: give_votes(p)["votes"].pop(), "69 votes of 70 videos"),
    "too few votes": (lambda p: give_votes(p, [1.0, 2.0]), r"votes \[1.0, 2.0\], expected 3"),
    "votes for no class": (lambda p: give_votes(p, [0.0] * 3), "numbers that are not all 0"),
    "negative votes": (lambda p: give_votes(p, [2.0, -1.0, 0.0]), "greater than or equal to 0"),
    "endless votes": (lambda p: give_votes(p, [1.0, 2e9, 0.0]), "less than or equal to"),
    "votes as text": (lambda p: give_votes(p, "123"), "damaged"),
    "sources": (lambda p: p["videos"].update(sources=["a.mp4"]), "1 sources of 70 videos"),
    "source elsewhere": (
        lambda p: p["videos"].update(sources=["../a.mp4"] * 70),
        "source '../a.mp4' does not start from the data set's root",
    ),
    "field of a later version": (
        lambda p: p.update(lists=[{"name": "list.csv", "sha256": ""}]),
        "fields of schema version 3 in a plan of 2",
    ),
    "subset": (lambda p: p["videos"]["subsets"].update(dark=[70]), "row 70"),
    "no videos": (lambda p: p["videos"].update(ids=[], labels=[], subjects=[]), "0 videos"),
    "no views": (lambda p: p.update(views=0), "greater than or equal to 1"),
    "frames": (lambda p: p.update(frames=-4), "greater than or equal to 1"),
    "other frames": (lambda p: p.update(frames=8), "frames is 8, the identity says 4"),
    "dim": (lambda p: p.update(dim=10**12), "less than or equal to"),
    "other dim": (lambda p: p.update(dim=16), "dim is 16, the identity says 8"),
    "block": (lambda p: p.update(block_videos=0), "greater than or equal to 1"),
    "chunk": (huge_chunk, "chunks larger than 2147483648 bytes"),
    "bool": (lambda p: p.update(views=True), "damaged"),
    "text": (lambda p: p.update(views="2"), "damaged"),
    "batch": (lambda p: p["identity"].update(batch_frames=6), "no multiple of frames"),
    "open": (lambda p: p["identity"].update(device=None), "the identity lacks device"),
    "unknown": (lambda p: p.update(command="rm"), "not permitted"),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan_that_fits_no_store_is_refused_in_one_sentence(copy: Path, name: str) -> None:
    change, message = PLANS[name]
    forge_plan(copy, change)
    for command in (load, inspect, repair, export):
        with pytest.raises(RefusedError, match=message) as refused:
            command(copy)
        assert "\n" not in str(refused.value)
    assert {finding.kind for finding in verify(copy)} <= {"plan", "manifest", "missing", "size"}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"views":' + "9" * 5000 + "}", "null", "1e999"])
def test_deep_or_endless_json_is_refused(copy: Path, text: str) -> None:
    for name in ("plan.json", "manifest.json", "text.json"):
        before = (copy / name).read_bytes()
        if name == "text.json":
            forge_file(copy, name, text.encode())
        else:
            (copy / name).write_text(text)
        with pytest.raises(RefusedError):
            load(copy)
        (copy / name).write_bytes(before)


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "name above": lambda m: m["files"].update({"../victim/mine": [4, "0" * 64]}),
    "absolute name": lambda m: m["files"].update({"/etc/hostname": [4, "0" * 64]}),
    "strange name": lambda m: m["files"].update({"notes.txt": [4, "0" * 64]}),
    "block of no plan": lambda m: m["files"].update({"rows/7.0": [4, "0" * 64]}),
    "file left out": lambda m: m["files"].pop("rows/0.0"),
    "no list": lambda m: m["files"].update({"rows/0.0": "x"}),
    "size as text": lambda m: m["files"]["rows/0.0"].__setitem__(0, "4"),
    "negative size": lambda m: m["files"]["rows/0.0"].__setitem__(0, -4),
    "bool size": lambda m: m["files"]["rows/0.0"].__setitem__(0, True),
    "short sha256": lambda m: m["files"]["rows/0.0"].__setitem__(1, "ab"),
    "chunk without crc32c": lambda m: m["files"]["features/c.0.0.0.0"].pop(),
    "size of a chunk": lambda m: m["files"]["features/c.0.0.0.0"].__setitem__(0, 10**15),
    "files as a list": lambda m: m.update(files=[]),
    "no files": lambda m: m.pop("files"),
    "missing as a list": lambda m: m.update(missing=["video 3"]),
    "reason as a number": lambda m: m["missing"].update({"video 3": 7}),
    "missing stranger": lambda m: m.update(missing={"stranger": "x"}),
    "counts": lambda m: m.update(counts={}),
    "identity": lambda m: m.update(identity="0" * 64),
    "other text tower": lambda m: m["files"]["text.safetensors"].__setitem__(1, "0" * 64),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_that_does_not_fit_the_plan_is_damaged_and_removes_nothing(
    whole: LocalStore, copy: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/mine").write_text("mine")
    forge_manifest(copy, MANIFESTS[name])
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        open_store(copy)
    assert ("manifest", "manifest.json") in kinds(verify(copy))
    planned = plan_repair(copy)
    assert planned.remove == ["rows/0.0", "rows/0.1"]  # of the video that could not be read
    planned.begin()
    writer = create_store(copy, planned.plan, fixed_files(TRUTH))
    fill(writer, failed=(3,))
    writer.finalise()
    assert store_bytes(copy) == store_bytes(whole.path)
    assert contents(tmp_path / "victim") == {"mine": b"mine"}


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no views": lambda r: r.pop("views"),
    "no files": lambda r: r.pop("files"),
    "files as a list": lambda r: r.update(files=[]),
    "negative block": lambda r: r.update(block=-1),
    "bool block": lambda r: r.update(block=True),
    "text block": lambda r: r.update(block="0"),
    "block of no plan": lambda r: r.update(block=10**30),
    "views as text": lambda r: r.update(views="01"),
    "negative view": lambda r: r.update(views=[0, -1]),
    "other name": lambda r: r["files"].update({"../x": [1, "0" * 64]}),
    "fingerprint": lambda r: r["files"].update({next(iter(r["files"])): [1]}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_journal_that_no_writer_wrote_is_damaged_in_one_sentence(copy: Path, name: str) -> None:
    (copy / "manifest.json").unlink()
    forge_records(copy, RECORDS[name])
    before = contents(copy)
    for command in (load, inspect, verify, repair, resume):
        with pytest.raises(DamagedError, match=r"final\.jsonl is damaged .*; remove it, and what"):
            command(copy)
    changed = {n for n, data in contents(copy).items() if before.get(n) != data}
    assert changed <= {"plan.json", "zarr.json", "features/zarr.json", "frame_index/zarr.json"}


def test_record_of_another_plan_is_no_damage_whatever_it_says(copy: Path) -> None:
    append_record(copy / f"journal/{'ab' * 16}.jsonl", {"identity": "other", "block": "../x"})
    (copy / "manifest.json").unlink()
    assert status(copy).done == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_unless_the_video_is_missing(
    whole: LocalStore, copy: Path, value: float
) -> None:
    assert np.isnan(whole.load_features()[3]).all()
    name = "features/c.0.1.0.0"
    chunk = np.frombuffer((copy / name).read_bytes()[:-4], "<f2").reshape(64, FRAMES, DIM).copy()
    chunk[5, 0, 0] = value
    data = chunk.tobytes()
    forge_file(copy, name, data + int(google_crc32c.value(data)).to_bytes(4, "little"))
    open_store(copy).load_features([0])
    with pytest.raises(DamagedError, match="the features of video video 5 are not finite"):
        open_store(copy).load_features()


def npy(values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


TRUTHS = {
    "pickle": npy([{"a": 1}]),
    "numbers": npy([1.0, 2.0]),
    "no array": b"x" * 20,
    "nothing": b"",
    "cut": TRUTH[:-1],
    "order": encode_truth(np.array([(3, 0, 0), (0, 0, 0)], TRUTH_DTYPE)),
    "video": encode_truth(np.array([(VIDEOS, 0, 0)], TRUTH_DTYPE)),
    "label": encode_truth(np.array([(0, 3, 0)], TRUTH_DTYPE)),
    "intensity": encode_truth(np.array([(0, 0, np.nan)], TRUTH_DTYPE)),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_ground_truth_of_other_videos_or_of_objects_is_refused(copy: Path, name: str) -> None:
    forge_file(copy, "truth.npy", TRUTHS[name])
    with pytest.raises(DamagedError, match=r"truth\.npy is no ground truth of these videos"):
        open_store(copy).frame_truth()


@pytest.mark.parametrize("data", [b"[]", b"null", b"{}", b"[" * 9999, b'[{"id":"video 0"}]', b"x"])
def test_rows_of_another_shape_are_refused(copy: Path, data: bytes) -> None:
    forge_file(copy, "rows/0.0", data)
    with pytest.raises(DamagedError, match=r"rows/0\.0 does not describe the videos"):
        open_store(copy).load_rows(0)


OTHER_SIZES = [b'{"embed_dim":8,"features":9}', b'{"embed_dim":"8","features":8}']


@pytest.mark.parametrize(
    "data", [b"[]", b"null", b'{"embed_dim":16}', *OTHER_SIZES, b"{}", b"{", b'"x"']
)
def test_text_configuration_of_another_tower_is_refused(copy: Path, data: bytes) -> None:
    forge_file(copy, "text.json", data)
    with pytest.raises(RefusedError, match=r"text\.json (describes no|holds a|is not valid JSON)"):
        _ = open_store(copy).text_config
