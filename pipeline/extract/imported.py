"""Other people's features + a video list + a text tower -> a store that says what is unknown."""

from functools import partial
from pathlib import Path

from cache.errors import RefusedError
from cache.hdf5 import import_features
from cache.identity import EncoderIdentity, Preprocessing
from cache.plan import Plan
from pipeline.datasets.videos import VideoList
from pipeline.encoders.clip import Encoder
from pipeline.extract.planning import ExtractSettings, make_plan, without_sources

UNKNOWN = "unknown (imported)"


def import_videos(source: Path, path: Path, video_list: VideoList, encoder: Encoder) -> str:
    """Store the features in ``source`` with the text tower of ``encoder``; returns the digest.

    Raises RefusedError if ids, shapes or the text tower's dimension do not agree.
    """
    _, truth = make_plan(video_list, encoder.files, ExtractSettings())
    fixed = {"text.safetensors": encoder.text_weights, "text.json": encoder.text_config}
    fixed |= {"truth.npy": truth} if truth is not None else {}
    return import_features(source, path, partial(_plan, source, video_list, encoder), fixed)


def _plan(
    source: Path,
    video_list: VideoList,
    encoder: Encoder,
    views: int,
    frames: int,
    dim: int,
    digest: str,
) -> Plan:
    text = encoder.identity
    if dim != text.dim:
        raise RefusedError(
            f"{source} has features of {dim} dimensions, the text tower of {text.name} has "
            f"{text.dim}; name the encoder they were made with: --encoder and --pretrained"
        )
    settings = ExtractSettings(views=views, frames=frames)
    plan, _ = make_plan(without_sources(video_list), encoder.files, settings)
    unknown = {
        "encoder": EncoderIdentity(
            name=f"imported, text tower of {text.name}",
            weights_sha256=UNKNOWN,
            activation=text.activation,
            dim=dim,
            text_sha256=text.text_sha256,
        ),
        "preprocessing": Preprocessing(
            size_px=0, resize=UNKNOWN, interpolation=UNKNOWN, mean=(0, 0, 0), std=(0, 0, 0)
        ),
        "decoder": f"imported from files of sha256 {digest}",
        "batch_frames": 0,
    }
    names = ("evaluation_frames", "training_frames", "view_rule", "precision", "device")
    unknown |= dict.fromkeys(names, UNKNOWN)
    return plan.model_copy(update={"identity": plan.identity.model_copy(update=unknown)})
