"""TG-DFER from Python: read videos, extract features, train, and predict with trained networks.

Every function has an example; docs/python.md is a tour of all of them. ``import tgdfer`` is quick,
since functions import what they need when called. Run as a program, this is the command line.
"""

import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from cache.store import Store
    from pipeline.config import MethodConfig, Run
    from pipeline.datasets.videos import VideoList
    from pipeline.predict.predictor import Predictor
    from pipeline.train.halving import Trial
    from pipeline.train.record import Record
    from pipeline.train.records import Records
    from pipeline.train.trained import TrainedRun

__all__ = [
    "extract",
    "load",
    "load_method",
    "load_run",
    "open_store",
    "read_dataset",
    "read_runs",
    "train",
    "tune",
]


def _module_in_the_way() -> str:
    """Our packages are called ``cache``, ``pipeline`` and ``cli``; a user's own may hide them."""
    home = Path(__file__).resolve().parent
    for name in ("cache", "pipeline", "cli"):
        found = sys.modules.get(name) or find_spec(name)
        file = getattr(found, "__file__", None) or getattr(found, "origin", None)
        if file and home not in Path(file).resolve().parents:
            return (
                # Its folder may have a name that a terminal would obey.
                f"{repr(file)[1:-1]} is in the way: tgdfer has its own package {name}; rename "
                "that file, or start Python in another folder"
            )
    return ""


