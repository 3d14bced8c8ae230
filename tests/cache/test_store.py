"""The store's format and its commit protocol, on real files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.check import plan_repair
from cache.errors import RefusedError
from cache.files import canonical_json, read_records, sha256
from cache.journal import fingerprint_of
from cache.plan import TRUTH_DTYPE, encode_truth
from cache.store import create_store, open_store, status
from support.commands import environment, python
from support.tiny import (
    DIM,
    FRAMES,
    TEXT,
    fill,
    fixed_files,
    make_plan,
    make_store,
    store_bytes,
    values_of,
)


def test_what_was_committed_is_what_is_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", failed=(70,))
    features = store.load_features()
    assert features.shape == (150, 2, FRAMES, DIM)
    assert features[149, 1, 0, 0] == np.float16(1149)
    assert store.missing == {"video 70": "0 bytes"}
    assert np.isnan(features[70]).all()
    assert (store.load_frame_index()[70] == -1).all()
    np.testing.assert_array_equal(store.load_features([1])[:, 0], features[:, 1])
    assert store.folds[0][2].tolist() == [0]
    assert store.subsets["dark"].nonzero()[0].tolist() == [1, 2]
    assert store.labels.tolist()[:4] == [0, 1, 2, 0]


def test_plain_zarr_reads_the_same_arrays(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    group = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(np.asarray(group["features"]), store.load_features())
    np.testing.assert_array_equal(np.asarray(group["frame_index"]), store.load_frame_index())


def test_plain_zarr_lists_what_a_store_holds_without_a_warning(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    code = (
        "import sys, zarr; group = zarr.open(sys.argv[1], mode='r')\n"
        "print(*sorted(name for name, _ in group.members()), group['features'].shape)\n"
        "attributes = dict(group.attrs)\n"
        "print(len(attributes['ids']), attributes['labels'][:4], attributes['classes'])"
    )
    done = python("-W", "error", "-c", code, store.path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"features frame_index (150, 2, {FRAMES}, {DIM})",
        "150 [0, 1, 2, 0] ['happy', 'sad', 'angry']",
    ]


def test_version_1_store_is_finished_read_and_repaired_as_version_1(tmp_path: Path) -> None:
    first = make_plan().model_copy(update={"schema_version": 1})
    fill(create_store(tmp_path / "s", first, fixed_files()), only=1)
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    fill(writer)
    assert writer.finalise()
    before = store_bytes(tmp_path / "s")
    group = json.loads(before["zarr.json"])
    assert (group["attributes"], "consolidated_metadata" in group) == ({}, False)
    assert json.loads(before["manifest.json"])["schema_version"] == 1
    assert open_store(tmp_path / "s").load_features().shape[0] == 150
    (tmp_path / "s/zarr.json").unlink()
    plan_repair(tmp_path / "s").begin()
    assert store_bytes(tmp_path / "s") == before


def test_files_beside_a_finished_store_are_never_written_again(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    group = store.path / "zarr.json"
    group.write_bytes(group.read_bytes() + b" ")  # as another version of zarr might write it
    manifest = json.loads((store.path / "manifest.json").read_bytes())
    del manifest["digest"]
    manifest["files"]["zarr.json"] = fingerprint_of("zarr.json", group.read_bytes())
    manifest["digest"] = sha256(canonical_json(manifest))
    (store.path / "manifest.json").write_bytes(canonical_json(manifest) + b"\n")
    before = store_bytes(store.path)
    create_store(store.path, make_plan(), fixed_files())
    (store.path / ".tmp/0123456789abcdef0123456789abcdef").write_bytes(b"of a killed writer")
    plan_repair(store.path).begin()
    assert store_bytes(store.path) == before


def test_zarr_itself_writes_the_same_bytes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    before = store_bytes(store.path)
    group = zarr.open_group(store.path, mode="r+")
    for name, values in (
        ("features", store.load_features()),
        ("frame_index", store.load_frame_index()),
    ):
        array = group[name]
        assert isinstance(array, zarr.Array)
        array[:] = values
    assert store_bytes(store.path) == before


def test_manifest_left_by_a_killed_process_before_its_name_was_durable_is_synced(
    tmp_path: Path, synced: list[Path]
) -> None:
    make_store(tmp_path / "s")
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    synced.clear()
    assert writer.finalise()
    assert synced == [tmp_path / "s"]


def test_interrupted_and_resumed_store_is_byte_identical(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole", failed=(3,))
    writer = create_store(tmp_path / "cut", make_plan(), fixed_files())
    fill(writer, failed=(3,), only=1)
    (tmp_path / "cut" / ".tmp" / "0123456789abcdef0123456789abcdef").write_bytes(
        b"of a killed writer"
    )
    again = create_store(tmp_path / "cut", make_plan(), fixed_files())
    assert [unit.block for unit in again.todo()] == [1, 2]
    fill(again, failed=(3,))
    assert again.finalise() == whole.digest
    assert store_bytes(tmp_path / "cut") == store_bytes(whole.path)
    assert list((tmp_path / "cut" / ".tmp").iterdir()) == []


def test_views_can_be_added_later(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole", views=3)
    make_store(tmp_path / "grown", views=2)
    writer = create_store(tmp_path / "grown", make_plan(views=3), fixed_files())
    with pytest.raises(RefusedError, match="unfinished: 0 of 3 blocks"):
        open_store(tmp_path / "grown")
    assert [unit.views for unit in writer.todo()] == [(2,)] * 3
    fill(writer)
    assert writer.finalise() == whole.digest
    assert store_bytes(tmp_path / "grown") == store_bytes(whole.path)


def test_writer_does_not_finish_a_store_to_which_views_were_added(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s", make_plan(views=2), fixed_files())
    fill(writer)
    create_store(tmp_path / "s", make_plan(views=3), fixed_files())
    assert writer.finalise() is None
    with pytest.raises(RefusedError, match="unfinished: 0 of 3 blocks"):
        open_store(tmp_path / "s")


def test_one_damaged_view_is_redone_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    (store.path / "manifest.json").unlink()
    (store.path / "rows" / "1.1").unlink()
    writer = create_store(store.path, make_plan(), fixed_files())
    assert [(unit.block, unit.views) for unit in writer.todo()] == [(1, (1,))]
    fill(writer)
    assert writer.finalise() == store.digest


def test_commits_of_another_plan_are_not_adopted(tmp_path: Path) -> None:
    """What two workers with different plans leave behind if locks do not work."""
    fill(create_store(tmp_path / "s", make_plan(), fixed_files()))
    (tmp_path / "s" / "plan.json").unlink()
    writer = create_store(tmp_path / "s", make_plan(seed=7), fixed_files())
    assert len(writer.todo()) == 3


def test_shards_split_the_blocks_and_the_last_one_finishes(tmp_path: Path) -> None:
    writers = [create_store(tmp_path / "s", make_plan(), fixed_files()) for _ in range(2)]
    assert [u.block for u in writers[0].todo((0, 2))] == [0, 2]
    assert [u.block for u in writers[1].todo((1, 2))] == [1]
    for i, writer in enumerate(writers):
        for unit in writer.todo((i, 2)):
            writer.commit(unit, *values_of(unit))
    assert writers[0].finalise() is not None


def test_a_block_is_claimed_by_one_writer_only(tmp_path: Path) -> None:
    one, two = (create_store(tmp_path / "s", make_plan(), fixed_files()) for _ in range(2))
    unit = one.todo()[0]
    with one.claim(unit) as mine:
        with two.claim(unit) as theirs:
            assert (mine, theirs) == (True, False)
        one.commit(unit, *values_of(unit))
    with two.claim(unit) as theirs:
        assert not theirs


def test_unfinished_store_is_refused_with_its_progress(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    fill(writer, only=2)
    assert writer.finalise() is None
    assert (status(tmp_path / "s").done, status(tmp_path / "s").total) == (2, 3)
    with pytest.raises(RefusedError, match="2 of 3 blocks; run tgdfer extract again"):
        open_store(tmp_path / "s")


def test_store_made_from_something_else_is_refused_side_by_side(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    with pytest.raises(RefusedError, match=r"(?s)seed +0 +7.*batch_frames +8 +64"):
        create_store(tmp_path / "s", make_plan(batch_frames=64, seed=7), fixed_files())
    with pytest.raises(RefusedError, match=r"number of ids\s+150\s+149"):
        create_store(tmp_path / "s", make_plan(videos=149), fixed_files())


RACE = """
import sys
from pathlib import Path
from cache.store import create_store
from support.tiny import fixed_files, make_plan, values_of
from cache.check import plan_repair
from cache.errors import RefusedError
try:
    writer = create_store(Path(sys.argv[1]), make_plan(seed=int(sys.argv[2])), fixed_files())
    for unit in writer.todo():
        with writer.claim(unit) as mine:
            if mine:
                writer.commit(unit, *values_of(unit))
    writer.finalise()
