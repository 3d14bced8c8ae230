"""What every command promises: help, suggestions, examples, completion, early refusals."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.main import app
from support.commands import python, tgdfer
from support.stores import random_store

WRONG = {
    "trian": "Did you mean 'train'?",
    "store verfy s.zarr": "Did you mean 'verify'?",
    "train --stroe s.zarr": "--store",
    "train --seeds 0": "--seeds",
    "train --config papr": "did you mean paper?",
    "train --store none.zarr": "no store at none.zarr; make one with: tgdfer extract",
    "train --store s.zarr --set temporal.windw=3": "did you mean temporal.window",
    "train --store s.zarr --set temporal.window=20": "do not cover 16 frames",
    "train --store s.zarr --fold 8": "has no fold 8; it has 1, 2, 3, 4, 5",
    "train --store s.zarr --fold 8 --profile t.json": "has no fold 8; it has 1, 2, 3, 4, 5",
    "train --store s.zarr --device tpu": "--device tpu: expected auto, cpu or cuda",
    "train --store missing.zarr": "1 of 14 videos have no features",
    "train --root DFEW": "--root: not used with --cached",
    "train --dataset dfew --limit 9": "--dataset, --limit: not used with --cached",
    "train --no-cached --store s.zarr": "--store: not used with --no-cached",
    "train --no-cached --profile t.json": "--profile: not used with --no-cached",
    "train --store s.zarr --profile t.json --workers 2": "--workers: not used with --profile",
    "train --no-cached --precision fp61": "did you mean fp16?",
    "train --store s.zarr --engine slrum": "expected local, slurm, ray or an existing "
    "TOML file; did you mean slurm?",
    "train --store s.zarr --engine-set partition=gpu": "partition=gpu is a setting of a cluster",
    "train --store s.zarr --device cpu --gpus 2": "--gpus 2: not read with --device cpu",
    "train --no-cached --engine slurm": "--engine: not used with --no-cached",
    "train --store s.zarr --log tensorbord": "expected tensorboard or trackio; did you mean "
    "tensorboard?",
    "train --store s.zarr --log tensorboard": "pip install 'tgdfer[tensorboard]'",
    "ablate table3 --store s.zarr --log trackio": "pip install 'tgdfer[trackio]'",
    "compare --store s.zarr --engine slurm": "--device auto is of this machine; say what the nodes",
    "ablate table3 --engine slurm --device cpu --workers 2": "use --engine-set tasks=N",
    "ablate table3 --engine slurm --device cpu --engine-set gpu": "expected KEY=VALUE, such as "
    "partition=gpu",
    "train --engine ray --device cuda:0": "--device cuda:0 is of this machine; say what the nodes",
    "train --engine ray --device cpu --engine-set partition=gpu": "expected KEY=VALUE, such as "
    "tasks=8; the keys are tasks, address, num-cpus, num-gpus, memory, accelerator-type",
    "train --engine ray --device cpu --engine-set address=ray://head": "expected HOST:PORT of "
    "a cluster that this machine is part of",
    "train --engine slurm --device cpu --engine-set tasks=0": "expected a number of tasks",
    "extract --engine slurm --device cpu --shard 0/2": "--shard: not read with --engine or --gpus",
    "ablate table33": "table table33: expected table1, table2, table3, table4, table5, table6, "
    "views, influence, input, without, imbalance, long, text, robustness, population, encoders or "
    "heads; did you mean table3?",
    "ablate --store s.zarr": "such as table3",
    "ablate table3 --rows A --store s.zarr": "no row A; did you mean a? --rows list shows",
    "report table3 --rows A --store s.zarr": "no row A; did you mean a? --rows list shows",
    "report --rows a --store s.zarr": "--rows: read only with a table",
    "ablate --vary label.top_k=3 --store s.zarr": "expected KEY=[VALUE, VALUE, ...]",
    "compare --store none.zarr": "no store at none.zarr",
    "compare paper": "compare paper: expected another setting, run or table to compare it with",
    "compare papr tuned --store s.zarr": "did you mean paper?",
    "compare paper tuned --search-baseline": "--search-baseline: not read where A is compared with",
    "compare empty s.zarr --seeds 2": "--seeds: not read where finished runs are compared",
    "compare empty s.zarr --store s.zarr": "empty: no finished run here",
    "compare none.json nine.json": "none.json",
    "compare --store twice.zarr": "video 00000 is tested in 2 folds, light-1, dark-1; use tgdfer "
    "ablate",
    "train --store foldless.zarr": "no fold has both training and test videos among these 14; "
    "extract with a larger --limit",
    "tune --store foldless.zarr": "no fold has both training and test videos among these 14",
    "compare --store s.zarr --set label.pooling=max": "label.pooling",
    "compare --store s.zarr --leave-one-out --set input.frames=1": "use 2 frames or more",
    "report --store s.zarr --device cpu": "runs: no run of s.zarr by this code; train some with: "
    "tgdfer train --cached",
    "report --store s.zarr --seeds 2": "--seeds: read only with a table",
    "report table3 --store s.zarr --root nowhere": "--root nowhere: no such folder",
    "report table3 --store none.zarr": "no store at none.zarr",
    "extract --dataset dfwe": "--dataset dfwe: expected faces, dfew, ferv39k, mafw, caer, crema-d, "
    "ravdess, afew, enterface, folders or list; did you mean dfew?",
    "extract --dataset dfew --encoder mini --root nowhere": "nowhere",
    "extract --dataset dfew --encoder mini --root empty": "empty",
    "extract --device tpu": "--device tpu: expected auto, cpu or cuda",
    "extract --pretrained openai": "--pretrained: not read with --encoder mini",
    "extract --folds 5 --source original": "--source, --folds: not read with --dataset faces",
    "extract --sampling dferclip": "expected segments or dfer-clip; did you mean dfer-clip?",
    "extract --augmentation none": "--augmentation none: expected standard or dfer-clip",
    "extract --folds 5 --by subjct": "--by subjct: expected subject; did you mean subject?",
    "data check --dataset dfew --root empty --by subject": "empty: the folder is empty",
    "extract --by subject --subjects s.csv": "--subjects, --by: not read with --dataset faces",
    "extract --dataset caer --root empty --encoder mini": "empty: the folder is empty",
    "extract --dataset caer --annotation lists": "--annotation: not read with --dataset caer",
    "data check --dataset faces": "--dataset faces: it is rendered here",
    "data check --dataset list --root nowhere": "nowhere: no such folder",
    "data list dfwe": "data set dfwe: expected faces",
    "data init empty": "empty: the folder is empty",
    "extract --annotation lists": "--annotation: not read with --dataset faces",
    "extract --profile t.json --store t.zarr": "--store: not read with --profile",
    "extract --store s.zarr/plan.json/t.zarr": "plan.json is a file, expected a directory",
    "extract --shard 4/4": "--shard 4/4: expected I/N with 0 <= I < N",
    "extract --shard auto": "neither a task of a SLURM array nor a process of torchrun",
    "extract --encoder ViT-B32": "did you mean one of ViT-B-32",
    "ablate --vary optimser.lr=[1,2] --store s.zarr": "did you mean optimiser.lr?",
    "runs --runs other prune": "tgdfer runs prune --runs DIR",
    "extract --reuse none.zarr": "no store at none.zarr",
    "store verify s.zarr --root DFEW": "--root: read only with --canary",
    "config show papr": "configuration papr: expected paper, equations, dfer-clip, tuned or an "
    "existing TOML file; did you mean paper?",
    "predict none.mp4 --run none": "no video at none.mp4",
    "predict empty --run none": "holds neither videos nor folders of images",
    "predict s.zarr/plan.json --run none": "no finished run here",
    "predict s.zarr/plan.json --run s.zarr/plan.json": "plan.json is no bundle",
    "predict s.zarr/plan.json --run none --stride 1": "stride is not read without window",
    "predict s.zarr/plan.json --run none --window 1 --stride 2": "frames between the windows",
    "predict none.mp4 --run none --faces corp": "--faces corp: expected auto, whole, crop or "
    "aligned; did you mean crop?",
    "extract --faces auto": "--faces auto: expected whole, crop or aligned",
    "faces none.mp4 --out new": "no video at none.mp4",
    "faces none.mp4 --out new --faces whole": "--faces whole: expected crop or aligned",
    "predict s.zarr/plan.json --run none --influence logits": "did you mean logit?",
    "predict s.zarr/plan.json --run none --overlay": "--overlay: read only with --out DIR",
    "demo": "no demonstration bundle at data/demo.tgdfer; make it with: make demo",
    "demo --run none": "no finished run here",
    "export none new.tgdfer": "no finished run here",
    "evaluate --run none --store s.zarr": "no finished run here",
    "config lst": "Did you mean 'list'?",
    "store inspect none.zarr": "no store at none.zarr",
    "extract --views 1000000000": "views is 1000000000, expected 1 to 1000",
    "extract --frames 1001": "frames is 1001, expected 1 to 1000",
    "extract --batch-frames 160000000": "batch_frames is 160000000, expected 1 to 65536",
    "extract --seed 99999999999999999999": "seed is 99999999999999999999, expected 0 to 4294967295",
    "extract --decode-seconds inf": "decode_seconds is inf, expected 0.1 to 86400",
    "extract --limit 0": "--limit",
    "extract --limit 10000000000000000000000": "--limit",
    "extract --workers 1000000000": "--workers",
    f"extract --shard 0/{'1' * 5000}": "expected I/N with 0 <= I < N",
    "extract --shard ٠/٢": "expected I/N with 0 <= I < N",
    "train --seeds 1000000000000": "--seeds",
    "train --device cuda:x": "--device cuda:x: expected auto, cpu or cuda",
    "train --device cuda:-1": "--device cuda:-1: expected auto, cpu or cuda",
    "train --device cpu:9": "--device cpu:9: expected auto, cpu or cuda",
    "train --store s.zarr --set label.top_k=17 --set label.pooling=top_k": "label.top_k=17 is more "
    "than the 16 frames of a video",
    f"ablate --vary optimiser.lr={[*range(1, 202)]} --store s.zarr".replace(
        ", ", ","
    ): "201 combin",
    f"train --config {'a' * 300}": "File name too long",
    f"store inspect {'a/' * 3000}": "no store at a/a/",
    f"runs list --runs {'a/' * 3000}": "File name too long",
    f"extract --dataset dfew --encoder mini --root {'a' * 300}": "File name too long",
    "store inspect s.zarr/plan.json": "s.zarr/plan.json is not a feature store",
}

# Runs the commands one after the other in one fresh process, where no logger is installed, and says
# what each came to.
RUN_ALL = """
import contextlib, io, json, sys
from cli.main import run
sys.modules |= {"tensorboard": None, "trackio": None}
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["tgdfer", *arguments]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            run()
        except SystemExit as error:
            found.append((error.code, said.getvalue(), "torch" in sys.modules))
