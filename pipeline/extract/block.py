"""The videos of one unit -> batches of fixed size -> its features."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.plan import Plan, Unit, VideoStatus
from pipeline.encoders.clip import Encoder
from pipeline.profile import stage


@dataclass(frozen=True)
class Decoded:
    """One video as its decode thread returns it; without views if it failed."""

    row: VideoStatus
    seconds: Mapping[str, float]  # of decoding, of the upload to a GPU, and of making views
    views_VTCHW: torch.Tensor | None = None
    frame_index_VT: NDArray[np.int32] | None = None


class Block:
    """The features of one unit while it is being encoded.

    Video i of the block is always at position ``i % n`` of batch ``i // n`` of each view; the
    positions of failed videos and the end of the last batch are blank.
    """

    def __init__(
        self, unit: Unit, plan: Plan, encoder: Encoder, executor: Executor, most: int
    ) -> None:
        """``most`` batches at a time wait for ``executor``; then ``add`` waits as well."""
        self.unit = unit
        self.rows: list[VideoStatus] = []
        self.encode_seconds = 0.0
        self._plan, self._encoder, self._executor = plan, encoder, executor
        shape = (unit.stop - unit.start, len(unit.views), plan.frames)
        self.frame_index = np.full(shape, -1, np.int32)
        assert plan.identity.batch_frames is not None
        self._videos_of_batch = plan.identity.batch_frames // plan.frames
        self._batch: list[torch.Tensor | None] = []
        self._most, self._waiting = most, deque[Future[Any]]()
        # [batch][view]
        self._encoded: list[list[Future[tuple[NDArray[np.float16], float]]]] = []

    def add(self, decoded: Decoded) -> None:
        """Add the next video at its position, and start encoding when a batch is full."""
        if decoded.frame_index_VT is not None:
            self.frame_index[len(self.rows)] = decoded.frame_index_VT
        self.rows.append(decoded.row)
        self._batch.append(decoded.views_VTCHW)
        if len(self._batch) == self._videos_of_batch or len(self.rows) == len(self.frame_index):
            self._start_batch()

    def finish(self) -> NDArray[np.float16]:
        """Wait for the features, float16 [video, view, frame, dim]; NaN for videos that failed.

        Raises RefusedError if they overflow float16.
        """
        features = np.empty((*self.frame_index.shape, self._plan.dim), np.float16)
        for batch, futures in enumerate(self._encoded):
            rows = features[batch * self._videos_of_batch :][: self._videos_of_batch]
            for view, future in enumerate(futures):
                encoded_NTD, seconds = future.result()
                rows[:, view] = encoded_NTD[: len(rows)]
                self.encode_seconds += seconds
        for row, values in zip(self.rows, features, strict=True):
            if row.status == "failed":
                values[:] = np.nan
            elif not np.isfinite(values).all():
                raise RefusedError(
                    f"the encoder's features of video {row.id} overflow float16 at precision "
                    f"{self._encoder.precision}; use --precision fp32 or another encoder"
                )
        return features

    def _start_batch(self) -> None:
        videos, self._batch = self._batch, []
        shape = self._videos_of_batch, self._plan.frames
        self._encoded.append([])
        for view in range(len(self.unit.views)):
            if len(self._waiting) == self._most:
                self._waiting.popleft().result()
            job = self._executor.submit(_encode, self._encoder, videos, view, shape)
            self._encoded[-1].append(job)
            self._waiting.append(job)


def _encode(
    encoder: Encoder, videos: Sequence[torch.Tensor | None], view: int, shape: tuple[int, int]
) -> tuple[NDArray[np.float16], float]:
    """One view of several videos, as a batch of ``shape`` [video, frame]."""
    started = time.perf_counter()
    with stage("encode"):
        frames = math.prod(shape) * encoder.files.segment
        batch_NTCHW = encoder.blank(frames).unflatten(0, (shape[0], -1))
        for place, views_VTCHW in enumerate(videos):
            if views_VTCHW is not None:
                batch_NTCHW[place] = views_VTCHW[view]
        features: NDArray[np.float16] = encoder.encode(batch_NTCHW.flatten(0, 1)).cpu().numpy()
    return features.reshape(*shape, -1), time.perf_counter() - started
