"""The options that commands share, and the checks that refuse them before anything is loaded."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from cache.errors import RefusedError
from cache.remote import StorePath, store_path

DATASETS = (
    *("faces", "dfew", "ferv39k", "mafw", "caer", "crema-d", "ravdess", "afew", "enterface"),
    *("folders", "list"),
)
RULES = ("segments", "dfer-clip"), ("standard", "dfer-clip")  # of sampling, of augmentation
DEVICES = ("auto", "cpu", "cuda")
FACES = ("auto", "whole", "crop", "aligned")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
RESIDENCES = ("auto", "resident", "host", "stream")
ENGINES = ("local", "slurm", "ray")
LOGGERS = ("tensorboard", "trackio")  # and the names of their packages and extras
INFLUENCES = ("logit", "margin", "probability", "attention", "attention_value")
DEFAULT_CONFIG = "paper"
DEFAULT_STORE, DEFAULT_RUNS, DEFAULT_OUT = (
    Path("data/faces-mini.zarr"),
    Path("runs"),
    Path("reports"),
)
LOGS = Path("logs")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name; empty if no known name is near.

    >>> did_you_mean("table33", ["table3", "views"])
    '; did you mean table3?'
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def expect(what: str, name: str, known: Sequence[str]) -> None:
    """Raise RefusedError, with the nearest known name, for an unknown name."""
    if name not in known:
        listed = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise RefusedError(f"{what} {name}: expected {listed}{did_you_mean(name, known)}")


def refuse_unread(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Refuse options that were given although the chosen mode does not read them.

    ``names`` are parameters of the command; ``why`` says which mode reads them.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    given = [options[name] for name in names if name in options and _is_given(context, name)]
    if given:
        raise RefusedError(f"{', '.join(given)}: {why}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def _one_of(option: str, known: Sequence[str]) -> dict[str, Any]:
    """Keywords that check an option's value, and complete it in the shell."""

    def check(value: str | None) -> str | None:
        if value is not None:
            expect(option, value, known)
        return value

    return {"callback": check, "autocompletion": lambda: list(known)}


def is_rendered(dataset: str) -> bool:
    """Whether a data set is one of ours."""
    return dataset == "faces" or dataset.startswith("faces-")


def expect_dataset(name: str) -> None:
    """Raise RefusedError for an unknown data set."""
    if name != "faces" and is_rendered(name):
        from pipeline.demo.faces import named_spec

        named_spec(name)
    else:
        expect("--dataset", name, DATASETS)


def _check_dataset(name: str | None) -> str | None:
    if name is not None:
        expect_dataset(name)
    return name


def _check_device(value: str) -> str:
    from pipeline.device import check_device

    return check_device(value)


def complete_presets() -> list[str]:
    from pipeline.config import PRESETS

    return list(PRESETS)


def check_config(value: str) -> str:
    """A preset's name or the path of a file; raises RefusedError for anything else."""
    if not Path(value).exists():
        expect("configuration", value, [*complete_presets(), "an existing TOML file"])
    return value


def check_configs(values: list[str]) -> list[str]:
    """Several of what ``check_config`` accepts, with different names."""
    names = [Path(check_config(value)).stem for value in values]
    if len(set(names)) < len(names):
        raise RefusedError(f"--config: two are named alike: {', '.join(names)}; rename a file")
    return values


def _check_engine(value: str) -> str:
    if not Path(value).is_file():
        expect("--engine", value, [*ENGINES, "an existing TOML file"])
    return value


def _check_logger(value: str | None) -> str | None:
    if value is not None:
        expect("--log", value, LOGGERS)
        if find_spec(value) is None:
            raise RefusedError(f"--log {value} needs {value}: pip install 'tgdfer[{value}]'")
    return value


def _tables() -> list[str]:
    from pipeline.report.tables import TABLES

    return list(TABLES)


def _check_tables(values: list[str] | None) -> list[str] | None:
    for value in values or []:
        expect("table", value, _tables())
    return values


def _store_argument(metavar: str, help_text: str) -> Any:
    # Every store is parsed, so that a URL is refused rather than taken for a relative path.
    return typer.Argument(parser=store_path, metavar=metavar, help=help_text)


@dataclass(frozen=True)
class Data:
    """The videos that the options of a command name."""

    dataset: str
    root: Path | None = None
    annotation: Path | None = None
    source: str = "auto"
    texts: Path | None = None
    folds: int | None = None
    subjects: Path | None = None
    by: str | None = None

    @property
    def unread_by_faces(self) -> list[str]:
        """Options that a rendered data set does not read, of those that were given."""
        given = {
            "--annotation": self.annotation is not None,
            "--source": self.source != "auto",
            "--texts": self.texts is not None,
            "--folds": self.folds is not None,
            "--subjects": self.subjects is not None,
            "--by": self.by is not None,
        }
        return [name for name, is_given in given.items() if is_given]


