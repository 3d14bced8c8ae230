"""The feature store: a directory that stage one fills and stage two reads.

``docs/store.md`` specifies the format; in short::

    store.zarr/
      plan.json                   what the store will hold; of many videos also videos.safetensors
      zarr.json, features/, frame_index/   for any Zarr library; one chunk per block and view
      rows/                       the outcome of each video
      text.safetensors, text.json, truth.npy   text tower; ground truth of every source frame
      journal/                    what was committed
      manifest.json               written last: every file's size and sha256, the store's digest
      provenance.jsonl, locks/, .tmp/   for people and writers; readers ignore them
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.chunks import DTYPES, array_shape, chunk_name, read_chunk, repair_hint, rows_name
from cache.errors import DamagedError, RefusedError
from cache.files import sha256, sha256_file, storage_errors
from cache.identity import SIZE_MAX, Identity
from cache.journal import read_commits
from cache.manifest import files_on_disk, read_manifest
from cache.outside import parse_json
from cache.plan import Plan, Unit, VideoStatus, parse_rows, parse_truth, read_plan
from cache.remote import RemotePath, StoreFiles, StorePath, inside, store_path, threads_of
from cache.writer import StoreWriter, create_store

__all__ = [
    "LIVE",
    "Plan",
    "Store",
    "StoreStatus",
    "StoreWriter",
    "Unit",
    "create_store",
    "open_store",
    "status",
]


# Begins the digest of a store that only describes videos, whose features are computed in training.
LIVE = "live-"
NO_TEXTS = (
    "its encoder reads no texts, which TG-DFER, the heads of DFER-CLIP, EmoCLIP, CLIPER, VadCLIP "
    "and GRACE, and zero-shot classification need; extract with an encoder of open_clip, or name a "
    "CLIP beside it (--encoder timm:MODEL+CLIP), or use what needs no texts: another head, such as "
    "--set head.kind=mlp, and the logistic regressions of tgdfer compare"
)
# For what was written so: a repair only restores what was committed.
_REPLACE = "copy the store again from an intact one, or extract it again"


@dataclass(frozen=True)
class StoreStatus:
    """Progress of a store: blocks with all their views committed, out of all blocks."""

    finished: bool
    done: int
    total: int


@dataclass(frozen=True)
class Store:
    """A finished store, open for reading."""

    path: StorePath
    digest: str  # root hash; what results record
    plan: Plan
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.plan.videos.name

    @property
    def title(self) -> str:
        """The name, and how the folds were drawn if they are not the data set's own."""
        drawn = self.plan.videos.resplit
        return f"{self.name} re-split {drawn}" if drawn else self.name

    @property
    def identity(self) -> Identity:
        """What the features were made from."""
        return self.plan.identity

    @property
    def ids(self) -> Sequence[str]:
        """Video ids, in the order of the rows."""
        return self.plan.videos.ids

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every video, [video]."""
        return np.array(self.plan.videos.labels, np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the label indices."""
        return self.plan.videos.classes

    @property
    def texts(self) -> tuple[tuple[str, str], ...] | None:
        """A name and a sentence per class, if they are the data set's own."""
        return self.plan.videos.texts

    @cached_property
    def votes(self) -> NDArray[np.float64]:
        """What annotators said of every video, [video, class]; NaN where nothing is known."""
        if self.plan.videos.votes is None:
            return np.full((len(self.ids), len(self.classes)), np.nan)
        return self.plan.videos.votes

    @property
    def voted(self) -> NDArray[np.bool_]:
        """Which videos have votes, [video]."""
        return ~np.isnan(self.votes[:, 0])

    @property
    def subjects(self) -> Sequence[str | None]:
        """Who is seen in each video, if the data set says so."""
        return self.plan.videos.subjects

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {video_id: row for row, video_id in enumerate(self.ids)}

    def rows_of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The rows of the videos with these ids; raises KeyError for an id of another store."""
        return np.array([self._row_of[video_id] for video_id in ids], np.int64)

    def people(self, rows: Iterable[int]) -> list[str]:
        """Who is seen in the videos of these rows; the video's own id where that is not known."""
        return [self.subjects[row] or self.ids[row] for row in rows]

    @cached_property
    def folds(self) -> tuple[tuple[str, NDArray[np.int64], NDArray[np.int64]], ...]:
        """(name, training rows, test rows) of every fold."""
        return tuple(
            (fold.name, np.array(fold.train, np.int64), np.array(fold.test, np.int64))
            for fold in self.plan.videos.folds
        )

    @cached_property
    def subsets(self) -> dict[str, NDArray[np.bool_]]:
        """Name of a subset -> which videos are in it, [video]."""
        masks = {}
        for name, rows in self.plan.videos.subsets.items():
            masks[name] = np.zeros(len(self.ids), np.bool_)
            masks[name][rows] = True
        return masks

    @cached_property
    def missing(self) -> dict[str, str]:
        """Videos without features -> the reason, in the order of the rows."""
        reasons = self.manifest["missing"]
        if not reasons:
            return {}
        return {video: reasons[video] for video in self.ids if video in reasons}

    @property
    def views(self) -> int:
        """Views per video; view 0 is the evaluation view."""
        return self.plan.views

    @property
    def frames(self) -> int:
        """Frames per view (T)."""
        return self.plan.frames

    @property
    def dim(self) -> int:
        """Features per frame (D)."""
        return self.plan.dim

    @property
    def text_weights(self) -> bytes:
        """``text.safetensors``, after checking its sha256; raises RefusedError if it changed."""
        return self._unchanged("text.safetensors")

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """Configuration of the text tower: text_cfg, embed_dim, quick_gelu, logit_scale.

        Without a text tower, text_cfg is None.  If the tower is not the image encoder's own,
        features is the number of them in a frame, and embed_dim that in a text.

        Raises RefusedError if it changed or describes no tower for features of this size.
        """
        if self.digest.startswith(LIVE):
            described: dict[str, Any] = self.manifest["text"]
            return described
        data = self._unchanged("text.json")
        config = parse_json(data, self.path / "text.json")
        size = config.get("embed_dim")
        is_size = type(size) is int and 0 < size <= SIZE_MAX
        if not is_size or config.get("features", size) != self.dim:
            raise DamagedError(
                f"{self.path / 'text.json'} describes no text tower for features of size "
                f"{self.dim}: {_REPLACE}"
            )
        return config

    @property
    def has_texts(self) -> bool:
        """Whether its encoder has a text tower."""
        return self.text_config.get("text_cfg", {}) is not None

    @property
    def is_aligned(self) -> bool:
        """Whether texts and frames have features of one CLIP, so that cosines say something."""
        return self.has_texts and "features" not in self.text_config

    @property
    def network_dim(self) -> int:
        """Features per frame (D) in a network: those of a text, to which others are projected."""
        dim: int = self.text_config["embed_dim"]
        return dim

    def load_features(self, views: Sequence[int] | None = None) -> NDArray[np.float16]:
        """Features as ``encode_image`` gave them, float16 [video, view, frame, dim].

        All views, or the given ones in the given order.  Videos without features are NaN.
        Raises RefusedError if a chunk fails its checksum.
        """
        return self._load("features", views)

    def load_frame_index(self, views: Sequence[int] | None = None) -> NDArray[np.int32]:
        """Which source frame each row shows, int32 [video, view, frame]; -1 where missing."""
        return self._load("frame_index", views)

    def load_block(self, array: str, unit: Unit, view: int) -> NDArray[Any]:
        """One view of a block of "features" or "frame_index", [video, frame(, dim)].

        Errors as in ``load_features``.
        """
        name = chunk_name(array, unit.block, view)
        values = read_chunk(self._files / name, array, self.manifest["files"][name][2])
        tail = array_shape(self.plan, array)[2:]
        kept = values.reshape(-1, *tail)[: unit.stop - unit.start]
        if array == "features":
            self._refuse_not_finite(name, unit, kept)
        return kept

    def load_rows(self, view: int) -> list[VideoStatus]:
        """The outcome of every video in a view; raises RefusedError if a record changed."""

        def load(unit: Unit) -> list[VideoStatus]:
            name = rows_name(unit.block, view)
            what = f"{self.path / name} does not describe the videos of its block"
            ids = self.ids[unit.start : unit.stop]
            return parse_rows(self._unchanged(name), ids, what, _REPLACE)

        with ThreadPoolExecutor(threads_of(self._files)) as pool:
            return [row for rows in pool.map(load, self.plan.units()) for row in rows]

    def frame_truth(self) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
        """Ground truth of view 0: (labels int8, intensities float32), both [video, frame].

        None if the data set has no ground truth of its frames; label -1 and intensity 0 for videos
        without features.
        """
        if "truth.npy" not in self.manifest["files"]:
            return None
        what = f"{self.path / 'truth.npy'} is no ground truth of these videos"
        truth = parse_truth(self._unchanged("truth.npy"), self.plan.videos, what, _REPLACE)
        index_BT = self.load_frame_index([0])[:, 0]
        first_B, end_B = (
            np.searchsorted(truth["video"], np.arange(len(self.ids)), side)[:, None]
            for side in ("left", "right")
        )
        rows_BT = first_B + index_BT
        known_BT = (index_BT >= 0) & (rows_BT < end_B)
        rows_BT = np.where(known_BT, rows_BT, 0)
        labels = np.where(known_BT, truth["label"][rows_BT], -1).astype(np.int8)
        return labels, np.where(known_BT, truth["intensity"][rows_BT], 0).astype(np.float32)

    @cached_property
    def _files(self) -> StoreFiles:
        return inside(self.path)

    def _unchanged(self, name: str) -> bytes:
        path = self._files / name
        with storage_errors(path, "read"):
            data = path.read_bytes()
        if sha256(data) != self.manifest["files"][name][1]:
            raise DamagedError(f"{path} changed since extraction: {repair_hint(self.path)}")
        return data

    def _load(self, array: str, views: Sequence[int] | None) -> NDArray[Any]:
        wanted = range(self.views) if views is None else views
        if not all(0 <= view < self.views for view in wanted):
            raise RefusedError(f"{self.path} has views 0 to {self.views - 1}, asked for {wanted}")
        tail = array_shape(self.plan, array)[2:]
        out = np.empty((len(self.ids), len(wanted), *tail), DTYPES[array])

        def load(task: tuple[Unit, int, int]) -> None:
            unit, i, view = task
            out[unit.start : unit.stop, i] = self.load_block(array, unit, view)

        tasks = [(unit, i, view) for unit in self.plan.units() for i, view in enumerate(wanted)]
        with ThreadPoolExecutor(threads_of(self._files)) as pool:
            list(pool.map(load, tasks))
        return out

    def _refuse_not_finite(self, name: str, unit: Unit, values: NDArray[np.float16]) -> None:
        """Refuse NaN and infinity in the features of a video that the manifest does not miss."""
        if _is_finite(values):
            return
        for video, features in zip(self.ids[unit.start : unit.stop], values, strict=True):
            if video not in self.manifest["missing"] and not _is_finite(features):
                raise DamagedError(
                    f"{self.path / name}: the features of video {video} are not finite, and it is "
                    f"not among the missing ones: {_REPLACE}"
                )


