"""Finished runs and their encoder -> a bundle, its model card and, if asked for, an ONNX graph."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.errors import RefusedError
from cache.files import write_files
from pipeline.evaluate.statistics import Sample, bootstrap
from pipeline.predict.bundle import SUFFIX, Network, write_bundle
from pipeline.predict.card import write_card
from pipeline.predict.graph import write_graph
from pipeline.predict.predictor import assemble, find_own_encoder
from pipeline.train.record import Record, check_finished
from pipeline.train.trained import read_checkpoint


@dataclass(frozen=True)
class Exported:
    """Where the parts of an export are."""

    bundle: Path
    card: Path
    graph: Path | None


def exported_files(path: Path, onnx: bool = False) -> Exported:
    """The files of an export: FILE.tgdfer and what is beside it, or a folder as model hubs want it.

    Raises RefusedError for another suffix, and if one of the files exists.
    """
    path = Path(os.path.abspath(path))  # so that its folder has a name
    if path.suffix not in ("", SUFFIX):
        raise RefusedError(
            f"{path}: the name of a bundle ends in {SUFFIX}; add it, or name a folder"
        )
    bundle = path if path.suffix else path / f"model{SUFFIX}"
    card = path.with_suffix(".md") if path.suffix else path / "README.md"
    graph = bundle.with_suffix(".onnx") if onnx else None
    for place in filter(None, (bundle, card, graph)):
        if place.exists() or place.is_symlink():
            raise RefusedError(f"{place} exists; remove it, or choose another name")
    return Exported(bundle, card, graph)


def export(
    runs: Sequence[Path],
    path: Path,
    with_encoder: bool = False,
    onnx: bool = False,
    encoder: str | None = None,
    pretrained: str | None = None,
    other_code: bool = False,
) -> Exported:
    """Write the networks of finished runs to a new bundle, and a model card beside it.

    With ``onnx`` also their ensemble as an ONNX graph. Errors as in ``exported_files``,
    ``load_predictor`` and ``write_graph``.
    """
    files = exported_files(path, onnx)
    checkpoints = [read_checkpoint(run, other_code) for run in runs]
    own_encoder = find_own_encoder(checkpoints[0], encoder, pretrained)
    predictor = assemble(checkpoints, own_encoder, "cpu", "auto")
    if files.graph is not None:
        write_graph(files.graph, predictor.networks, predictor.data)
    records = [check_finished(run) for run in runs]
    about = list(map(_about, records))
    card = write_card(checkpoints, records, about, with_encoder)
    loaded = predictor.encoder
    write_bundle(files.bundle, predictor.networks, loaded, checkpoints, about, card, with_encoder)
    write_files({files.card: card.encode()}, files.card.parent)
    return files


def _about(record: Record) -> Network:
    _, labels, predicted = record.predictions()
    sample = Sample(labels, predicted, range(len(labels)))
    scores = bootstrap(sample, len(record.metadata["classes"]))
    uar, war = (score.text(".1f", 100) for score in scores)
    return Network(
        name=record.folder.name,
        run=record.run.model_dump(mode="json"),
        trained_on=record.metadata.get("data", ""),
        test_videos=len(labels),
        uar=uar,
        war=war,
    )