print(json.dumps(found))
"""


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    group = group or typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if hasattr(command, "commands"):
            found += commands(command, (*path, name))
    return found


def examples(command: Any) -> list[str]:
    """Lines of a command's help that call tgdfer."""
    lines = (line.strip() for line in (command.help or "").splitlines())
    return [line for line in lines if line.startswith("tgdfer ")]


def test_wrong_arguments_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    random_store(tmp_path / "s.zarr", videos=14)
    random_store(tmp_path / "foldless.zarr", videos=14, folds=0)
    twice = dict.fromkeys(("light-1", "dark-1"), (range(7, 14), range(7)))
    random_store(tmp_path / "twice.zarr", videos=14, folds=twice)
    random_store(tmp_path / "missing.zarr", videos=14, missing=(3,))
    words = json.dumps([wrong.split() for wrong in WRONG])
    done = python("-c", RUN_ALL, words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(WRONG)
    for (wrong, message), (code, said, torch_loaded) in zip(WRONG.items(), found, strict=True):
        assert (code, torch_loaded) == (2, False), (wrong, said)
        assert message in said, wrong
        assert "Traceback" not in said
    stores = ["foldless.zarr", "missing.zarr", "s.zarr", "twice.zarr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", *stores]


def test_every_example_is_one_line_that_the_command_understands(tmp_path: Path) -> None:
    shown = 0
    for path, command in commands():
        narrow = tgdfer(*path, "-h", cwd=tmp_path, env={"COLUMNS": "50"}).stdout
        lines = [line.strip() for line in narrow.splitlines()]
        for example in examples(command):
            words = shlex.split(example.partition(" > ")[0])[1:]
            assert example in lines
            if not hasattr(command, "commands"):
                assert tuple(words[: len(path)]) == path
                command.make_context(path[-1], words[len(path) :]).close()
            shown += 1
        if not hasattr(command, "commands"):
            assert examples(command), path
    assert shown > 15


def test_help_and_version_have_their_usual_names(tmp_path: Path) -> None:
    short, long = tgdfer("-h", cwd=tmp_path), tgdfer("--help", cwd=tmp_path)
    assert short.stdout == long.stdout
    assert short.stdout.startswith("Usage: tgdfer [OPTIONS] COMMAND")
    assert tgdfer("store", "inspect", "-h", cwd=tmp_path).returncode == 0
    assert tgdfer("--version", cwd=tmp_path).stdout.startswith("tgdfer 0.")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("tgdfer tra", ["train"]),
        ("tgdfer train --see", ["--seeds"]),
        ("tgdfer train --config e", ["equations"]),
        ("tgdfer ablate table", [f"table{n}" for n in range(1, 7)]),
        ("tgdfer extract --precision f", ["fp32", "fp16"]),
    ],
)
def test_bash_completes(tmp_path: Path, typed: str, expected: list[str]) -> None:
    completion = {
        "_TGDFER_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    assert tgdfer(cwd=tmp_path, env=completion).stdout.split() == expected
    source = tgdfer(cwd=tmp_path, env={"_TGDFER_COMPLETE": "source_bash"}).stdout
    assert "_TGDFER_COMPLETE=complete_bash" in source


def test_nothing_is_coloured_or_boxed(tmp_path: Path) -> None:
    for arguments in (["-h"], ["train", "-h"], ["train", "--stroe"], ["ablate", "table33"]):
        colour = {"FORCE_COLOR": "1", "NO_COLOR": "1"}
        done = python("-m", "tgdfer", *arguments, cwd=tmp_path, env=colour)
        assert (done.stdout + done.stderr).isascii()
        assert "\x1b" not in done.stdout + done.stderr


def test_terminals_that_cannot_show_a_character_get_another(tmp_path: Path) -> None:
    script = (
        "import sys; from cli.show import escape_output\n"
        "escape_output()\n"
        "print('82.9 ± 1.2, 1–2, a…, 2×2, −1, 日'); print('±', file=sys.stderr)"
    )
    done = python("-c", script, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "82.9 +- 1.2, 1-2, a..., 2x2, -1, \\u65e5\n"
    assert done.stderr == "+-\n"
