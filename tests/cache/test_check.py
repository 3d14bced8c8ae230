"""Inspecting, verifying, repairing and comparing stores; damage of every kind is found."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache.check import diff, inspect, plan_repair, verify
from cache.errors import DamagedError, RefusedError
from cache.store import create_store, open_store
from support.tiny import (
    LocalStore,
    fill,
    fixed_files,
    flip,
    kinds,
    make_plan,
    make_store,
    store_bytes,
    values_of,
)

DAMAGES = int(os.environ.get("TGDFER_DAMAGES", "40"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    path = tmp_path_factory.mktemp("check") / "whole"
    return make_store(path, failed=(3, 140))


@pytest.fixture
def copy(whole: LocalStore, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "s"))


def mend(path: Path) -> None:
    """What ``tgdfer store repair`` does, with features that need no encoder."""
    repair = plan_repair(path)
    repair.begin()
    if repair.extraction:
        writer = create_store(path, repair.plan, fixed_files())
        fill(writer, failed=(3, 140))
        writer.finalise()


def test_finished_store_has_no_findings(whole: LocalStore) -> None:
    assert verify(whole.path) == verify(whole.path, deep=True) == []


def test_inspection_describes_the_store(whole: LocalStore) -> None:
    found = inspect(whole.path)
    assert (found.digest, found.status.total) == (whole.digest, 3)
    assert found.identity["encoder.name"] == "tiny"
    assert found.identity["identity"] == whole.identity.digest
    assert found.missing == {"video 3": "0 bytes", "video 140": "0 bytes"}
    sizes = [file.stat().st_size for file in whole.path.rglob("*") if file.is_file()]
    assert found.size_bytes == sum(sizes)


def test_light_finds_sizes_and_deep_finds_content(copy: Path) -> None:
    flip(copy / "features/c.1.0.0.0")
    assert verify(copy) == []
    assert kinds(verify(copy, deep=True)) == [("content", "features/c.1.0.0.0")]
    with (copy / "rows/0.1").open("ab") as file:
        file.write(b" ")
    (copy / "frame_index/c.2.1.0").unlink()
    assert kinds(verify(copy)) == [("missing", "frame_index/c.2.1.0"), ("size", "rows/0.1")]


def test_what_does_not_belong_to_the_store_is_named(copy: Path) -> None:
    (copy / "features" / "Thumbs.db").write_bytes(b"x")
    (copy / "notes").mkdir()
    (copy / ".tmp" / "0123456789abcdef0123456789abcdef").write_bytes(b"litter")
    (copy / "locks" / "0").write_bytes(b"x")
    assert kinds(verify(copy)) == [
        ("litter", ".tmp/0123456789abcdef0123456789abcdef"),
        ("foreign", "features/Thumbs.db"),
        ("litter", "locks/0"),
        ("foreign", "notes"),
    ]


def test_link_in_place_of_a_file_is_found(copy: Path, tmp_path: Path) -> None:
    (copy / "rows/0.0").rename(tmp_path / "elsewhere")
    (copy / "rows/0.0").symlink_to(tmp_path / "elsewhere")
    assert kinds(verify(copy)) == [("content", "rows/0.0")]


def test_journal_and_manifest_and_plan_damage_have_their_own_kinds(copy: Path) -> None:
    flip(copy / "journal/final.jsonl")
    assert kinds(verify(copy)) == [("journal", "journal/final.jsonl")]
    flip(copy / "manifest.json")
    assert ("manifest", "manifest.json") in kinds(verify(copy))
    flip(copy / "plan.json")
    assert kinds(verify(copy)) == [("plan", "plan.json")]
    (copy / "plan.json").unlink()
    assert kinds(verify(copy)) == [("plan", "plan.json")]
    with pytest.raises(DamagedError, match=r"plan\.json: is missing; restore it"):
        plan_repair(copy)


def test_unfinished_store_says_how_far_it_is_and_what_is_damaged(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    fill(writer, only=2)
    (tmp_path / "s/features/c.2.0.0.0").write_bytes(b"renamed, then killed")
    flip(tmp_path / "s/features/c.0.1.0.0")
    findings = verify(tmp_path / "s", deep=True)
    assert kinds(findings) == [
        ("unfinished", "manifest.json"),
        ("content", "features/c.0.1.0.0"),
        ("litter", "features/c.2.0.0.0"),
    ]
    assert findings[0].message.startswith("2 of 3 blocks are committed")


def test_newer_store_and_no_store_are_refused(copy: Path, tmp_path: Path) -> None:
    plan = (copy / "plan.json").read_bytes()
    (copy / "plan.json").write_bytes(plan.replace(b'"schema_version":2', b'"schema_version":9'))
    with pytest.raises(RefusedError, match="install a newer tgdfer"):
        verify(copy)
    with pytest.raises(RefusedError, match="no store at"):
        verify(tmp_path / "none")


def test_repair_redoes_only_what_is_damaged(whole: LocalStore, copy: Path) -> None:
    flip(copy / "features/c.1.0.0.0")
    flip(copy / "text.safetensors", 3)
    repair = plan_repair(copy)
    # Blocks 0 and 2 hold the two quarantined videos.
    assert repair.redo == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    repair.begin()
    with pytest.raises(RefusedError, match="unfinished"):
        open_store(copy)
    writer = create_store(copy, repair.plan, fixed_files())
    assert [(unit.block, unit.views) for unit in writer.todo()] == [
        (0, (0, 1)),
        (1, (0,)),
        (2, (0, 1)),
    ]
    fill(writer, failed=(3, 140))
    assert writer.finalise() == whole.digest
    assert verify(copy, deep=True) == []


def test_repair_adds_a_video_that_became_readable(copy: Path) -> None:
    repair = plan_repair(copy)
    repair.begin()
    fill(writer := create_store(copy, repair.plan, fixed_files()), failed=(140,))
    writer.finalise()
    store = open_store(copy)
    assert list(store.missing) == ["video 140"]
    assert np.isfinite(store.load_features()[3]).all()


def test_damage_without_features_is_repaired_without_extraction(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    before = store_bytes(store.path)
    flip(store.path / "manifest.json")
    (store.path / "journal/final.jsonl").write_bytes(b"")
    flip(store.path / "features/zarr.json")
    (store.path / ".tmp/0123456789abcdef0123456789abcdef").write_bytes(b"x")
    # Without manifest and journal nothing is known to be committed: extraction does it all.
    assert plan_repair(store.path).extraction
    for name, data in before.items():
        (store.path / name).write_bytes(data)
    for name in ("manifest.json", "features/zarr.json"):
        flip(store.path / name)
        assert not plan_repair(store.path).extraction
        mend(store.path)
        assert store_bytes(store.path) == before
    (store.path / "journal/final.jsonl").unlink()
    mend(store.path)
    assert store_bytes(store.path) == before
    assert verify(store.path, deep=True) == []


def test_repair_leaves_foreign_files_alone(copy: Path) -> None:
    (copy / "notes.txt").write_bytes(b"mine")
    mend(copy)
    assert (copy / "notes.txt").read_bytes() == b"mine"
    assert kinds(verify(copy, deep=True)) == [("foreign", "notes.txt")]


def test_difference_names_fields_videos_and_features(whole: LocalStore, tmp_path: Path) -> None:
    assert diff(whole.path, whole.path).same_digest
    plan = make_plan(videos=149, views=1, seed=7)
    writer = create_store(tmp_path / "other", plan, fixed_files())
    for unit in writer.todo():
        features, index, rows = values_of(unit, failed=(3,))
        if unit.block == 0:
            features[5, 0, 0, 0] += 2
        writer.commit(unit, features, index, rows)
    writer.finalise()
    found = diff(whole.path, tmp_path / "other")
    assert ("seed", "0", "7") in found.fields
    assert ("views", "2", "1") in found.fields
    assert (found.only_a, found.only_b) == (["video 149"], [])
    assert found.missing == {"video 140": ("0 bytes", "")}
    assert (found.videos, found.views) == (149, 1)
    assert found.changed == {"video 5": 2.0}
    assert found.max_abs == 2.0
    assert not found.same_digest


def read_all(path: Path) -> tuple[object, ...]:
    """What training takes from a store."""
    store = open_store(path)
    arrays = (store.load_features(), store.load_frame_index(), store.labels)
    folds = [(name, train.tolist(), test.tolist()) for name, train, test in store.folds]
    read = tuple(array.tobytes() for array in arrays)
    text = (store.text_weights, store.text_config)
    return (*read, folds, store.ids, store.classes, store.missing, text, store.digest)


def damage(root: Path, rng: random.Random) -> str:
    """Damage one random file at random; returns what was done."""
    files = sorted(f for f in root.rglob("*") if f.is_file() and f.stat().st_size)
    # Half of the damage hits chunks, the other half any file, journals included.
    chunks = [file for file in files if file.name.startswith("c.")]
    victim = rng.choice(chunks if rng.random() < 0.5 else files)
    data = victim.read_bytes()
    kind = rng.choice(["flip", "truncate", "zero", "delete", "swap", "append"])
    at = rng.randrange(len(data))
    if kind == "flip":
        flip_at = bytes([data[at] ^ (1 << rng.randrange(8))])
        victim.write_bytes(data[:at] + flip_at + data[at + 1 :])
    elif kind == "truncate":
        victim.write_bytes(data[:at])
    elif kind == "zero":
        end = min(len(data), at + 512)
        victim.write_bytes(data[:at] + bytes(end - at) + data[end:])
    elif kind == "delete":
        victim.unlink()
    elif kind == "append":
        victim.write_bytes(data + rng.randbytes(rng.randrange(1, 64)))
    else:
        other = rng.choice([file for file in files if file.suffix == victim.suffix])
        victim.write_bytes(other.read_bytes())
        other.write_bytes(data)
    return f"{kind} {victim.relative_to(root)} at {at}"


@pytest.mark.slow
def test_every_random_damage_is_found_and_never_trained_on(
    whole: LocalStore, tmp_path: Path
) -> None:
    rng = random.Random(0)
    intact, content = store_bytes(whole.path), read_all(whole.path)
    hurt = 0
    for n in range(DAMAGES):
        path = Path(shutil.copytree(whole.path, tmp_path / str(n)))
        what = damage(path, rng)
        changed = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} != {
            str(f.relative_to(whole.path)) for f in whole.path.rglob("*") if f.is_file()
        } or any((path / name).read_bytes() != data for name, data in intact.items())
        hurt += changed
        try:
            read = read_all(path)
        except RefusedError:
            assert changed, what
        else:
            assert read == content, f"{what}: read as something else"
        if not changed:
            continue
        findings = verify(path, deep=True)
        assert findings, what
        if findings[0].kind == "plan":
            with pytest.raises(DamagedError, match=r"plan\.json"):
                mend(path)
        else:
            mend(path)
            assert store_bytes(path) == intact, what
            assert verify(path, deep=True) == [], what
        shutil.rmtree(path)
    assert hurt > 0.8 * DAMAGES
