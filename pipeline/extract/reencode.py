"""A finished store -> some of its videos encoded again, and how close they come to the stored ones.

It tells whether this machine, with its libraries and its copies of the videos and the weights,
still produces the features in the store.
"""

from dataclasses import dataclass

import numpy as np

from cache.errors import RefusedError
from cache.identity import differences, side_by_side
from cache.store import Store
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import Encoder
from pipeline.extract.planning import cropping_of
from pipeline.video.images import BadVideoError
from pipeline.video.views import decode_views

# Measured with the bundled encoder on 480 frames: bfloat16 against float32 at least 0.9997; another
# resize interpolation down to 0.972, other pixel statistics down to 0.09.
LOWEST_COSINE = 0.999


@dataclass(frozen=True)
class Reencoded:
    """One video's evaluation view, encoded again."""

    id: str
    cosine: float  # the lowest of its frames; NaN if the video can no longer be read
    identical: bool  # bit for bit
    reason: str = ""


def compare_reencoded(
    store: Store, video_list: VideoList, encoder: Encoder, count: int
) -> list[Reencoded]:
    """Encode view 0 of ``count`` videos again, evenly spread over the store.

    Raises RefusedError if ``encoder`` is not the store's, or the list lacks one of the videos.
    """
    _refuse_other_encoder(store, encoder)
    paths = {video.id: video for video in video_list.videos}
    rows = [row for row, video in enumerate(store.ids) if video not in store.missing]
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    unknown = [store.ids[row] for row in chosen if store.ids[row] not in paths]
    if unknown:
        raise RefusedError(
            f"{store.path}: {video_list.name} has no video {unknown[0]}; check --dataset and --root"
        )
    kept_NTD = store.load_features([0])[:, 0]
    return [_reencode(store, paths[store.ids[row]], encoder, kept_NTD[row]) for row in chosen]


def _refuse_other_encoder(store: Store, encoder: Encoder) -> None:
    known = encoder.files.hashed_like(store.identity.encoder).identity
    known = known.model_copy(update={"text_sha256": encoder.identity.text_sha256})
    update = {"encoder": known, "preprocessing": encoder.files.preprocessing}
    asked = store.identity.model_copy(update=update)
    rows = differences(store.identity, asked)
    if rows:
        raise RefusedError(
            f"{store.path} was made with another encoder:\n{side_by_side(rows)}\n"
            "name the store's encoder with --encoder and --pretrained"
        )
    if not store.identity.batch_frames:
        raise RefusedError(
            f"{store.path} does not say in which batches it was encoded, so that nothing can be "
            "compared; its features were imported"
        )


def _reencode(store: Store, video: Video, encoder: Encoder, kept_TD: np.ndarray) -> Reencoded:
    identity, frames = store.identity, store.frames * encoder.files.segment
    try:
        made = decode_views(
            video,
            (0,),
            frames,
            identity.seed,
            identity.preprocessing,
            cropping=cropping_of(identity.faces),
            form=encoder.pixel_format,
        )
    except BadVideoError as error:
        return Reencoded(video.id, float("nan"), False, str(error))
    view_TCHW = made.views_VTCHW[0]
    # Bits depend on the number of frames in a call, so the batch is padded as in extraction.
    assert identity.batch_frames is not None
    batch_NCHW = encoder.blank(identity.batch_frames * encoder.files.segment)
    batch_NCHW[:frames] = view_TCHW
    again_TD = encoder.encode(batch_NCHW)[: store.frames].cpu().numpy()
    cosine_T = _cosines(again_TD.astype(np.float64), kept_TD.astype(np.float64))
    return Reencoded(video.id, float(cosine_T.min()), bool(np.array_equal(again_TD, kept_TD)))


def _cosines(a_TD: np.ndarray, b_TD: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a_TD, axis=1) * np.linalg.norm(b_TD, axis=1)
    return (a_TD * b_TD).sum(1) / np.maximum(norms, 1e-30)
