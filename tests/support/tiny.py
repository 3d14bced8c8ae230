"""Stores made without an encoder: three blocks of features computed from (video, view)."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from cache.check import Finding
from cache.files import sha256
from cache.identity import EncoderIdentity, Identity, Preprocessing
from cache.plan import COLUMNS, Plan, PlanFold, Unit, VideoStatus, VideoTable, lowest_schema
from cache.store import Store, StoreWriter, create_store, open_store

FRAMES, DIM = 4, 8
TEXT = b"weights of the text tower"


def make_identity(table: VideoTable, **changes: object) -> Identity:
    encoder = EncoderIdentity(
        name="tiny", weights_sha256="ab", activation="QuickGELU", dim=DIM, text_sha256=sha256(TEXT)
    )
    pixels = Preprocessing(
        size_px=32, resize="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    fields = {
        "encoder": encoder,
        "preprocessing": pixels,
        "frames": FRAMES,
        "evaluation_frames": "middle_of_segments",
        "training_frames": "uniform_in_segments",
        "view_rule": "none",
        "seed": 0,
        "decoder": "test 1",
        "batch_frames": 8,
        "videos": table.digest,
        "precision": "fp32",
        "device": "cpu",
    }
    return Identity.model_validate(fields | changes)


def make_plan(
    videos: int = 150, views: int = 2, truth: bytes | None = None, **changes: object
) -> Plan:
    table = VideoTable(
        name="test",
        ids=tuple(f"video {i}" for i in range(videos)),
        labels=tuple(i % 3 for i in range(videos)),
        classes=("happy", "sad", "angry"),
        subjects=(None,) * videos,
        folds=(PlanFold(name="1", train=tuple(range(1, videos)), test=(0,)),),
        subsets={"dark": (1, 2)},
        truth_sha256=sha256(truth) if truth else None,
    )
    return plan_of(table, views, **changes)


def plan_of(table: VideoTable, views: int = 2, **changes: object) -> Plan:
    identity = make_identity(table, **changes)
    version = lowest_schema(table, identity, None)
    size = {"views": views, "frames": FRAMES, "dim": DIM}
    return Plan(schema_version=version, identity=identity, videos=table, **size)


def fixed_files(truth: bytes | None = None) -> dict[str, bytes]:
    files = {"text.safetensors": TEXT, "text.json": b'{"embed_dim":8}'}
    return files | ({"truth.npy": truth} if truth else {})


def values_of(
    unit: Unit, failed: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray, list[VideoStatus]]:
    """Features that depend only on (video, view), as in stage one."""
    videos = np.arange(unit.start, unit.stop)
    base = videos[:, None] + 1000 * np.array(unit.views)[None]
    features = np.broadcast_to(base[..., None, None], (*base.shape, FRAMES, DIM)).astype(np.float16)
    index = np.broadcast_to(np.arange(FRAMES), (*base.shape, FRAMES)).astype(np.int32)
    rows = []
    for i, video in enumerate(videos):
        if video in failed:
            features[i], index[i] = np.nan, -1
            rows.append(VideoStatus(id=f"video {video}", status="failed", reason="0 bytes"))
        else:
            rows.append(VideoStatus(id=f"video {video}", status="ok", frames=9))
    return features, index, rows


def fill(writer: StoreWriter, failed: tuple[int, ...] = (), only: int | None = None) -> None:
    for unit in writer.todo()[:only]:
        with writer.claim(unit) as mine:
            assert mine
            writer.commit(unit, *values_of(unit, failed))


class LocalStore(Store):
    """A store whose files a test may change."""

    path: Path


def open_local(path: Path) -> LocalStore:
    return cast(LocalStore, open_store(path))


def make_store(path: Path, failed: tuple[int, ...] = (), **options: Any) -> LocalStore:
    writer = create_store(path, make_plan(**options), fixed_files())
    fill(writer, failed)
    assert writer.finalise()
    return open_local(path)


def store_bytes(path: Path) -> dict[str, bytes]:
    """Everything that must not depend on how the work was interrupted."""
    names = ["plan.json", "manifest.json", "zarr.json", "text.json", "text.safetensors"]
    names += [name for name in [COLUMNS] if (path / name).exists()]
    files = [path / name for name in names]
    for folder in ("features", "frame_index", "rows", "journal"):
        files += sorted((path / folder).iterdir())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def flip(path: Path, offset: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.file) for finding in findings]