def _dataset(default: bool | str = True) -> Any:
    return typer.Option(
        "--dataset",
        metavar="NAME",
        help="faces (embedded, rendered on first use), faces-mid-seed7 and the like, or one of "
        "those that tgdfer data list shows.",
        show_default=default,
        callback=_check_dataset,
        autocompletion=lambda: list(DATASETS),
    )


def _encoder(default: bool | str) -> Any:
    return typer.Option(
        "--encoder",
        metavar="NAME",
        help="mini (bundled), an open_clip model, local-dir:FOLDER, timm:MODEL, or a 3-D CNN, "
        "torchvision:MODEL/FRAMES or cnn3d:MODEL/FRAMES; with texts read by a CLIP, "
        "timm:MODEL+CLIP.",
        show_default=default,
    )


# The data.
DatasetOption = Annotated[str, _dataset()]
NamedDatasetOption = Annotated[str, _dataset(False)]
StoresDatasetOption = Annotated[str | None, _dataset("the store's own")]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="Folder of the data set.",
        show_default="data/DATASET, for faces the user's cache folder",
    ),
]
AnnotationOption = Annotated[
    Path | None,
    typer.Option(
        "--annotation", metavar="DIR|FILE", help="Lists of the data set, if not in the root."
    ),
]
SourceOption = Annotated[
    str,
    typer.Option(
        "--source",
        metavar="DIR",
        help="Which copy of the frames or videos to take: a folder, or the end of its path.",
    ),
]
TextsOption = Annotated[
    Path | None,
    typer.Option("--texts", metavar="FILE", help="Texts of the classes, if they are your own."),
]
FoldsOption = Annotated[
    int | None,
    typer.Option(
        "--folds",
        metavar="N",
        min=2,
        max=100,
        help="Draw N folds, for a data set that has no split.",
    ),
]
SubjectsOption = Annotated[
    Path | None,
    typer.Option(
        "--subjects", metavar="FILE", help="List of video,subject: who is seen in each video."
    ),
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="NAME",
        help="subject: the N folds replace those of the data set, and nobody is in two.",
        **_one_of("--by", ("subject",)),
    ),
]
FramesOption = Annotated[
    int, typer.Option("--frames", metavar="N", min=1, help="Frames per view, or segments.")
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=1,
        max=10**9,
        help="Use only N videos: the first, or if these lack a class or a part of a fold, some of "
        "each.",
    ),
]

# The encoder.
EncoderOption = Annotated[str | None, _encoder("mini for faces, else ViT-B-32-quickgelu")]
StoresEncoderOption = Annotated[str | None, _encoder("the store's own")]
PretrainedOption = Annotated[
    str | None,
    typer.Option(
        "--pretrained",
        metavar="TAG|FILE",
        help="Weights: a tag of open_clip, a file, or a folder with one.",
        show_default="openai",
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="auto, fp32, bf16 or fp16.",
        **_one_of("--precision", PRECISIONS),
    ),
]

SamplingOption = Annotated[
    str,
    typer.Option(
        "--sampling",
        metavar="NAME",
        help="Frames of training views: segments of real length, or dfer-clip's of whole frames.",
        **_one_of("--sampling", RULES[0]),
    ),
]
AugmentationOption = Annotated[
    str,
    typer.Option(
        "--augmentation",
        metavar="NAME",
        help="Of training views: standard, or dfer-clip (crop and flip only).",
        **_one_of("--augmentation", RULES[1]),
    ),
]

# The faces.
FacesOption = Annotated[
    str,
    typer.Option(
        "--faces",
        metavar="NAME",
        help="whole frames; crop: the face of each person; aligned: turned and scaled by its eyes, "
        "nose and mouth; auto: crop, unless the videos are face crops already.",
        **_one_of("--faces", FACES),
    ),
]
ExtractFacesOption = Annotated[
    str,
    typer.Option(
        "--faces",
        metavar="NAME",
        help="whole frames; crop: the largest and longest shown face; aligned: turned and scaled "
        "by its eyes, nose and mouth.",
        **_one_of("--faces", FACES[1:]),
    ),
]

