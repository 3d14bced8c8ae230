"""Trained networks and their records -> a model card, as model hubs show it."""

from collections.abc import Sequence
from importlib.metadata import version

from cache.identity import WHOLE_FRAMES, flatten
from pipeline.config import MethodConfig
from pipeline.datasets.known import known_datasets
from pipeline.predict.bundle import Network
from pipeline.show import markdown_line, show
from pipeline.train.record import Record
from pipeline.train.trained import Checkpoint

_DIGITS = 16  # of the digest of a list of videos
_CARD = """---
library_name: tgdfer
pipeline_tag: video-classification
tags:
- facial-expression-recognition
---
# Facial expressions in videos, {heads}

- classes: {classes}
- encoder: {encoder}
- input: {input}
- faces: {faces}
- several networks: the mean of their probabilities; their disagreement is the doubt

A licence is for whoever publishes this to choose, as far as that of the data allows.

## Data

{data}

## Protocol

{protocol}

Settings that are not those of the preset `paper`:

{settings}

## Scores

Each network on the {tested} of its own fold, which it was not trained on. Intervals are 95 %,
over videos; where a person is seen in several of them, they are too narrow.

{scores}

Recall of each class, in per cent:

{recalls}

## What was not measured

Nothing but these scores was measured here: not other data sets (see tgdfer evaluate), not the
ensemble of the networks, not groups of people by age, sex or skin, not videos that are not cropped
to a face. An expression is what a face shows, not what a person feels.

## Use

    tgdfer predict VIDEO --run FILE.tgdfer
"""


def write_card(
    checkpoints: Sequence[Checkpoint],
    records: Sequence[Record],
    about: Sequence[Network],
    with_encoder: bool,
) -> str:
    """The card of networks, in Markdown."""
    first = checkpoints[0]
    data, size = first.data, first.data.preprocessing.size_px
    weights = "included" if with_encoder else "not included; it is named, and checked when loaded"
    held_out = records[0].run.method.selection.tested_on == "held_out"
    return _CARD.format(
        heads=" and ".join(dict.fromkeys(own.run.method.head.title for own in records)),
        classes=show(", ".join(first.classes)),
        encoder=show(f"{data.encoder.name} ({data.encoder.weights_sha256}), {weights}"),
        input=f"{data.frames} frames ({data.evaluation_frames}) of {size} x {size} pixels",
        faces=show(_faces(data.faces)),
        data=_data(checkpoints),
        protocol=_protocol(first, records),
        settings=_settings(records),
        tested="held-out training videos" if held_out else "test videos",
        scores=_scores(about, records),
        recalls=_recalls(first.classes, records),
    )


def _faces(cropping: str) -> str:
    if cropping == WHOLE_FRAMES:
        return "whole frames, as the data set has them; tgdfer predict crops what is no face crop"
    return f"cropped out of the frames ({cropping})"


def _data(checkpoints: Sequence[Checkpoint]) -> str:
    """The data sets, each once."""
    return "\n".join(dict.fromkeys(map(_source, checkpoints)))


def _source(checkpoint: Checkpoint) -> str:
    name, data = checkpoint.trained_on, checkpoint.data
    known = known_datasets().get(name)
    about = [name or "a list without a name"]
    if known:
        about += [known.title, f"licence: {known.licence}", known.obtain]
    return "- " + show("; ".join([*about, f"list of videos {data.videos[:_DIGITS]}"]))


def _protocol(first: Checkpoint, records: Sequence[Record]) -> str:
    record, data = records[0], first.data
    selection, versions = record.run.method.selection, record.metadata["versions"]
    epoch = {
        "last": "the last one",
        "best_on_val": "the best on held-out training videos",
        "best_on_test": "the best on the test videos, so that the scores are optimistic",
    }[selection.rule]
    lines = [
        f"folds: {', '.join(sorted({own.run.fold for own in records}))}, those of the data",
        f"seeds: {', '.join(sorted({str(own.run.seed) for own in records}))}",
        f"epochs: {record.run.method.optimiser.epochs}; the reported epoch is {epoch}",
        f"frames in training: {data.training_frames}; views: {data.view_rule}",
        f"made by: tgdfer {version('tgdfer')}, torch {versions.get('torch', 'unknown')}, "
        f"{record.identity['device']}, {record.identity['precision']}",
    ]
    return "\n".join(f"- {show(line)}" for line in lines)


def _settings(records: Sequence[Record]) -> str:
    """What differs from the paper, of all networks together."""
    paper = flatten(MethodConfig().model_dump(mode="json"))
    own = [flatten(record.run.method.model_dump(mode="json")) for record in records]
    lines = [
        f"- `{name} = {' or '.join(dict.fromkeys(str(settings.get(name)) for settings in own))}`"
        for name in paper
        if any(settings.get(name) != paper[name] for settings in own)
    ]
    return "\n".join(map(show, lines or ["- none"]))


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join(map(markdown_line, [head, ["---"] * len(head), *rows]))


def _scores(about: Sequence[Network], records: Sequence[Record]) -> str:
    head = ["network", "trained on", "fold", "seed", "training videos", "test videos"]
    rows = []
    for own, record in zip(about, records, strict=True):
        trained = (record.result or {}).get("train_videos", "")
        run = [own.name, own.trained_on, own.run["fold"], own.run["seed"]]
        rows.append([*run, trained, own.test_videos, own.uar, own.war])
    return _table([*head, "UAR %", "WAR %"], rows)


def _recalls(classes: Sequence[str], records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        recalls = (record.result or {}).get("recalls", {})
        shares = [recalls.get(name) for name in classes]
        cells = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
        rows.append([record.folder.name, *cells])
    return _table(["network", *classes], rows)
