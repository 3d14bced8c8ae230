"""Videos -> features inside the training loop, without a store: decoded and encoded at each step.

The slow way that the store is measured against, and the only one that can train the encoder.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from cache.errors import RefusedError
from cache.store import Store
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import Encoder, EncoderFiles
from pipeline.extract.loop import completed_plan
from pipeline.extract.planning import (
    ExtractSettings,
    cropping_of,
    describe_live,
    make_plan,
    suited_batch,
)
from pipeline.resources import usable_cores
from pipeline.video.images import BadVideoError
from pipeline.video.views import decode_views

# Number of views to draw from: each step shows a new view of a video.
FRESH_VIEWS = 1 << 31


class LiveFeatures:
    """Decodes and encodes what a step asks for; ``trained`` keeps the gradients of the encoder."""

    views = FRESH_VIEWS

    def __init__(
        self, videos: Sequence[Video], encoder: Encoder, settings: ExtractSettings, trained: bool
    ) -> None:
        self._videos, self._encoder, self._settings = videos, encoder, settings
        self._trained = trained
        default = suited_batch(settings.frames, encoder.device.type)
        self._segment = encoder.files.segment
        self._batch_frames = (settings.batch_frames or default) * self._segment
        self._pool = ThreadPoolExecutor(settings.workers or usable_cores())
        self._ahead: dict[tuple[int, int], Future[Tensor]] = {}
        if trained:
            encoder.make_trainable()

    def __call__(self, video_RB: Tensor, view_RB: Tensor) -> Tensor:
        """Float32 [R, B, T, D]; raises RefusedError for a video that cannot be read."""
        decoding = self._submit(video_RB, view_RB)
        views = [decoding[asked].result() for asked in _pairs(video_RB, view_RB)]
        frames_NCHW = torch.cat(views)
        for view_TCHW in views:
            if view_TCHW.is_cuda:  # made in another stream, which must not reuse it too early
                view_TCHW.record_stream(torch.cuda.current_stream(view_TCHW.device))
        encode = self._encode_trained if self._trained else self._encode_frozen
        features_ND = encode(frames_NCHW)
        return features_ND.float().view(*video_RB.shape, self._settings.frames, -1)

    def prepare(self, video_RB: Tensor, view_RB: Tensor) -> None:
        """Decode what the next call will ask for in the background."""
        self._ahead = self._submit(video_RB, view_RB)

    def parameters(self) -> list[Tensor]:
        """Those of the image tower, if it is trained."""
        return list(self._encoder.visual.parameters()) if self._trained else []

    def encoder_files(self) -> dict[str, bytes]:
        """The encoder's present state; empty if frozen."""
        return self._encoder.as_files() if self._trained else {}

    def _submit(self, video_RB: Tensor, view_RB: Tensor) -> dict[tuple[int, int], Future[Tensor]]:
        """Each view asked for, whether decoded ahead or only started now."""
        ahead, self._ahead = self._ahead, {}
        return {
            asked: ahead.get(asked) or self._pool.submit(self._decode, *asked)
            for asked in _pairs(video_RB, view_RB)
        }

    def _encode_trained(self, frames_NCHW: Tensor) -> Tensor:
        """Encode all at once in training, whose batches are small, and else in parts."""
        if torch.is_grad_enabled():
            return self._encoder.encode_with_gradient(frames_NCHW)
        parts = frames_NCHW.split(self._batch_frames)
        return torch.cat([self._encoder.encode_with_gradient(part) for part in parts])

    def _encode_frozen(self, frames_NCHW: Tensor) -> Tensor:
        """Encode in batches of fixed size, as stage one does, so that the features are equal."""
        size = self._batch_frames
        padded = torch.cat([frames_NCHW, self._encoder.blank(-len(frames_NCHW) % size)])
        parts = [self._encoder.encode(batch).clone() for batch in padded.split(size)]
        return torch.cat(parts)[: len(frames_NCHW) // self._segment]

    def _decode(self, row: int, view: int) -> Tensor:
        video, settings = self._videos[row], self._settings
        pixels, form = self._encoder.files.preprocessing, self._encoder.pixel_format
        try:
            made = decode_views(
                video,
                (view,),
                settings.frames * self._segment,
                settings.seed,
                pixels,
                names=settings.names,
                cropping=cropping_of(settings.faces),
                form=form,
            )
        except BadVideoError as error:
            raise RefusedError(
                f"video {video.id}: {error}; repair it or remove it from the list (tgdfer extract "
                "leaves such videos out and lists them)"
            ) from error
        return made.views_VTCHW[0]


def _pairs(video_RB: Tensor, view_RB: Tensor) -> list[tuple[int, int]]:
    return list(zip(video_RB.flatten().tolist(), view_RB.flatten().tolist(), strict=True))


def open_live(
    video_list: VideoList, files: EncoderFiles, settings: ExtractSettings, trained: bool
) -> tuple[Store, LiveFeatures, bytes, dict[str, Any]]:
    """(the videos as a store would describe them, their features, text tower and its config)."""
    encoder = Encoder(files, settings.device, "fp32" if trained else settings.precision)
    plan, _ = make_plan(video_list, files, settings)
    plan = completed_plan(plan, encoder, settings)
    store = describe_live(plan, files, plan.identity.digest)
    features = LiveFeatures(video_list.videos, encoder, settings, trained)
    return store, features, encoder.text_weights, json.loads(encoder.text_config)
