"""Stage one as a whole: exact, resumable, and honest about what it could not read."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from cache.check import plan_repair
from cache.chunks import chunk_name
from cache.errors import RefusedError
from cache.files import sha256_file
from cache.plan import VideoStatus, read_plan
from cache.store import open_store, status
from cache.writer import check_same
from cli.extract import extract as extract_command
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.extract.loop import Summary, extract
from pipeline.extract.planning import (
    ExtractSettings,
    default_store,
    make_plan,
    parse_shard,
    suited_block,
)
from pipeline.extract.reencode import compare_reencoded
from pipeline.extract.repair import repair_store, settings_of
from pipeline.video.frames import read_frames
from pipeline.video.sampling import middle_of_segments
from pipeline.video.views import fit_for_evaluation
from support.commands import environment
from support.sources import listed, write_encoder, write_list
from support.tiny import store_bytes

COUNT = 70  # five blocks
SETTINGS = ExtractSettings(views=2, batch_frames=64, device="cpu", workers=2)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 70 videos and an encoder."""
    folder = tmp_path_factory.mktemp("extract")
    (folder / "videos").mkdir()
    write_list(folder / "videos", COUNT)
    write_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def videos(here: Path) -> VideoList:
    return listed(here)


@pytest.fixture(scope="module")
def whole(here: Path, videos: VideoList) -> Path:
    """A store made without interruption."""
    run(here, videos, here / "whole.zarr")
    return here / "whole.zarr"


def run(
    here: Path, videos: VideoList, store: Path, settings: ExtractSettings = SETTINGS
) -> Summary:
    return extract(videos, store, find_encoder(f"local-dir:{here / 'encoder'}"), settings)


