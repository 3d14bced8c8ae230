"""Stores of random features with a random CLIP text tower, which is enough to measure speed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache.files import canonical_json, sha256
from cache.identity import EncoderIdentity, Identity, Preprocessing
from cache.plan import Plan, PlanFold, Unit, VideoStatus, VideoTable
from cache.store import StoreWriter, create_store

CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
DFEW_VIDEOS, DFEW_VIEWS, FRAMES = 11_697, 9, 16
FOLDS = 5
# Text towers as open_clip describes them.
VIT_B_32 = {"width": 512, "heads": 8, "layers": 12}
MINI = {"width": 64, "heads": 2, "layers": 2}


def fill(
    path: Path,
    videos: int,
    views: int,
    dim: int = 512,
    text: dict[str, int] = MINI,
    blocks: int | None = None,
    ids: Sequence[str] | None = None,
    name: str = "generated",
) -> None:
    """A store of random features; only its first ``blocks`` blocks if given."""
    fixed = text_files(text, dim)
    writer = create_store(path, plan_of(videos, views, dim, fixed, ids, name), fixed)
    rng = np.random.default_rng(0)
    shape = (64, views, FRAMES, dim)
    features = rng.standard_normal(shape, np.float32).astype(np.float16)
    for unit in writer.todo()[:blocks]:
        with writer.claim(unit):
            _commit(writer, unit, features[: unit.stop - unit.start])
    if blocks is None:
        writer.finalise()


def text_files(text: dict[str, int], dim: int) -> dict[str, bytes]:
    """The files of a random text tower, as a store holds them."""
    import torch
    from open_clip.transformer import TextTransformer
    from safetensors.torch import save

    torch.manual_seed(0)
    whole = {"context_length": 77, "vocab_size": 49408, **text}
    tower = TextTransformer(**whole, output_dim=dim)
    weights = save({name: value.contiguous() for name, value in tower.state_dict().items()})
    config = {"embed_dim": dim, "quick_gelu": True, "text_cfg": whole}
    return {"text.safetensors": weights, "text.json": canonical_json(config)}


def plan_of(
    videos: int,
    views: int,
    dim: int,
    fixed: dict[str, bytes],
    ids: Sequence[str] | None = None,
    name: str = "generated",
) -> Plan:
    """The plan of a generated store; video n is tested in fold n % 5 + 1."""
    rows = range(videos)
    table = VideoTable(
        name=name,
        ids=tuple(ids or (f"{n:05d}" for n in rows)),
        labels=tuple(n // FOLDS % len(CLASSES) for n in rows),
        classes=CLASSES,
        subjects=(None,) * videos,
        folds=tuple(
            PlanFold(
                name=str(fold + 1),
                train=tuple(n for n in rows if n % FOLDS != fold),
                test=tuple(n for n in rows if n % FOLDS == fold),
            )
            for fold in range(FOLDS)
        ),
        subsets={},
    )
    encoder = EncoderIdentity(
        name="generated",
        weights_sha256="",
        activation="",
        dim=dim,
        text_sha256=sha256(fixed["text.safetensors"]),
    )
    pixels = Preprocessing(size_px=224, resize="", interpolation="", mean=(0, 0, 0), std=(1, 1, 1))
    names = ("evaluation_frames", "training_frames", "view_rule", "decoder", "precision", "device")
    identity = Identity(
        encoder=encoder,
        preprocessing=pixels,
        frames=FRAMES,
        seed=0,
        batch_frames=FRAMES,
        videos=table.digest,
        **dict.fromkeys(names, "generated"),
    )
    return Plan(identity=identity, videos=table, views=views, frames=FRAMES, dim=dim)


def _commit(writer: StoreWriter, unit: Unit, features: np.ndarray) -> None:
    index = np.zeros(features.shape[:3], np.int32)
    ids = writer.plan.videos.ids[unit.start : unit.stop]
    rows = [VideoStatus(id=name, status="ok", frames=60, sha256="0" * 64) for name in ids]
    writer.commit(unit, features, index, rows)