except RefusedError as error:
    sys.exit("made from something else" in str(error) and 2)
"""


def test_one_of_two_plans_racing_for_a_path_wins_completely(tmp_path: Path) -> None:
    whole = {seed: make_store(tmp_path / f"whole{seed}", seed=seed).path for seed in (0, 1)}
    for attempt in range(2):
        store = tmp_path / str(attempt)
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACE, str(store), str(seed)],
                env=environment(),
            )
            for seed in (0, 1, 0, 1)
        ]
        codes = [racer.wait() for racer in racers]
        assert codes in ([0, 2, 0, 2], [2, 0, 2, 0])
        assert store_bytes(store) == store_bytes(whole[codes.index(0)])


def test_missing_foreign_and_newer_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no store at"):
        open_store(tmp_path / "s")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match="not a feature store"):
        open_store(tmp_path / "f")
    with pytest.raises(RefusedError, match="not empty"):
        create_store(tmp_path / "f", make_plan(), fixed_files())
    store = make_store(tmp_path / "s")
    plan = json.loads((store.path / "plan.json").read_bytes())
    (store.path / "plan.json").write_text(json.dumps(plan | {"schema_version": 9}))
    with pytest.raises(RefusedError, match="schema version 9"):
        open_store(store.path)


@pytest.mark.parametrize(
    "name", ["features/c.1.0.0.0", "frame_index/c.0.0.0", "rows/2.0", "text.safetensors"]
)
def test_missing_or_cut_file_is_refused(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "s")
    data = (store.path / name).read_bytes()
    (store.path / name).write_bytes(data[:-1])
    with pytest.raises(RefusedError, match=f"{len(data) - 1} bytes, expected {len(data)}"):
        open_store(store.path)
    (store.path / name).unlink()
    with pytest.raises(RefusedError, match="is missing"):
        open_store(store.path)


def test_changed_metadata_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    file = store.path / "features" / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b"little", b"bigggg"))
    with pytest.raises(RefusedError, match="changed since extraction"):
        open_store(store.path)


def test_swapped_chunks_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    one, two = (store.path / "features" / f"c.{block}.0.0.0" for block in (0, 1))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    with pytest.raises(RefusedError, match=r"c\.[01]\.0\.0\.0 is damaged"):
        open_store(store.path).load_features()


def test_manifest_that_misses_the_wrong_video_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", failed=(70,))
    manifest = store.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"video 70"', b'"video 71"'))
    with pytest.raises(RefusedError, match=r"manifest\.json is damaged"):
        open_store(store.path)


def test_flipped_bit_is_refused_and_redone_after_removing_the_manifest(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    whole = store_bytes(store.path)
    chunk = store.path / "features" / "c.1.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 4
    chunk.write_bytes(data)
    with pytest.raises(RefusedError, match="damaged"):
        open_store(store.path).load_features()
    (store.path / "manifest.json").unlink()
    writer = create_store(store.path, make_plan(), fixed_files())
    assert [unit.block for unit in writer.todo()] == [1]
    fill(writer)
    writer.finalise()
    assert store_bytes(store.path) == whole


def test_changed_text_tower_of_the_same_size_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    assert store.text_weights == TEXT
    (store.path / "text.safetensors").write_bytes(TEXT[::-1])
    with pytest.raises(RefusedError, match="changed"):
        _ = store.text_weights


def test_file_without_a_journal_record_is_not_adopted(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    fill(writer)
    for journal in (tmp_path / "s" / "journal").iterdir():
        data = journal.read_bytes()
        assert len(list(read_records(journal))) == 3
        journal.write_bytes(data[:-5])  # the last record torn by a kill
    again = create_store(tmp_path / "s", make_plan(), fixed_files())
    assert [unit.block for unit in again.todo()] == [2]


def test_features_that_are_not_finite_or_misshapen_are_not_committed(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "s", make_plan(), fixed_files())
    unit = writer.todo()[0]
    features, index, rows = values_of(unit)
    features[5, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="video 5 are not finite"):
        writer.commit(unit, features, index, rows)
    with pytest.raises(ValueError, match="expected float16"):
        writer.commit(unit, features.astype(np.float32), index, rows)


def test_read_only_store_opens(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    everything = [store.path, *store.path.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert open_store(store.path).load_features().shape[0] == 150
    for path in everything:
        path.chmod(0o755)


def test_truth_of_the_frames_that_view_0_shows(tmp_path: Path) -> None:
    # Video v has 3 frames labelled v % 3, the last of them -1; frame_index 3 is past its end.
    truth = np.array(
        [(v, v % 3 if f < 2 else -1, f / 2) for v in range(150) for f in range(3)], TRUTH_DTYPE
    )
    data = encode_truth(truth)
    writer = create_store(tmp_path / "s", make_plan(truth=data), fixed_files(data))
    fill(writer, failed=(1,))
    writer.finalise()
    found = open_store(tmp_path / "s").frame_truth()
    assert found is not None
    assert found[0][5].tolist() == [2, 2, -1, -1]
    assert found[1][5].tolist() == [0.0, 0.5, 1.0, 0.0]
    assert found[0][1].tolist() == [-1] * 4
