"""The commands as users type them, from files on disk to the tables."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from cache.store import open_store
from cli.extract import _suggest_reuse
from pipeline.extract.planning import ExtractSettings
from support.commands import SMALL, tgdfer
from support.markdown import prose, tight
from support.tiny import FRAMES, make_store


@pytest.fixture(scope="module")
def place(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user's, with a small face set in DFEW's layout."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(faces, folder / "DFEW")
    return folder


@pytest.fixture(scope="module")
def extracted(place: Path) -> Path:
    options = ["--root", "DFEW", "--encoder", "mini", "--views", 2]
    done = tgdfer("extract", "--dataset", "dfew", *options, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "bottleneck" in done.stdout
    return place


def test_from_videos_to_the_ablation_table(extracted: Path) -> None:
    store = open_store(extracted / "data/dfew-mini.zarr")
    assert (len(store.ids), store.views, len(store.folds)) == (35, 2, 5)
    arguments = ["ablate", "table3", "--store", store.path, *SMALL]
    first = tgdfer(*arguments, cwd=extracted)
    assert first.returncode == 0, first.stderr
    assert "60 runs trained, 0 already finished" in first.stdout
    last = first.stderr.splitlines()[-1]
    assert last == f"next: tgdfer compare --store {store.path} --set optimiser.epochs=1"
    table = (extracted / "reports/ablation.md").read_bytes()
    assert b"Runs in every row: 5." in table
    asked = f"tgdfer ablate table3 --store {store.path} --set optimiser.epochs=1"
    assert f"- command: {asked}" in prose(table.decode())
    assert max(map(len, table.decode().splitlines())) <= 100
    assert (extracted / "reports/ablation.tex").exists()
    second = tgdfer(*arguments, cwd=extracted)
    assert "0 runs trained, 60 already finished" in second.stdout
    assert (extracted / "reports/ablation.md").read_bytes() == table


def test_varied_settings_become_a_table(extracted: Path) -> None:
    arguments = ["ablate", "--store", "data/dfew-mini.zarr", *SMALL, "--out", "varied"]
    done = tgdfer(*arguments, "--vary", "optimiser.lr=[0.01,0.02]", cwd=extracted)
    assert done.returncode == 0, done.stderr
    assert "| 1 | 0.01 |" in tight(done.stdout)
    assert "| 2 | 0.02 |" in tight(done.stdout)
    assert "--vary 'optimiser.lr=[0.01,0.02]'" in done.stdout
    nothing = tgdfer(*arguments, cwd=extracted)
    assert (nothing.returncode, "such as table3" in nothing.stderr) == (2, True)


def test_train_reports_every_fold_and_repeats_nothing(extracted: Path) -> None:
    arguments = ["train", "--cached", "--store", "data/dfew-mini.zarr", *SMALL, "--seeds", 2]
    first = tgdfer(*arguments, cwd=extracted)
    assert first.returncode == 0, first.stderr
    assert "mean ± sd" in first.stdout
    assert "n=10" in first.stdout
    assert "next: tgdfer ablate table3 --store data/dfew-mini.zarr" in first.stderr
    assert "0 runs trained, 10 already finished" in tgdfer(*arguments, cwd=extracted).stdout


def test_profile_names_the_bottleneck_and_leaves_a_trace(extracted: Path) -> None:
    source = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", 1]
    ways = {
        "train": (
            ["--store", "data/dfew-mini.zarr", "--fold", 1, "--set", "optimiser.batch=20"],
            4,
        ),
        "extract": ([*source, "--limit", 8], 3),
    }
    before = {path.name for path in extracted.iterdir()} | {"train.json", "extract.json"}
    for command, (options, stages) in ways.items():
        done = tgdfer(command, *options, "--profile", f"{command}.json", cwd=extracted)
        assert done.returncode == 0, done.stderr
        assert "% of the time of all stages)" in done.stdout
        trace = json.loads((extracted / f"{command}.json").read_text())
        names = {event["name"] for event in trace["traceEvents"]}
        assert len([name for name in names if name.startswith("stage: ")]) == stages
        assert any(name.startswith("aten::") for name in names)
    assert {path.name for path in extracted.iterdir()} == before


def test_compare_puts_the_methods_into_one_table(extracted: Path) -> None:
    arguments = ["compare", "--store", "data/dfew-mini.zarr", *SMALL, "--seeds", 1]
    done = tgdfer(*arguments, cwd=extracted)
    assert done.returncode == 0, done.stderr
    names = ["zero-shot, class names", "logistic regression, mean+max+std", "TG-DFER"]
    for name in [*names, "logit", "margin", "attention", "random", "uniform"]:
        assert f"| {name}" in done.stdout


def test_trial_of_the_first_videos_is_reused_by_all_of_them(extracted: Path) -> None:
    options = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", 2]
    trial = Path("data/dfew-mini-first20.zarr")
    shutil.move(extracted / "data/dfew-mini.zarr", extracted / "kept.zarr")
    assert tgdfer("extract", *options, "--limit", 20, cwd=extracted).returncode == 0
    assert len(open_store(extracted / trial).ids) == 20
    plain = tgdfer("extract", *options, cwd=extracted)
    assert f"--reuse {trial}" in plain.stderr
    assert "has the features of 20 of the videos" in plain.stderr
    reusing = ["--reuse", trial, "--store", "again.zarr"]
    again = tgdfer("extract", *options, *reusing, cwd=extracted)
    assert "19 done now, 16 reused" in again.stdout, again.stderr
    digests = {open_store(extracted / n).digest for n in ("again.zarr", "kept.zarr")}
    assert digests == {open_store(extracted / "data/dfew-mini.zarr").digest}


def test_only_the_faces_asked_for_are_rendered_and_none_before_the_encoder_is_found(
    tmp_path: Path,
) -> None:
    cache = {"TGDFER_CACHE": str(tmp_path / "cache")}

    def extract(*options: object) -> subprocess.CompletedProcess[str]:
        command = ["extract", "--limit", 15, "--views", 1, *options]
        return tgdfer(*command, cwd=tmp_path, env=cache)

    refused = extract("--encoder", "ViT-B-23")
    assert refused.returncode == 2, refused.stderr
    assert "rendering" not in refused.stderr
    assert not (tmp_path / "cache").exists()
    done = extract()
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cache").glob("faces-*")
    assert f"rendering 15 videos of faces into {folder}" in done.stderr
    assert len(list((folder / "Clip/original").iterdir())) == 15
    assert "rendering" not in extract().stderr
    canary = ["store", "verify", "data/faces-mini-first15.zarr", "--canary", 2]
    again = tgdfer(*canary, cwd=tmp_path, env=cache)
    assert again.stdout.count(": identical") == 2, again.stderr
    assert len(list((folder / "Clip/original").iterdir())) == 15


def test_only_a_shard_asked_for_is_a_shard_and_a_finished_one_says_so(place: Path) -> None:
    source = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", 1]
    command = ["extract", *source, "--limit", 20, "--store", "shards.zarr"]
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    for _ in range(2):  # the second time there is nothing left to do
        done = tgdfer(*command, "--shard", "auto", cwd=place, env=slurm)
        assert done.returncode == 0, done.stderr
        assert "this shard is done, nothing is left for it; 1 of 2 blocks" in done.stdout
    whole = tgdfer(*command, cwd=place, env=slurm)
    assert whole.returncode == 0, whole.stderr
    assert open_store(place / "shards.zarr").digest in whole.stdout


def test_finished_store_is_not_extracted_again(extracted: Path) -> None:
    before = open_store(extracted / "data/dfew-mini.zarr").digest
    options = ["--root", "DFEW", "--encoder", "mini", "--views", 2]
    done = tgdfer("extract", "--dataset", "dfew", *options, cwd=extracted)
    assert done.returncode == 0
    assert "0 done now" in done.stdout
    assert before in done.stdout


def test_store_of_another_encoder_is_refused_with_the_fields_side_by_side(
    extracted: Path,
) -> None:
    options = ["--root", "DFEW", "--encoder", "mini", "--views", 2, "--frames", 8]
    done = tgdfer("extract", "--dataset", "dfew", *options, cwd=extracted)
    assert done.returncode == 2
    assert "in the store" in done.stderr
    assert "asked for" in done.stderr


def test_unreadable_video_is_named_and_the_others_are_kept(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "DFEW")
    video = sorted((tmp_path / "DFEW/Clip/original").glob("*.mp4"))[3]
    video.write_bytes(b"")
    for folder in (tmp_path / "DFEW/Clip").iterdir():
        if folder.name != "original":
            folder.rename(tmp_path / folder.name)
    options = ["--root", "DFEW", "--encoder", "mini", "--views", 1]
    done = tgdfer("extract", "--dataset", "dfew", *options, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    listed = (tmp_path / "data/dfew-mini.zarr.failed.txt").read_text().splitlines()
    assert len(listed) == 1
    assert listed[0].startswith(video.stem)
    assert done.stdout.rstrip().endswith("data/dfew-mini.zarr.failed.txt")
    assert list(open_store(tmp_path / "data/dfew-mini.zarr").missing) == [video.stem]
    refused = tgdfer("train", "--store", "data/dfew-mini.zarr", *SMALL, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--allow-missing" in refused.stderr
    options = ["--store", "data/dfew-mini.zarr", "--fold", "1", "--allow-missing"]
    assert tgdfer("train", *options, *SMALL, cwd=tmp_path).returncode == 0


def test_training_without_a_store_from_the_command_line(place: Path) -> None:
    options = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--fold", "1"]
    options += ["--limit", "20"]
    done = tgdfer("train", "--no-cached", *options, *SMALL, "--runs", "live", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "1 run trained, 0 already finished" in done.stdout
    tuned = [*SMALL, "--set", "optimiser.lr_encoder=1e-5", "--set", "optimiser.micro_batch=12"]
    done = tgdfer("train", "--no-cached", *options, *tuned, "--runs", "live", cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(list((place / "live").glob("*/encoder/open_clip_model.safetensors"))) == 1


def test_training_a_model_of_timm_without_a_store_from_the_command_line(place: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    save_file(state, place / "timm.safetensors")
    options = ["--dataset", "dfew", "--root", "DFEW", "--fold", "1", "--frames", 1, *SMALL]
    options += ["--encoder", "timm:test_efficientnet", "--pretrained", "timm.safetensors"]
    options += ["--limit", 14]
    done = tgdfer("train", "--no-cached", *options, "--runs", "timm", cwd=place)
    assert done.returncode == 2
    assert "use what needs no texts: another head, such as" in done.stderr
    options += ["--set", "head.kind=mlp", "--set", "optimiser.lr_encoder=1e-3"]
    done = tgdfer("train", "--no-cached", *options, "--runs", "timm", cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(list((place / "timm").glob("*/encoder/model.safetensors"))) == 1


def test_damaged_neighbour_is_not_suggested_for_reuse_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_store(tmp_path / "x-first3.zarr").path
    settings = ExtractSettings(frames=FRAMES)
    _suggest_reuse(tmp_path / "x.zarr", settings)
    assert "x-first3.zarr has the features of 150 of the videos" in capsys.readouterr().err
    (whole / "plan.json").write_text("{")
    _suggest_reuse(tmp_path / "x.zarr", settings)
    assert capsys.readouterr().err == ""