if _IN_THE_WAY := _module_in_the_way():
    if __name__ == "__main__":
        print(f"error: {_IN_THE_WAY}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_IN_THE_WAY)


def read_dataset(
    name: str = "faces",
    root: Path | str | None = None,
    annotation: Path | str | None = None,
    limit: int | None = None,
    source: str = "auto",
    texts: Path | str | None = None,
    folds: int | None = None,
    subjects: Path | str | None = None,
    by: str | None = None,
) -> "VideoList":
    """The videos of a data set with their labels and folds; ``faces`` is rendered on first use.

    The other arguments are the options of ``tgdfer extract``; docs/datasets.md has all data sets.

    >>> videos = tgdfer.read_dataset("dfew", root="/data/DFEW")
    """
    from cache.errors import RefusedError
    from pipeline.datasets.known import known_datasets
    from pipeline.datasets.read import survey_dataset, videos_of
    from pipeline.demo.faces import ensure_faces, faces_folder, named_spec

    if limit is not None and limit < 1:
        raise RefusedError(f"limit is {limit}, expected 1 or more")
    lists, own, seen = (Path(path) if path else None for path in (annotation, texts, subjects))
    if name in known_datasets() and not name.startswith("faces"):
        place = Path(root or f"data/{name}")
        survey = survey_dataset(name, place, lists, source, own, folds, seen, by)
        return videos_of(survey, limit)
    given = any((lists, own, folds, seen, by, source != "auto"))
    if given or not name.startswith("faces"):
        known = ", ".join(known_datasets())
        raise RefusedError(f"no data set {name} with these arguments; available: {known}")
    spec = named_spec(name)
    # In this process: a script without ``if __name__ == "__main__"`` cannot start others.
    return ensure_faces(Path(root or faces_folder(spec)), spec, workers=1, limit=limit)


def extract(
    videos: "VideoList",
    store: Path | str,
    encoder: str = "mini",
    pretrained: str | None = None,
    **settings: Any,
) -> "Store":
    """Encode every video once into a feature store, or resume filling it; returns the open store.

    ``settings`` are the fields of ``pipeline.extract.planning.ExtractSettings``.

    >>> store = tgdfer.extract(videos, "data/faces-mini.zarr", encoder="mini", views=5)
    """
    from pipeline.encoders.clip import find_encoder
    from pipeline.extract.loop import extract as fill
    from pipeline.extract.planning import ExtractSettings

    fill(videos, Path(store), find_encoder(encoder, pretrained), ExtractSettings(**settings))
    return open_store(store)


def open_store(store: Path | str) -> "Store":
    """A finished store: ``load_features()``, ``labels``, ``folds``, ``ids``, ``classes``, …

    >>> features_NVTD = tgdfer.open_store("data/faces-mini.zarr").load_features()
    """
    from cache.store import open_store as opened

    return opened(store)


def load_method(config: Path | str = "paper", settings: Sequence[str] = ()) -> "MethodConfig":
    """A preset or a TOML file, changed by ``KEY=VALUE`` settings.

    >>> method = tgdfer.load_method("paper", ["temporal.window=8", "optimiser.epochs=20"])
    """
    from pipeline.config import load_method as loaded

    return loaded(config, settings)


def train(
    store: "Store | Path | str",
    methods: "Sequence[MethodConfig] | MethodConfig | None" = None,
    folds: Sequence[str | int] | None = None,
    seeds: Sequence[int] | int = 1,
    runs: Path | str = "runs",
    device: str = "auto",
    workers: int = 0,
    features: str = "auto",
    allow_duplicates: bool = False,
    retrain_damaged: bool = False,
) -> "list[Record]":
    """Train every method on every fold with every seed; finished runs are only read.

    Raises DamagedError, before any training, if a finished run was damaged since; with
    ``retrain_damaged``, such a run is removed and trained again.

    On a CPU, ``workers`` processes share the work; 0 trains in this process, as needed in a script
    without ``if __name__ == "__main__"``. ``features`` says where these are kept: ``resident`` on
    the device, on the ``host``, or ``stream`` for those that are read from the store in every step;
    ``auto`` takes the first that fits. A fold that is tested on the bytes of a training video is
    refused unless ``allow_duplicates``.

    >>> records = tgdfer.train(store, [tgdfer.load_method("paper")], folds=["1"], seeds=[0, 1])
    """
    from pipeline.config import MethodConfig, runs_of
    from pipeline.device import device_kind
    from pipeline.train.records import Records

    store = open_store(store) if isinstance(store, str | Path) else store
    methods = [methods or MethodConfig()] if not isinstance(methods, Sequence) else methods
    names = [name for name, _, _ in store.folds] if folds is None else [*map(str, folds)]
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    wanted = [run for method in methods for run in runs_of(method, names, seeds)]
    records = Records(Path(runs), store, device_kind(device))
    _train(wanted, records, device, workers, features, allow_duplicates, retrain_damaged)
    return [record for run in wanted if (record := records.find(run)) is not None]


def tune(
    store: "Store | Path | str",
    base: "MethodConfig | None" = None,
    space: Path | str = "default",
    rungs: str = "48:10:2,16:30:3,5:90:5",
    fold: str | int | None = None,
    seed: int = 0,
    runs: Path | str = "runs",
    device: str = "auto",
    workers: int = 0,
    features: str = "auto",
    allow_duplicates: bool = False,
    retrain_damaged: bool = False,
) -> "tuple[MethodConfig, list[Trial]]":
    """Search for better settings by successive halving: (the best ones, all trials, best first).

    ``space`` is a TOML file of what may vary, ``rungs`` is TRIALS:EPOCHS:HOLDOUTS of each rung, and
    ``base`` the first trial. A trial's score is the mean of UAR and WAR, in [0, 1], on videos held
    out of the training part of ``fold``, by default the first; its test videos are never looked at.
    All are ordinary runs, so the same call resumes a search. The rest is as for ``train``.

    Raises RefusedError, before any training, for a search that the store cannot train.

    >>> best, trials = tgdfer.tune(store, rungs="9:10:2,3:30:2")
    >>> records = tgdfer.train(store, best)
    """
    from pipeline.config import MethodConfig
    from pipeline.device import device_kind
    from pipeline.train.grid import check_shapes
    from pipeline.train.halving import halve, parse_rungs, plan_search
    from pipeline.train.records import Records
    from pipeline.train.space import read_space

    opened = open_store(store) if isinstance(store, str | Path) else store
    chosen_fold = opened.folds[0][0] if fold is None else str(fold)
    search = plan_search(
        base or MethodConfig(),
        read_space(str(space)),
        chosen_fold,
        parse_rungs(rungs),
        seed,
        lambda wanted: check_shapes(wanted, opened),
    )
    records = Records(Path(runs), opened, device_kind(device))
    place = device, workers, features
    trials = halve(
        search,
        records,
        lambda wanted: _train(wanted, records, *place, allow_duplicates, retrain_damaged),
    )
    return search.chosen(trials[0].method), trials


def _train(
    wanted: "Sequence[Run]",
    records: "Records",
    device: str,
    workers: int,
    features: str,
    allow_duplicates: bool,
    retrain_damaged: bool,
) -> None:
    """Train those of the runs that are not finished; refuses what ``train`` refuses."""
    from cache.errors import DamagedError
    from pipeline.device import choose_device
    from pipeline.train.grid import check_runs, train_runs

    check_runs(wanted, records.store, allow_duplicates=allow_duplicates)
    records.sweep()
    _, damaged = records.settle_damaged(wanted, retrain_damaged)
    if damaged:
        remedy = "remove them yourself" if retrain_damaged else "pass retrain_damaged=True"
        raise DamagedError("; ".join([*(record.damage for record in damaged), remedy]))
    if records.pending(wanted):
        train_runs(wanted, records, choose_device(device), workers=workers, features=features)


def load_run(
    folder: Path | str, store: "Store | Path | str", device: str = "cpu", other_code: bool = False
) -> "TrainedRun":
    """The network of a finished run: ``predict(features_NTD)`` gives logits and frame logits.

    >>> predictions = tgdfer.load_run(records[0].folder, store).predict(features_NVTD[:, 0])
    """
    from pipeline.train.trained import load_run as loaded

    store = open_store(store) if isinstance(store, str | Path) else store
    return loaded(folder, store, device, other_code)


def load(
    *runs: Path | str,
    encoder: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    other_code: bool = False,
) -> "Predictor":
    """Finished runs, or files of ``tgdfer export``, with their encoder; several are an ensemble.

    ``predict(videos)`` gives the label, the probabilities and the influence of frames of videos,
    folders of images, folders of these or lists; with ``window`` and ``stride``, in seconds, of
    sliding windows as well. ``encoder`` says where the encoder is if its name does not.

    >>> video = tgdfer.load("model.tgdfer").predict("talk.mp4", window=2, stride=0.5)[0]
    """
    from pipeline.predict.predictor import load_predictor

    return load_predictor(runs, encoder, pretrained, device, other_code=other_code)


def read_runs(runs: Path | str = "runs") -> "pd.DataFrame":
    """All runs as a DataFrame: settings, fold, seed, scores, code.

    >>> tgdfer.read_runs("runs").query("code == 'this'").groupby("temporal.window").war.mean()
    """
    from pipeline.report.runs import read_runs as read

    return read(runs)


def main() -> None:
    """The command line, as ``tgdfer`` and ``python -m tgdfer`` start it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported: no traceback
    from cli.main import run

    run()


if __name__ == "__main__":
    main()
