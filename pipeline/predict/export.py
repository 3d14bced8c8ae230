"""Finished runs and their encoder -> a bundle and its model card."""

import os
from collections.abc import Sequence
from pathlib import Path

from cache.errors import RefusedError
from cache.files import write_files
from pipeline.evaluate.statistics import Sample, bootstrap
from pipeline.predict.bundle import SUFFIX, Network, write_bundle
from pipeline.predict.predictor import assemble, find_own_encoder
from pipeline.show import markdown_line, show
from pipeline.train.record import Record, check_finished
from pipeline.train.trained import Checkpoint, read_checkpoint

_CARD = """---
library_name: tgdfer
pipeline_tag: video-classification
---
# Facial expressions in videos, TG-DFER

- classes: {classes}
- encoder: {encoder}
- input: {input}, on which a face fills the picture
- several networks: the mean of their probabilities; their disagreement is the doubt

## Scores

Each network on the test videos of its own fold, which it was not trained on. Intervals are 95 %,
over videos; where a person is seen in several of them, they are too narrow.

{scores}

## What was not measured

Nothing but these scores was measured here: not other data sets (see tgdfer evaluate), not the
ensemble of the networks, not groups of people by age, sex or skin, not videos that are not cropped
to a face. An expression is what a face shows, not what a person feels.

## Use

    tgdfer predict VIDEO --run FILE.tgdfer
"""


def check_new(path: Path) -> None:
    """Refuse a file that is not a new bundle."""
    if path.suffix != SUFFIX:
        raise RefusedError(f"{path}: the name of a bundle ends in {SUFFIX}; add it")
    for place in (path, card_path(path)):
        if place.exists() or place.is_symlink():
            raise RefusedError(f"{place} exists; remove it, or choose another name")


def card_path(path: Path) -> Path:
    """Where the model card of a bundle is."""
    return path.with_suffix(".md")


def export(
    runs: Sequence[Path],
    path: Path,
    with_encoder: bool = False,
    encoder: str | None = None,
    pretrained: str | None = None,
    other_code: bool = False,
) -> None:
    """Write the networks of finished runs to a new bundle, and a model card beside it.

    Errors as in ``load_predictor``.
    """
    path = Path(os.path.abspath(path))  # so that its folder has a name
    check_new(path)
    checkpoints = [read_checkpoint(run, other_code) for run in runs]
    files = find_own_encoder(checkpoints[0], encoder, pretrained)
    predictor = assemble(checkpoints, files, "cpu", "auto")
    about = [_about(check_finished(run)) for run in runs]
    card = _card(checkpoints[0], about, with_encoder)
    write_bundle(
        path, predictor.networks, predictor.encoder, checkpoints, about, card, with_encoder
    )
    write_files({card_path(path): card.encode()}, path.parent)


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


def _card(first: Checkpoint, about: Sequence[Network], with_encoder: bool) -> str:
    data, size = first.data, first.data.preprocessing.size_px
    weights = "included" if with_encoder else "not included; it is named, and checked when loaded"
    columns = ["network", "trained on", "fold", "seed", "test videos", "UAR %", "WAR %"]
    rows = [
        [
            *(own.name, own.trained_on, own.run["fold"], own.run["seed"]),
            *(own.test_videos, own.uar, own.war),
        ]
        for own in about
    ]
    return _CARD.format(
        classes=show(", ".join(first.classes)),
        encoder=show(f"{data.encoder.name} ({data.encoder.weights_sha256}), {weights}"),
        input=f"{data.frames} frames ({data.evaluation_frames}) of {size} x {size} pixels",
        scores="\n".join(map(markdown_line, [columns, ["---"] * len(columns), *rows])),
    )
