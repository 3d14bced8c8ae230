"""The house: one order of files, imports only upward, a command line that opens quickly."""

import ast
from functools import cache
from pathlib import PurePath

from support.commands import ROOT, python

# The rooms, one floor above the other; "pipeline" means the files in that folder itself.
FLOORS = [
    "cache",
    "pipeline",
    "pipeline/engines",
    "pipeline/datasets",
    "pipeline/kernels",
    "pipeline/video",
    "pipeline/encoders",
    "pipeline/extract",
    "pipeline/model",
    "pipeline/model/heads",
    "pipeline/evaluate",
    "pipeline/train",
    "pipeline/report",
    "pipeline/predict",
    "pipeline/demo",
    "cli",
    ".",
]
STAGE_TWO = ("pipeline/model/", "pipeline/evaluate/", "pipeline/train/", "pipeline/report/")
STAGE_ONE = ("pipeline/video/", "pipeline/encoders/", "pipeline/extract/", "pipeline/demo/")
DECODERS = {"av", "PIL", "simplejpeg", "cv2", "torchvision"}

# A file may import only files above it.
ORDER = [
    "cache/errors.py",
    "cache/local.py",
    "cache/outside.py",
    "cache/remote.py",
    "cache/files.py",
    "cache/identity.py",
    "cache/columns.py",
    "cache/plan.py",
    "cache/chunks.py",
    "cache/journal.py",
    "cache/manifest.py",
    "cache/writer.py",
    "cache/store.py",
    "cache/lookup.py",
    "cache/check.py",
    "cache/migrate.py",
    "cache/hdf5.py",
    "pipeline/config.py",
    "pipeline/device.py",
    "pipeline/interrupt.py",
    "pipeline/resources.py",
    "pipeline/profile.py",
    "pipeline/archive.py",
    "pipeline/weights.py",
    "pipeline/show.py",
    "pipeline/markdown.py",
    "pipeline/engines/task.py",
    "pipeline/engines/local.py",
    "pipeline/engines/slurm.py",
    "pipeline/engines/ray.py",
    "pipeline/engines/choose.py",
    "pipeline/datasets/texts.py",
    "pipeline/datasets/videos.py",
    "pipeline/datasets/known.py",
    "pipeline/datasets/tree.py",
    "pipeline/datasets/rows.py",
    "pipeline/datasets/labels.py",
    "pipeline/datasets/sheet.py",
    "pipeline/datasets/survey.py",
    "pipeline/datasets/truth.py",
    "pipeline/datasets/folds.py",
    "pipeline/datasets/named.py",
    "pipeline/datasets/dfew.py",
    "pipeline/datasets/ferv39k.py",
    "pipeline/datasets/mafw.py",
    "pipeline/datasets/caer.py",
    "pipeline/datasets/crema_d.py",
    "pipeline/datasets/ravdess.py",
    "pipeline/datasets/afew.py",
    "pipeline/datasets/enterface.py",
    "pipeline/datasets/folders.py",
    "pipeline/datasets/list.py",
    "pipeline/datasets/subjects.py",
    "pipeline/datasets/read.py",
    "pipeline/datasets/check.py",
    "pipeline/datasets/template.py",
    "pipeline/kernels/gather_triton.py",
    "pipeline/kernels/gather.py",
    "pipeline/kernels/windows_triton.py",
    "pipeline/kernels/windows.py",
    "pipeline/kernels/head_triton.py",
    "pipeline/kernels/head.py",
    "pipeline/kernels/pixels_triton.py",
    "pipeline/kernels/pixels.py",
    "pipeline/video/sampling.py",
    "pipeline/video/images.py",
    "pipeline/video/frames.py",
    "pipeline/video/isolated.py",
    "pipeline/video/detector.py",
    "pipeline/video/tracks.py",
    "pipeline/video/crops.py",
    "pipeline/video/augmentation.py",
    "pipeline/video/warp.py",
    "pipeline/video/on_device.py",
    "pipeline/video/views.py",
    "pipeline/encoders/timm_models.py",
    "pipeline/encoders/torchvision_models.py",
    "pipeline/encoders/c3d.py",
    "pipeline/encoders/i3d.py",
    "pipeline/encoders/p3d.py",
    "pipeline/encoders/cnn3d_models.py",
    "pipeline/encoders/resnet.py",
    "pipeline/encoders/clip.py",
    "pipeline/extract/overlaps.py",
    "pipeline/extract/readings.py",
    "pipeline/extract/planning.py",
    "pipeline/extract/reuse.py",
    "pipeline/extract/block.py",
    "pipeline/extract/loop.py",
    "pipeline/extract/shards.py",
    "pipeline/extract/live.py",
    "pipeline/extract/repair.py",
    "pipeline/extract/reencode.py",
    "pipeline/extract/imported.py",
    "pipeline/model/layers.py",
    "pipeline/model/temporal.py",
    "pipeline/model/packing.py",
    "pipeline/model/text_tower.py",
    "pipeline/model/prompts.py",
    "pipeline/model/label.py",
    "pipeline/model/scaling.py",
    "pipeline/model/bag.py",
    "pipeline/model/network.py",
    "pipeline/model/tgdfer.py",
    "pipeline/model/heads/mlp.py",
    "pipeline/model/heads/recurrent.py",
    "pipeline/model/heads/encoder.py",
    "pipeline/model/heads/cliper.py",
    "pipeline/model/heads/grace.py",
    "pipeline/model/heads/m3dfel.py",
    "pipeline/model/heads/s2d.py",
    "pipeline/model/heads/snippets.py",
    "pipeline/model/heads/vadclip.py",
    "pipeline/model/heads/nr_dfernet.py",
    "pipeline/model/heads/dpcnet.py",
    "pipeline/model/heads/aen.py",
    "pipeline/model/heads/logo_former.py",
    "pipeline/model/heads/choose.py",
    "pipeline/evaluate/metrics.py",
    "pipeline/evaluate/classes.py",
    "pipeline/evaluate/calibration.py",
    "pipeline/evaluate/statistics.py",
    "pipeline/evaluate/influence.py",
    "pipeline/evaluate/predictions.py",
    "pipeline/evaluate/baselines.py",
    "pipeline/evaluate/localisation.py",
    "pipeline/evaluate/segments.py",
    "pipeline/train/residence.py",
    "pipeline/train/features.py",
    "pipeline/train/imbalance.py",
    "pipeline/train/batches.py",
    "pipeline/train/optimisers.py",
    "pipeline/train/average.py",
    "pipeline/train/schedule.py",
    "pipeline/train/step.py",
    "pipeline/train/split.py",
    "pipeline/train/selection.py",
    "pipeline/train/state.py",
    "pipeline/train/stack.py",
    "pipeline/train/code.py",
    "pipeline/train/record.py",
    "pipeline/train/records.py",
    "pipeline/train/watched.py",
    "pipeline/train/leaks.py",
    "pipeline/train/cost.py",
    "pipeline/train/placement.py",
    "pipeline/train/grid.py",
    "pipeline/train/trained.py",
    "pipeline/train/space.py",
    "pipeline/train/halving.py",
    "pipeline/train/regressions.py",
    "pipeline/train/rates.py",
    "pipeline/report/written.py",
    "pipeline/report/runs.py",
    "pipeline/report/logged.py",
    "pipeline/report/tables.py",
    "pipeline/report/rules.py",
    "pipeline/report/reported.py",
    "pipeline/report/ablation.py",
    "pipeline/report/forms.py",
    "pipeline/report/versus.py",
    "pipeline/report/versus_tables.py",
    "pipeline/report/curves.py",
    "pipeline/report/comparison.py",
    "pipeline/report/tuning.py",
    "pipeline/report/answer.py",
    "pipeline/report/pooled.py",
    "pipeline/report/figures.py",
    "pipeline/report/contents.py",
    "pipeline/report/page.py",
    "pipeline/predict/sources.py",
    "pipeline/predict/windows.py",
    "pipeline/predict/people.py",
    "pipeline/predict/bundle.py",
    "pipeline/predict/features.py",
    "pipeline/predict/prediction.py",
    "pipeline/predict/predictor.py",
    "pipeline/predict/elsewhere.py",
    "pipeline/predict/pictures.py",
    "pipeline/predict/thumbnails.py",
    "pipeline/predict/overlay.py",
    "pipeline/predict/written.py",
    "pipeline/predict/output.py",
    "pipeline/predict/graph.py",
    "pipeline/predict/card.py",
    "pipeline/predict/export.py",
    "pipeline/demo/face.py",
    "pipeline/demo/conditions.py",
    "pipeline/demo/people.py",
    "pipeline/demo/faces.py",
    "pipeline/demo/newcomers.py",
    "pipeline/demo/train_mini.py",
    "cli/show.py",
    "cli/options.py",
    "cli/progress.py",
    "cli/profile.py",
    "cli/training.py",
    "cli/accounting.py",
    "cli/data.py",
    "cli/extract.py",
    "cli/store.py",
    "cli/train.py",
    "cli/ablate.py",
    "cli/compare.py",
    "cli/report.py",
    "cli/runs.py",
    "cli/config.py",
    "cli/tune.py",
    "cli/predict.py",
    "cli/faces.py",
    "cli/export.py",
    "cli/evaluate.py",
    "cli/demo.py",
    "cli/doctor.py",
    "cli/main.py",
    "tgdfer.py",
]