# The store.
StoreOption = Annotated[
    StorePath,
    typer.Option(
        "--store",
        parser=store_path,
        metavar="PATH|URL",
        help="Feature store made by extract, or a copy at s3://, https://, zip://.",
    ),
]
AlsoOption = Annotated[
    list[StorePath],
    typer.Option(
        "--also",
        parser=store_path,
        metavar="PATH|URL",
        help="Another store of the same videos, for table encoders; repeatable.",
    ),
]
NewStoreOption = Annotated[
    StorePath | None,
    typer.Option(
        "--store",
        parser=store_path,
        metavar="PATH",
        help="Feature store.",
        show_default="data/DATASET-ENCODER.zarr, with --faces NAME …-NAME, with --limit N …-firstN",
    ),
]
StoreArgument = Annotated[StorePath, _store_argument("STORE", "Feature store, or its URL.")]
LocalStoreArgument = Annotated[StorePath, _store_argument("STORE", "Feature store.")]
StoreAArgument = Annotated[StorePath, _store_argument("A", "Feature store, or its URL.")]
StoreBArgument = Annotated[StorePath, _store_argument("B", "Feature store, or its URL.")]
MissingOption = Annotated[
    bool, typer.Option("--allow-missing", help="Train without the videos that have no features.")
]
DuplicatesOption = Annotated[
    bool,
    typer.Option(
        "--allow-duplicates", help="Train although a fold is tested on videos it is trained on."
    ),
]

# The runs and their tables.
ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        metavar="PRESET|FILE",
        help="A preset (see tgdfer config list) or a TOML file.",
        callback=check_config,
        autocompletion=complete_presets,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting (see tgdfer config show); repeatable.",
    ),
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", metavar="N", min=1, max=100, help="Seeds 0 to N-1 for every fold.")
]
RunsOption = Annotated[
    Path, typer.Option("--runs", metavar="DIR", help="Folder that holds one folder per run.")
]
RunOption = Annotated[
    list[Path],
    typer.Option(
        "--run",
        metavar="RUN|FILE",
        help="Folder of a finished run (see tgdfer runs), or a file of tgdfer export; repeatable.",
    ),
]
OtherEncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="Where the encoder of the runs is, if its name does not say: local-dir:FOLDER.",
        show_default="the one that the runs name",
    ),
]
InfluenceOption = Annotated[
    str,
    typer.Option(
        "--influence",
        metavar="NAME",
        help="How much a frame speaks for the label: logit, margin, probability, attention or "
        "attention_value.",
        **_one_of("--influence", INFLUENCES),
    ),
]
OtherCodeOption = Annotated[
    bool, typer.Option("--other-code", help="Also use runs that other code has trained.")
]
RetrainOption = Annotated[
    bool,
    typer.Option("--retrain-damaged", help="Remove runs whose files are damaged, and train them."),
]
LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        metavar="NAME",
        help="Also log every finished run: tensorboard, or trackio on this machine; below logs/.",
        callback=_check_logger,
        autocompletion=lambda: list(LOGGERS),
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the tables.")]
TablesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="table1 to table6, views, influence, input, without, imbalance, long, text, "
        "robustness, population, encoders.",
        show_default=False,
        callback=_check_tables,
        autocompletion=_tables,
    ),
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        "--rows",
        metavar="NAME,NAME|list",
        help="Only these rows; no others are trained, so that differences to others need their "
        "finished runs. list shows the names.",
        show_default="all",
    ),
]
VaryOption = Annotated[
    list[str],
    typer.Option("--vary", metavar="KEY=[V1,V2]", help="Add a table of these values; repeatable."),
]

# The machine.
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu or cuda.",
        callback=_check_device,
        autocompletion=lambda: list(DEVICES),
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        max=1024,
        help="Decoding threads, or training processes on a CPU.",
        show_default="one per usable core",
    ),
]
FeaturesOption = Annotated[
    str,
    typer.Option(
        "--features",
        metavar="WHERE",
        help="Where training keeps them: resident on the device, on the host, or stream, which "
        "reads them from the store in every step; auto takes the first that fits.",
        **_one_of("--features", RESIDENCES),
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME|FILE",
        help="Where the work is done: local, on this machine; slurm, as jobs; ray, on a Ray "
        "cluster; or as a TOML file says in [engine].",
        callback=_check_engine,
        autocompletion=lambda: list(ENGINES),
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        max=1024,
        help="GPUs to use at a time.",
        show_default="all of this machine",
    ),
]
EngineSetOption = Annotated[
    list[str],
    typer.Option(
        "--engine-set",
        metavar="KEY=VALUE",
        help="tasks=N at a time; for slurm, an option of sbatch, such as partition=gpu; for ray, "
        "address=HOST:PORT, num-cpus=N, num-gpus=N, memory=BYTES or accelerator-type=NAME; "
        "repeatable.",
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="TRACE",
        help="Profile a small part of the work, write a trace of it, and keep nothing else.",
    ),
]