def test_cached_features_equal_features_computed_directly(
    here: Path, videos: VideoList, whole: Path
) -> None:
    """mp4 and jpg folders by turns; the plain loop has no threads, views, blocks or store."""
    encoder = Encoder(find_encoder(f"local-dir:{here / 'encoder'}"), "cpu", "auto")
    store = open_store(whole)
    cached, index = store.load_features([0])[:, 0], store.load_frame_index()[:, 0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for first in range(0, 64, 4):  # 4 videos x 16 frames = one batch of 64
        batch = []
        for row in range(first, first + 4):
            frames: dict[int, np.ndarray] = {}
            found = read_frames(videos.videos[row].path, range, frames.__setitem__)
            chosen = middle_of_segments(found.frames, 16)
            np.testing.assert_array_equal(index[row], chosen)
            for i in chosen:
                image_CHW = torch.from_numpy(frames[i].copy()).permute(2, 0, 1)
                batch.append(fit_for_evaluation(image_CHW, encoder.files.preprocessing))
        direct = encoder.encode(torch.stack(batch)).numpy().reshape(4, 16, -1)
        np.testing.assert_array_equal(cached[first : first + 4], direct)
    torch.set_num_threads(threads)


def test_store_knows_the_list_the_encoder_and_the_sources(whole: Path, videos: VideoList) -> None:
    store = open_store(whole)
    assert store.ids == tuple(video.id for video in videos.videos)
    assert store.load_features().shape == (COUNT, 2, 16, 16)
    assert np.isfinite(store.load_features()).all()
    assert not np.array_equal(store.load_features([0]), store.load_features([1]))
    assert store.identity.encoder.activation == "QuickGELU"
    rows = [
        VideoStatus.model_validate(row) for row in json.loads((whole / "rows" / "0.0").read_bytes())
    ]
    assert len({row.sha256 for row in rows}) == 16
    assert store.text_config["text_cfg"]["width"] == 8


def test_finished_store_is_returned_without_torch(here: Path, whole: Path) -> None:
    code = SCRIPT + "\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run(command(here, whole, code), check=True, env=environment())


def test_workers_shards_and_order_do_not_change_the_store(
    here: Path, videos: VideoList, whole: Path
) -> None:
    other = here / "shards.zarr"
    for i in (1, 0):
        settings = replace(SETTINGS, shard=(i, 2), workers=1 + 2 * i)
        for _ in range(2):  # the second time there is nothing left to do
            summary = run(here, videos, other, settings)
            assert (summary.digest is None) == (i == 1)
            assert summary.shard_done
    assert store_bytes(other) == store_bytes(whole)


@pytest.mark.slow
def test_views_added_later_equal_views_made_at_once(
    here: Path, videos: VideoList, whole: Path
) -> None:
    other = here / "grown.zarr"
    run(here, videos, other, replace(SETTINGS, views=1))
    run(here, videos, other)
    ours, theirs = open_store(other), open_store(whole)
    assert np.array_equal(ours.load_features(), theirs.load_features())
    assert np.array_equal(ours.load_frame_index(), theirs.load_frame_index())


def test_failed_video_is_recorded_once_and_leaves_the_others_alone(
    here: Path, videos: VideoList, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"<html>404</html>")
    broken = list(videos.videos)
    broken[5] = replace(broken[5], path=tmp_path / "bad.mp4")
    summary = run(here, replace(videos, videos=tuple(broken)), tmp_path / "s.zarr")
    assert list(summary.failures) == [broken[5].id]
    store = open_store(tmp_path / "s.zarr")
    assert store.missing == summary.failures
    assert "not a video" in store.missing[broken[5].id]
    kept = np.arange(COUNT) != 5
    np.testing.assert_array_equal(
        store.load_features()[kept], open_store(whole).load_features()[kept]
    )
    assert np.isnan(store.load_features()[5]).all()


def test_annotation_of_another_length_is_a_failure(
    here: Path, videos: VideoList, tmp_path: Path
) -> None:
    first = replace(videos.videos[0], frame_labels=np.zeros(3, np.int8))
    summary = run(here, replace(videos, videos=(first, *videos.videos[1:3])), tmp_path / "s.zarr")
    assert "its annotation describes 3" in summary.failures[first.id]


def test_store_of_other_settings_is_refused_side_by_side(
    here: Path, videos: VideoList, whole: Path
) -> None:
    with pytest.raises(RefusedError, match=r"batch_frames +64 +32"):
        run(here, videos, whole, replace(SETTINGS, batch_frames=32))
    files = find_encoder(f"local-dir:{here / 'encoder'}")
    pixels = files.preprocessing.model_copy(update={"interpolation": "bilinear"})
    with pytest.raises(RefusedError) as refused:
        extract(videos, whole, replace(files, preprocessing=pixels), SETTINGS)
    assert "preprocessing.interpolation  bicubic" in str(refused.value)
    assert "encoder" not in str(refused.value)
    other = find_encoder(write_encoder(here / "other", dim=8))
    with pytest.raises(RefusedError, match=r"(?s)encoder.name +local-dir:encoder +local-dir:other"):
        extract(videos, whole, other, SETTINGS)


def test_number_of_videos_is_part_of_the_plan(
    here: Path, videos: VideoList, tmp_path: Path
) -> None:
    run(here, videos.first(3), tmp_path / "s.zarr")
    assert len(open_store(tmp_path / "s.zarr").ids) == 3
    with pytest.raises(RefusedError, match=r"number of ids +3 +4") as refused:
        run(here, videos.first(4), tmp_path / "s.zarr")
    assert f"same command with --store OTHER --reuse {tmp_path / 's.zarr'}" in str(refused.value)
    with pytest.raises(RefusedError, match="choose another --store, or use the settings"):
        run(here, videos.first(2), tmp_path / "s.zarr")


def test_a_store_of_other_rules_is_not_continued_but_may_be_trained_from(whole: Path) -> None:
    plan = read_plan(whole)
    older = plan.identity.model_copy(update={"view_rule": "1"})
    with pytest.raises(RefusedError, match=r"(?s)view_rule.*train from it as it is, or choose"):
        check_same(whole, plan.model_copy(update={"identity": older}), plan)


def test_a_store_holds_the_names_of_its_rules_and_is_repaired_by_them(
    here: Path, videos: VideoList
) -> None:
    files = find_encoder(f"local-dir:{here / 'encoder'}")
    asked = replace(SETTINGS, sampling="dfer-clip", augmentation="dfer-clip")
    (plan, _), (other, _) = (make_plan(videos, files, own) for own in (asked, SETTINGS))
    assert plan.identity.training_frames == "uniform_in_whole_segments"
    assert plan.identity.view_rule == "dfer-clip 1: crop(0.08..1, 3/4..4/3) flip(0.5)"
    assert settings_of(plan, SETTINGS) == asked
    assert settings_of(other, asked) == SETTINGS
    with pytest.raises(RefusedError, match=r"(?s)training_frames +uniform_in_whole_.*choose anoth"):
        check_same(here, plan, other)
    with pytest.raises(RefusedError, match=r"sampling is 'x', expected segments or dfer-clip"):
        replace(SETTINGS, sampling="x")


@pytest.mark.slow
def test_blocks_of_another_store_are_reused_and_give_the_same_store(
    here: Path, videos: VideoList, whole: Path, tmp_path: Path
) -> None:
    files = find_encoder(f"local-dir:{here / 'encoder'}")
    few = replace(SETTINGS, views=1)
    run(here, videos.first(50), tmp_path / "few.zarr", few)
    shorter = open_store(tmp_path / "few.zarr")
    summary = extract(videos, tmp_path / "s.zarr", files, SETTINGS, reuse=shorter)
    # Three whole blocks of 16, of which view 1 is still to be extracted.
    assert (summary.reused, summary.progress.videos) == (48, COUNT)
    assert store_bytes(tmp_path / "s.zarr") == store_bytes(whole)
    summary = extract(videos, tmp_path / "t.zarr", files, SETTINGS, reuse=open_store(whole))
    assert (summary.reused, summary.progress.videos) == (COUNT, 0)
    assert store_bytes(tmp_path / "t.zarr") == store_bytes(whole)


def test_only_features_that_would_be_the_same_are_reused(
    here: Path, videos: VideoList, whole: Path, tmp_path: Path
) -> None:
    files = find_encoder(f"local-dir:{here / 'encoder'}")

    def reused(store: str, listed: tuple[Video, ...]) -> int:
        other = replace(videos, videos=listed)
        return extract(other, tmp_path / store, files, SETTINGS, reuse=open_store(whole)).reused

    # Four videos make a batch; moved by four, each keeps its place in one.
    assert reused("batch", videos.videos[4:20]) == 16
    assert reused("place", videos.videos[1:17]) == 0
    changed = list(videos.videos[:32])
    changed[3] = replace(changed[3], path=videos.videos[5].path)
    assert reused("bytes", tuple(changed)) == 16
    changed[20] = replace(changed[20], path=here / "gone.mp4")
    assert reused("gone", tuple(changed)) == 0
    (tmp_path / "no image/1.jpg").mkdir(parents=True)  # no image, but named like one
    changed[20] = replace(changed[20], path=tmp_path / "no image")
    assert reused("odd", tuple(changed)) == 0
    longer = replace(videos.videos[0], frame_labels=np.zeros(3, np.int8))
    assert reused("truth", (longer, *videos.videos[1:16])) == 0


def test_store_of_other_settings_is_not_reused(
    here: Path, videos: VideoList, whole: Path, tmp_path: Path
) -> None:
    files = find_encoder(f"local-dir:{here / 'encoder'}")
    other = replace(SETTINGS, seed=1)
    with pytest.raises(RefusedError, match=r"(?s)--reuse .*seed +0 +1"):
        extract(videos, tmp_path / "s.zarr", files, other, reuse=open_store(whole))
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_from_before_tensors_were_hashed_is_continued_repaired_compared_and_reused(
    here: Path, videos: VideoList, tmp_path: Path
) -> None:
    files, old = find_encoder(f"local-dir:{here / 'encoder'}"), tmp_path / "old.zarr"
    weights = sha256_file(files.weights_path)
    hashed = files.hashed_like(files.identity.model_copy(update={"weights_sha256": weights}))
    few, one = videos.first(32), replace(SETTINGS, views=1)
    digest = extract(few, old, hashed, one).digest
    assert open_store(old).identity.encoder.weights_sha256 == weights
    assert extract(few, old, files, one).digest == digest
    grown = extract(few, old, files, SETTINGS).digest
    assert (open_store(old).identity.encoder.weights_sha256, grown == digest) == (weights, False)
    chunk = old / chunk_name("features", 0, 1)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    assert repair_store(plan_repair(old), few, files, SETTINGS).digest == grown
    store = open_store(old)
    (again,) = compare_reencoded(store, few, Encoder(files, "cpu", "auto"), 1)
    assert again.identical
    summary = extract(videos, tmp_path / "new.zarr", files, SETTINGS, reuse=store)
    assert summary.reused == 32
    other = here / "changed" / "encoder"
    write_encoder(other, seed=1)
    for command in (
        lambda: extract(few, old, find_encoder(f"local-dir:{other}"), SETTINGS),
        lambda: repair_store(plan_repair(old), few, find_encoder(f"local-dir:{other}"), SETTINGS),
    ):
        with pytest.raises(RefusedError, match=rf"weights_sha256 +{weights} +{'[0-9a-f]' * 64}"):
            command()


def test_store_is_named_by_data_set_encoder_and_number_of_videos() -> None:
    names = {
        ("faces", "mini", None): "faces-mini",
        ("dfew", "ViT-B-32-quickgelu", 100): "dfew-ViT-B-32-quickgelu-first100",
        ("dfew", "local-dir:/x/foo/", None): "dfew-foo",
        ("dfew", "hf-hub:a/b", None): "dfew-hf-hub-a-b",
    }
    for asked, name in names.items():
        assert default_store(*asked) == Path(f"data/{name}.zarr")
    assert default_store("list", "mini", 9, "crop") == Path("data/list-mini-crop-first9.zarr")


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RefusedError, match="multiple of frames"):
        ExtractSettings(batch_frames=50)
    for text in ("4/4", "half", "-1/2"):
        with pytest.raises(RefusedError, match=f"--shard {text}: expected I/N with 0 <= I < N"):
            parse_shard(text, {})


