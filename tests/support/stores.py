"""Small real text towers and finished stores that several tests need."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from cache.files import canonical_json, sha256
from cache.identity import EncoderIdentity, Identity, Preprocessing
from cache.plan import (
    TRUTH_DTYPE,
    Plan,
    PlanFold,
    VideoStatus,
    VideoTable,
    encode_truth,
    lowest_schema,
)
from cache.store import create_store
from support.tiny import LocalStore, open_local

CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")


def text_config(dim: int, layers: int = 2, quick_gelu: bool = True) -> dict[str, Any]:
    text = {"context_length": 77, "vocab_size": 49408, "width": dim, "heads": 2, "layers": layers}
    return {"embed_dim": dim, "quick_gelu": quick_gelu, "text_cfg": text}


def text_weights(config: dict[str, Any], seed: int = 0) -> bytes:
    """A randomly drawn open_clip text tower, as the bytes of a safetensors file."""
    from open_clip.transformer import TextTransformer

    torch.manual_seed(seed)
    tower = TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"])
    return save({name: value.contiguous() for name, value in tower.state_dict().items()})


def write_store(
    path: Path,
    features_NVTD: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...] = CLASSES,
    folds: int | Mapping[str, tuple[Sequence[int], Sequence[int]]] = 5,
    missing: tuple[int, ...] = (),
    subjects: Sequence[str | None] | None = None,
    truth_NT: np.ndarray | None = None,
    sources: tuple[str, ...] | None = None,
    subsets: Mapping[str, Sequence[int]] | None = None,
    name: str = "test",
    votes: Sequence[tuple[float, ...] | None] | None = None,
    text_dim: int | None = None,
    texts: bool = True,
) -> LocalStore:
    """A finished store with the given features; video n is tested in fold n % folds + 1.

    ``folds`` may also be (training rows, test rows) by name. ``truth_NT`` holds the true label of
    every frame, ``sources`` the sha256 of every video's bytes. With ``text_dim``, texts are read by
    another encoder than frames; without ``texts``, by none.
    """
    videos, views, frames, dim = features_NVTD.shape
    config = text_config(text_dim or dim) | ({"features": dim} if text_dim else {})
    weights = text_weights(config)
    config |= {} if texts else {"text_cfg": None}
    rows = range(videos)
    if isinstance(folds, int):
        count = folds
        folds = {
            str(k + 1): ([n for n in rows if n % count != k], [n for n in rows if n % count == k])
            for k in range(count)
        }
    plan_folds = tuple(
        PlanFold(name=fold, train=tuple(train), test=tuple(test))
        for fold, (train, test) in folds.items()
    )
    table = VideoTable(
        name=name,
        ids=tuple(f"{n:05d}" for n in rows),
        labels=tuple(int(label) for label in labels),
        classes=classes,
        subjects=tuple(subjects or (None,) * videos),
        folds=plan_folds,
        subsets={name: tuple(own) for name, own in (subsets or {}).items()},
        truth_sha256=None if truth_NT is None else sha256(_truth(truth_NT)),
        votes=None if votes is None else tuple(votes),
    )
    encoder = EncoderIdentity(
        name="random",
        weights_sha256=sha256(weights),
        activation="QuickGELU",
        dim=dim,
        text_sha256=sha256(weights),
    )
    pixels = Preprocessing(
        size_px=32, resize="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    identity = Identity(
        encoder=encoder,
        preprocessing=pixels,
        frames=frames,
        evaluation_frames="middle_of_segments",
        training_frames="uniform_in_segments",
        view_rule="none",
        seed=0,
        decoder="none",
        batch_frames=frames,
        videos=table.digest,
        precision="fp32",
        device="cpu",
    )
    plan = Plan(
        schema_version=lowest_schema(table, identity, None),
        identity=identity,
        videos=table,
        views=views,
        frames=frames,
        dim=dim,
    )
    fixed = {"text.safetensors": weights, "text.json": canonical_json(config)}
    if truth_NT is not None:
        fixed["truth.npy"] = _truth(truth_NT)
    writer = create_store(path, plan, fixed)
    kept = features_NVTD.astype(np.float16)
    kept[list(missing)] = np.nan
    for unit in writer.todo():
        with writer.claim(unit) as mine:
            assert mine
            block = kept[unit.start : unit.stop][:, list(unit.views)]
            index = np.broadcast_to(np.arange(frames, dtype=np.int32), block.shape[:3]).copy()
            records = []
            for n in range(unit.start, unit.stop):
                failed = n in missing
                index[n - unit.start][:] = -1 if failed else index[n - unit.start]
                status, reason = ("failed", "0 bytes") if failed else ("ok", "")
                digest = "" if failed or sources is None else sources[n]
                about = {"id": table.ids[n], "frames": frames, "sha256": digest}
                records.append(VideoStatus(status=status, reason=reason, **about))
            writer.commit(unit, block, index, records)
    writer.finalise()
    return open_local(path)


def _truth(truth_NT: np.ndarray) -> bytes:
    rows = np.zeros(truth_NT.size, TRUTH_DTYPE)
    rows["video"], rows["label"] = np.repeat(range(len(truth_NT)), truth_NT.shape[1]), truth_NT.flat
    return encode_truth(rows)


def random_store(
    path: Path, videos: int = 40, views: int = 2, frames: int = 16, dim: int = 16, **options: Any
) -> LocalStore:
    """A store of random features around one direction per class, so that classes can be learned."""
    generator = np.random.default_rng(0)
    labels = np.arange(videos) % len(options.get("classes", CLASSES))
    centres = generator.standard_normal((len(options.get("classes", CLASSES)), dim))
    noise = generator.standard_normal((videos, views, frames, dim))
    return write_store(path, centres[labels][:, None, None] + noise, labels, **options)
