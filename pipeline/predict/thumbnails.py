"""A store's videos -> small pictures of the frames that its features were made from."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.store import Store
from pipeline.datasets.videos import Video
from pipeline.extract.planning import cropping_of
from pipeline.video.images import BadVideoError
from pipeline.video.isolated import Decoder
from pipeline.video.views import decode_views

SIZE_PX = 64
QUALITY = 75  # of a JPEG
DECODE_SECONDS = 60.0


def frames_of(
    store: Store, root: Path, rows: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.uint8] | str]]:
    """Each row with the T frames of its evaluation view, uint8 [T, 64, 64, 3], or why it has none.

    ``root`` is the folder of the data set. A video must have the bytes that it had in extraction.
    Raises RefusedError if the store does not say from which files it was made.
    """
    sources = store.plan.videos.sources
    if sources is None:
        raise RefusedError(f"{store.path} does not say from which files it was made")
    digests = [status.sha256 for status in store.load_rows(0)]
    shown_BT = store.load_frame_index([0])[:, 0]
    with Decoder() as decoder:
        for row in rows:
            video = Video(store.ids[row], root / sources[row], int(store.labels[row]))
            try:
                yield row, _frames(store, video, digests[row], shown_BT[row], decoder)
            except BadVideoError as error:
                yield row, str(error)


def jpeg_strip(frames_THWC: NDArray[np.uint8]) -> bytes:
    """Frames side by side, as one JPEG."""
    strip_HWC = np.ascontiguousarray(np.concatenate(frames_THWC, axis=1))
    return simplejpeg.encode_jpeg(strip_HWC, QUALITY)


def _frames(
    store: Store, video: Video, sha256: str, shown_T: NDArray[np.int32], decoder: Decoder
) -> NDArray[np.uint8]:
    if not os.path.lexists(video.path):
        raise BadVideoError(f"{video.path} is missing")
    identity = store.identity
    made = decode_views(
        video,
        (0,),
        store.frames,
        identity.seed,
        identity.preprocessing,
        partial(decoder.read_frames, seconds_max=DECODE_SECONDS),
        cropping=cropping_of(identity.faces),
    )
    if made.found.sha256 != sha256 or not np.array_equal(made.frame_index_VT[0], shown_T):
        raise BadVideoError(f"{video.path} is no longer as it was in extraction")
    frames_THWC = made.views_VTCHW[0].permute(0, 2, 3, 1).numpy()
    size = (SIZE_PX, SIZE_PX)
    small = [cv2.resize(own, size, interpolation=cv2.INTER_AREA) for own in frames_THWC]
    return np.stack(small).astype(np.uint8)
