"""Real videos, real folders of images and a small random CLIP, made where a test needs them."""

import json
import struct
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
from PIL import Image

from pipeline.datasets.videos import Video, VideoList

SIZE_PX = 32
PIXEL_FORMATS = (
    *(
        "yuvj420p",
        "yuv420p",
        "yuv422p",
        "yuv422p10le",
        "rgb24",
        "bgr24",
        "bgr0",
        "rgb555le",
        "rgb8",
    ),
)


def pictures(count: int, seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Blocks that move 3 pixels a frame, uint8 [frame, height, width, 3]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    base = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return np.stack([np.roll(base, 3 * i, axis=1) for i in range(count)])


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str = "mpeg4",
    rotation: int = 0,
    flips: Mapping[str, bool] = MappingProxyType({}),
    aspect: Fraction | None = None,
    begins: int = 0,
) -> Path:
    """A video of 25 frames per second, turned and mirrored by its display matrix.

    ``aspect`` is that of a pixel; ``begins`` is the first frame that an edit list shows.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        known = [known.name for known in av.Codec(codec, "w").video_formats or ()]
        stream.pix_fmt = next((name for name in PIXEL_FORMATS if name in known), "yuv420p")
        stream.bit_rate = 4_000_000
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation or flips:
            stream.set_display_rotation(rotation, **flips)
        container.start_encoding()
        pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
        for picture in [*pictures, None]:
            for packet in stream.encode(picture):
                early = round(begins / 25 / packet.time_base)
                packet.pts, packet.dts = packet.pts - early, packet.dts - early
                container.mux(packet)
    return path


def write_folder(path: Path, frames: np.ndarray, suffix: str = ".jpg") -> Path:
    path.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"{i}{suffix}")
    return path


def write_list(root: Path, count: int, frames: int = 20) -> None:
    """``count`` videos, alternating between an mp4 and a folder of jpg."""
    for i in range(count):
        moving = pictures(frames + i % 3, seed=i)
        if i % 2:
            write_folder(root / f"v{i:03d}", moving)
        else:
            write_video(root / f"v{i:03d}.mp4", moving)


def listed(here: Path) -> VideoList:
    """The videos of ``here / "videos"`` as a list."""
    paths = sorted((here / "videos").iterdir())
    videos = tuple(Video(path.stem, path, i % 2) for i, path in enumerate(paths))
    return VideoList("test", ("happy", "sad"), videos, ())


BOMB = zlib.compress(bytes(20 << 20))


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(*chunks: bytes, width: int = 4, height: int = 4, colours: int = 2) -> bytes:
    """A PNG of black rows, with ``chunks`` between its header and its pixels."""
    row = bytes(1 + width * (3 if colours == 2 else 1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(row * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def write_encoder(folder: Path, quick_gelu: bool = True, dim: int = 16, seed: int = 0) -> str:
    """A small random CLIP saved as open_clip saves them; returns its name."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": SIZE_PX,
            "layers": 2,
            "width": 64,
            "head_width": 32,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 8,
            "heads": 2,
            "layers": 1,
        },
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "w.safetensors")
    whole = {"model_cfg": config, "preprocess_cfg": {"interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    return f"local-dir:{folder}"
