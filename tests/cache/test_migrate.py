"""Stores whose plan is in two files: made so, migrated, continued, damaged; the same stores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.check import diff, inspect, plan_repair, verify
from cache.errors import DamagedError, RefusedError
from cache.files import canonical_json, sha256
from cache.hdf5 import export_store, import_store
from cache.identity import flatten
from cache.journal import fingerprint_of
from cache.migrate import migrate
from cache.plan import COLUMNS, PlanFold, VideoTable, encode_plan_file, read_plan
from cache.store import create_store, open_store
from support.hostile import contents, forge_manifest, forge_records
from support.tiny import (
    LocalStore,
    fill,
    fixed_files,
    flip,
    kinds,
    make_plan,
    make_store,
    open_local,
    plan_of,
    store_bytes,
)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    path = tmp_path_factory.mktemp("old") / "s"
    writer = create_store(path, make_plan(), fixed_files())
    writer.note(shard=[0, 1])
    fill(writer, failed=(3, 140))
    writer.finalise()
    return open_local(path)


@pytest.fixture(scope="module")
def new(old: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    path = Path(shutil.copytree(old.path, tmp_path_factory.mktemp("new") / "s"))
    assert migrate(path)
    return open_local(path)


def same(a: LocalStore, b: LocalStore) -> None:
    """Every field of two stores is equal."""
    assert (a.digest, a.title, a.identity, a.texts) == (b.digest, b.title, b.identity, b.texts)
    assert (a.ids, a.subjects, a.classes) == (b.ids, b.subjects, b.classes)
    assert (a.missing, a.plan.source) == (b.missing, b.plan.source)
    for ours, theirs in zip(a.folds, b.folds, strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])
    np.testing.assert_equal(a.subsets, b.subsets)
    np.testing.assert_array_equal(a.votes, b.votes)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.load_features(), b.load_features())
    assert a.load_rows(0) == b.load_rows(0)


def test_migrated_store_is_the_same_in_every_field(old: LocalStore, new: LocalStore) -> None:
    same(old, new)
    assert diff(old.path, new.path).same_digest
    assert verify(new.path) == verify(new.path, deep=True) == []
    before, after = contents(old.path), contents(new.path)
    assert {n for n in after if after[n] != before.get(n)} == {"plan.json", COLUMNS}
    assert json.loads(after["plan.json"])["schema_version"] == 4
    ours, theirs = inspect(old.path), inspect(new.path)
    assert (ours.digest, ours.missing) == (theirs.digest, theirs.missing)
    assert ours.identity == theirs.identity


def test_votes_subjects_and_sources_are_migrated_too(tmp_path: Path) -> None:
    more = {
        "subjects": ("", None, *"abcdefgh"),
        "folds": (
            PlanFold(name="x/1", train=(3, 1, 2), test=(0, 9)),
            PlanFold(name="ü", train=range(5), test=range(9, 5, -1)),
        ),
        "subsets": {"none": (), "odd": (5, 3)},
        "votes": (None, *[(1.5, 0, label) for label in range(9)]),
        "sources": tuple(f"Clip/é {n}.mp4" for n in range(10)),
    }
    table = VideoTable(**make_plan(videos=10).videos.model_dump() | more)
    fill(writer := create_store(tmp_path / "s", plan_of(table), fixed_files()))
    writer.finalise()
    shutil.copytree(tmp_path / "s", tmp_path / "two")
    assert migrate(tmp_path / "two")
    same(open_local(tmp_path / "s"), open_local(tmp_path / "two"))


def test_migration_says_what_it_did_and_is_done_once(old: LocalStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(old.path, tmp_path / "s"))
    done = migrate(path)
    assert done
    assert (done.digest, done.videos) == (old.digest, 150)
    assert done.bytes_before == (old.path / "plan.json").stat().st_size
    assert done.bytes_after == sum((path / n).stat().st_size for n in ("plan.json", COLUMNS))
    before = contents(path)
    assert migrate(path) is None
    assert contents(path) == before


def test_store_of_version_1_keeps_its_digest(tmp_path: Path) -> None:
    first = make_plan().model_copy(update={"schema_version": 1})
    fill(writer := create_store(tmp_path / "s", first, fixed_files()))
    digest = writer.finalise()
    migrate(tmp_path / "s")
    assert open_store(tmp_path / "s").digest == digest
    assert verify(tmp_path / "s", deep=True) == []


def test_many_videos_are_kept_in_two_files_from_the_start(
    tmp_path: Path, new: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.writer.ARRAY_VIDEOS", 150)
    fill(create_store(tmp_path / "s", make_plan(), fixed_files()), failed=(3, 140), only=1)
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    fill(writer, failed=(3, 140))
    assert writer.finalise() == new.digest
    assert store_bytes(tmp_path / "s") == store_bytes(new.path)
    make_store(tmp_path / "few", videos=149)
    assert not (tmp_path / "few" / COLUMNS).exists()


def test_views_are_added_and_damage_is_repaired(new: LocalStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(new.path, tmp_path / "s"))
    writer = create_store(path, make_plan(views=3), fixed_files())
    fill(writer, failed=(3, 140))
    whole = make_store(tmp_path / "whole", views=3, failed=(3, 140))
    assert writer.finalise() == whole.digest
    flip(path / "features/c.1.0.0.0")
    (path / "manifest.json").unlink()
    repair = plan_repair(path)
    assert (1, 0) in repair.redo
    repair.begin()
    fill(writer := create_store(path, repair.plan, fixed_files()), failed=(3, 140))
    assert writer.finalise() == whole.digest
    assert verify(path, deep=True) == []
    with pytest.raises(RefusedError, match=r"number of ids\s+150\s+149"):
        create_store(path, make_plan(videos=149, views=3), fixed_files())


def test_export_is_the_same_for_both_forms(
    old: LocalStore, new: LocalStore, tmp_path: Path
) -> None:
    assert export_store(new.path, tmp_path / "s.h5") == old.digest
    assert import_store(tmp_path / "s.h5", tmp_path / "back") == old.digest
    assert store_bytes(tmp_path / "back") == store_bytes(old.path)
    with pytest.raises(RefusedError, match=r"s\.h5 is a file.*tgdfer store import"):
        migrate(tmp_path / "s.h5")


def test_store_in_an_archive_is_read_and_not_migrated(new: LocalStore, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "s"), "zip", new.path.parent, "s")
    url = f"zip://s::{tmp_path / 's.zip'}"
    assert open_store(url).ids == new.ids
    assert verify(url, deep=True) == []
    with pytest.raises(RefusedError, match="can only be read"):
        migrate(url)


def test_unfinished_store_is_not_migrated(tmp_path: Path) -> None:
    fill(create_store(tmp_path / "s", make_plan(), fixed_files()), only=1)
    with pytest.raises(RefusedError, match="is unfinished: 1 of 3 blocks"):
        migrate(tmp_path / "s")
    assert not (tmp_path / "s" / COLUMNS).exists()


def test_file_left_by_a_killed_migration_is_litter(old: LocalStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(old.path, tmp_path / "s"))
    (path / COLUMNS).write_bytes(b"half")
    assert kinds(verify(path)) == [("litter", COLUMNS)]
    assert COLUMNS in plan_repair(path).remove


def test_damage_of_any_file_is_found(new: LocalStore, tmp_path: Path) -> None:
    path = Path(shutil.copytree(new.path, tmp_path / "s"))
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    for file in files:
        data = file.read_bytes()
        name = str(file.relative_to(path))
        for damaged in (data[:-1], data + b" ", data[:9] + bytes([data[9] ^ 4]) + data[10:]):
            file.write_bytes(damaged)
            assert verify(path, deep=True), name
            if name in ("plan.json", COLUMNS):
                with pytest.raises(DamagedError, match=r"plan\.json"):
                    open_store(path)
        file.write_bytes(data)
    (path / COLUMNS).unlink()
    with pytest.raises(DamagedError, match=r"videos\.safetensors is missing or changed"):
        open_store(path)


def test_forged_plan_that_contradicts_its_digests_is_found(new: LocalStore, tmp_path: Path) -> None:
    """Opening does not encode all videos again; comparing and verifying every byte do."""
    path = Path(shutil.copytree(new.path, tmp_path / "s"))
    plan = read_plan(path)
    videos = plan.videos.model_copy(update={"labels": np.zeros(150, np.int32)})
    forged, columns = plan.model_copy(update={"videos": videos}).in_arrays()
    assert forged.arrays
    assert plan.arrays
    arrays = forged.arrays.model_copy(update={"whole": plan.arrays.whole})
    (path / COLUMNS).write_bytes(columns)
    (path / "plan.json").write_bytes(encode_plan_file(forged.model_copy(update={"arrays": arrays})))
    assert open_store(path).digest == new.digest
    with pytest.raises(DamagedError, match=r"plan.json is damaged \(the videos have another dig"):
        diff(path, new.path)
    assert kinds(verify(path, deep=True)) == [("plan", COLUMNS)]


def test_plan_that_is_not_canonical_is_not_migrated(old: LocalStore, tmp_path: Path) -> None:
    """Its digest could not stay as it is."""
    path = Path(shutil.copytree(old.path, tmp_path / "s"))
    plan = json.loads((path / "plan.json").read_bytes())
    videos = json.dumps(plan["videos"], sort_keys=True).encode()
    plan["identity"]["videos"] = sha256(videos)
    identity = sha256(canonical_json(flatten(plan["identity"])))
    data = canonical_json(plan).replace(canonical_json(plan["videos"]), videos) + b"\n"
    (path / "plan.json").write_bytes(data)
    forge_records(path, lambda record: record.update(identity=identity))
    found = {"plan.json": fingerprint_of("plan.json", data)}
    forge_manifest(path, lambda manifest: manifest["files"].update(found))
    forge_manifest(path, lambda manifest: manifest.update(identity=identity))
    assert open_store(path).ids == old.ids
    with pytest.raises(RefusedError, match="its plan would not be the same afterwards"):
        migrate(path)
    assert not (path / COLUMNS).exists()