@cache
def files_on_disk() -> set[str]:
    found = [path for room in ("cache", "pipeline", "cli") for path in (ROOT / room).rglob("*.py")]
    names = {path.relative_to(ROOT).as_posix() for path in found if path.name != "__init__.py"}
    return {*names, "tgdfer.py"}


def name_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


@cache
def modules_of(path: str) -> set[str]:
    """Whatever ``path`` imports, also inside functions and for types only."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@cache
def imports_of(path: str) -> set[str]:
    """Files of ours among them."""
    return {f"{name.replace('.', '/')}.py" for name in modules_of(path)} & files_on_disk()


def reached_from(path: str) -> set[str]:
    """Files that ``path`` imports, that these import, and so on."""
    found, new = {path}, {path}
    while new:
        new = set().union(*map(imports_of, new)) - found
        found |= new
    return found


def test_every_file_has_its_place() -> None:
    assert sorted(files_on_disk()) == sorted(ORDER)


def test_files_import_only_files_above_them() -> None:
    place = {path: number for number, path in enumerate(ORDER)}
    downward = [
        (path, other) for path in ORDER for other in imports_of(path) if place[other] >= place[path]
    ]
    assert downward == []


def test_rooms_are_floors() -> None:
    floors = [FLOORS.index(str(PurePath(path).parent)) for path in ORDER]
    assert floors == sorted(floors)


def test_cache_imports_nothing_of_ours() -> None:
    for path in ORDER:
        if path.startswith("cache/"):
            assert all(other.startswith("cache/") for other in imports_of(path)), path


def test_stage_two_reaches_no_decoder_and_nothing_of_stage_one() -> None:
    for path in ORDER:
        if path.startswith(STAGE_TWO):
            for other in reached_from(path):
                assert not other.startswith(STAGE_ONE), path
                assert not {name.partition(".")[0] for name in modules_of(other)} & DECODERS, other


def test_stage_two_as_imported_has_loaded_no_decoder_and_nothing_of_stage_one() -> None:
    modules = [name_of(path) for path in ORDER if path.startswith(STAGE_TWO)]
    stage_one = [name_of(path) for path in ORDER if path.startswith(STAGE_ONE)]
    script = (
        f"import sys, {', '.join(modules)}\n"
        f"print(sorted({{*{stage_one}, *{sorted(DECODERS)}}} & set(sys.modules)))"
    )
    done = python("-c", script)
    assert done.stdout == "[]\n", done.stderr


def test_demo_is_imported_by_the_command_line_and_the_python_api_only() -> None:
    for path in ORDER:
        if not path.startswith(("pipeline/demo/", "cli/", "tgdfer.py")):
            assert not any(other.startswith("pipeline/demo/") for other in imports_of(path)), path


def test_no_test_file_imports_another() -> None:
    tests = {path.stem for path in (ROOT / "tests").rglob("test_*.py")} | {"conftest", "tests"}
    for path in (ROOT / "tests").rglob("*.py"):
        names = {part for name in modules_of(str(path)) for part in name.split(".")}
        assert not names & tests, path


def test_functions_are_short() -> None:
    # A kernel is one program, which Triton compiles as a whole.
    allowed = {("pipeline/kernels/windows_triton.py", "_backward")}
    for path in ORDER:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.FunctionDef) and (path, node.name) not in allowed:
                body = node.body[bool(ast.get_docstring(node)) :] or node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_help_imports_neither_torch_nor_zarr() -> None:
    script = (
        "import sys; sys.argv = ['tgdfer', '--help']\n"
        "from cli.main import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'zarr', 'open_clip', 'sklearn', 'pandas', 'matplotlib'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = python("-c", script)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "extract" in done.stdout


def test_readme_names_the_two_commands_that_continuous_integration_and_users_run() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make ablation-table" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert len(readme.splitlines()) < 150


def test_git_does_not_ignore_the_cache_package() -> None:
    lines = (ROOT / ".gitignore").read_text().split()
    assert not {"cache", "cache/", "/cache", "/cache/"} & set(lines)


def test_pins_name_no_address() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, equals, version = line.partition("==")
        assert name, line
        assert equals, line
        assert version.replace(".", "").replace("post", "").isalnum(), line