@pytest.mark.parametrize("wrong", [{"precision": "fp8"}, {"device": "gpu"}, {"views": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=r"fp8|gpu|views is 0"):
        ExtractSettings(**wrong)


def test_shard_is_taken_from_the_environment_only_where_asked_to() -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert parse_shard("0/1", slurm) == (0, 1)
    assert parse_shard("auto", slurm | {"RANK": "1", "WORLD_SIZE": "3"}) == (2, 4)
    assert parse_shard("auto", {"RANK": "1", "WORLD_SIZE": "3"}) == (1, 3)
    from_one = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}
    assert parse_shard("auto", slurm | from_one) == (1, 4)
    by_twos = {"SLURM_ARRAY_TASK_MAX": "6", "SLURM_ARRAY_TASK_STEP": "2"}
    assert parse_shard("auto", slurm | by_twos) == (1, 4)
    with pytest.raises(RefusedError, match="the SLURM array has gaps; give --shard I/N"):
        parse_shard("auto", slurm | {"SLURM_ARRAY_TASK_MAX": "9"})
    with pytest.raises(RefusedError, match="neither a task of a SLURM array nor a process"):
        parse_shard("auto", {"SLURM_ARRAY_TASK_ID": "2"})


def test_blocks_hold_whole_batches_and_small_sets_spread_over_several() -> None:
    assert [suited_block(videos, 2) for videos in (60, 1023, 1024)] == [16, 16, 64]
    assert suited_block(60, 32) == 32
    assert suited_block(5000, 3) == 63


def test_store_keeps_the_block_size_it_was_begun_with(
    here: Path, videos: VideoList, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.extract.loop.suited_block", lambda videos, batch: 32)
    run(here, videos, here / "large.zarr", replace(SETTINGS, views=1))
    monkeypatch.undo()
    run(here, videos, here / "large.zarr")
    large, small = open_store(here / "large.zarr"), open_store(whole)
    assert (large.plan.block_videos, small.plan.block_videos) == (32, 16)
    assert large.identity == small.identity
    np.testing.assert_array_equal(large.load_features(), small.load_features())


SCRIPT = """
import sys
from pathlib import Path
from support.sources import listed
from pipeline.encoders.clip import find_encoder
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
here = Path(sys.argv[1])
settings = ExtractSettings(views=2, batch_frames=64, device="cpu", workers=2)
say = lambda progress: print(progress.videos, flush=True)
encoder = find_encoder(f"local-dir:{here / 'encoder'}")
summary = extract(listed(here), Path(sys.argv[2]), encoder, settings, say)
"""


def command(here: Path, store: Path, code: str = SCRIPT) -> list[str]:
    return [sys.executable, "-c", code, str(here), str(store)]


def start(here: Path, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(here, store), stdout=subprocess.PIPE, text=True, env=environment()
    )


def lines(process: subprocess.Popen[str]) -> Iterator[int]:
    assert process.stdout is not None
    for line in process.stdout:
        yield int(line)


def test_first_signal_finishes_the_block(here: Path, whole: Path) -> None:
    other = here / "stopped.zarr"
    process = start(here, other)
    next(done for done in lines(process) if done >= 10)
    process.send_signal(signal.SIGTERM)
    rest = list(lines(process))
    assert process.wait() == 0
    assert rest[-1] == 16
    assert status(other).done == 1
    run(here, listed(here), other)
    assert store_bytes(other) == store_bytes(whole)


def test_command_exits_3_and_lists_what_failed_last(here: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "[").mkdir(parents=True)
    shutil.copy(listed(here).videos[0].path, own / "good.mp4")
    (own / "empty.mp4").write_bytes(b"")
    (own / "[/b].mp4").write_bytes(b"no video")  # the name of this one is rich markup
    rows = ["path,label,split", "good.mp4,happy,train", "empty.mp4,sad,test", "[/b].mp4,sad,test"]
    (own / "list.csv").write_text("\n".join(rows))
    app = typer.Typer()
    app.command()(extract_command)
    store = tmp_path / "s.zarr"
    options = ["--dataset", "list", "--root", str(own), "--views", "1"]
    options += ["--encoder", f"local-dir:{here / 'encoder'}"]
    result = CliRunner().invoke(app, [*options, "--store", str(store)])
    assert result.exit_code == 3, result.output
    assert "2 without features" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(str(tmp_path / "s.zarr.failed.txt"))
    listed_failures = (tmp_path / "s.zarr.failed.txt").read_text().splitlines()
    assert listed_failures == ["[/b]\tnot a video: begins with b'no video'", "empty\t0 bytes"]
    # The list replaces a link of its name, and stops nothing if it cannot be written.
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "s.zarr.failed.txt").unlink()
    (tmp_path / "s.zarr.failed.txt").symlink_to(tmp_path / "victim")
    again = CliRunner().invoke(app, [*options, "--store", str(store)])
    assert again.exit_code == 3
    assert (tmp_path / "s.zarr.failed.txt").read_text().splitlines() == listed_failures
    assert (tmp_path / "victim").read_text() == "mine"
    (tmp_path / "s.zarr.failed.txt").unlink()
    (tmp_path / "s.zarr.failed.txt").mkdir()
    again = CliRunner().invoke(app, [*options, "--store", str(store)])
    assert again.exit_code == 3
    assert "s.zarr.failed.txt, cannot be written or removed (" in again.output