def _is_finite(values: NDArray[np.float16]) -> bool:
    # As integers, infinity and NaN are the largest: from 0x7C00 on, and with the sign from 0xFC00.
    # This takes a thirtieth of the time of np.isfinite.
    positive, all_bits = values.view(np.int16), values.view(np.uint16)
    return bool(positive.max() < 0x7C00 and all_bits.max() < 0xFC00)


def open_store(path: StorePath | str) -> Store:
    """Open a finished store for reading: a folder, or a URL that fsspec can open.

    Raises RefusedError if there is none, if it is unfinished, of a newer schema or damaged, and
    StorageError if it cannot be reached.  Checks all sizes, and the sha256 of small files; chunks
    are checked when they are loaded.
    """
    path, files = store_path(path), inside(path)
    plan = read_plan(path)
    if not (files / "manifest.json").is_file():
        state = status_of(files, plan)
        raise RefusedError(
            f"{path} is unfinished: {state.done} of {state.total} blocks; "
            "run tgdfer extract again to finish it"
        )
    manifest = read_manifest(files, plan)
    expected = files_on_disk(plan, manifest["files"])
    sizes = files.sizes(expected)
    for name, (size, digest, *_) in expected.items():
        found = sizes[name]
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes, expected {size}"
            raise DamagedError(f"{files / name} {what}: {repair_hint(path)}")
        if name.endswith(".json") and sha256_file(files / name) != digest:
            raise DamagedError(f"{files / name} changed since extraction: {repair_hint(path)}")
    return Store(path=path, digest=manifest["digest"], plan=plan, manifest=manifest)


def status(path: StorePath | str) -> StoreStatus:
    """Progress of the store at ``path``; refuses what is not a store.

    At a URL an unfinished store is refused as well.
    """
    root = inside(path)
    return status_of(root, read_plan(root))


def status_of(root: StoreFiles, plan: Plan) -> StoreStatus:
    """As ``status``, of a store whose plan was read."""
    if (root / "manifest.json").is_file():
        return StoreStatus(True, plan.blocks, plan.blocks)
    if isinstance(root, RemotePath):
        raise RefusedError(
            f"{root} is unfinished: it has no manifest.json; finish it where it was written, "
            "then copy it there again"
        )
    committed = {place for place, _ in read_commits(root, plan)}
    views = range(plan.views)
    full = sum(all((block, v) in committed for v in views) for block in range(plan.blocks))
    return StoreStatus(False, full, plan.blocks)
