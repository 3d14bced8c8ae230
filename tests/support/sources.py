"""Real videos, real folders of images and a small random CLIP, made where a test needs them."""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipeline.datasets.videos import Video, VideoList

SIZE_PX = 32


def pictures(count: int, seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """Blocks that move 3 pixels a frame, uint8 [frame, height, width, 3]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    base = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return np.stack([np.roll(base, 3 * i, axis=1) for i in range(count)])


def write_video(path: Path, frames: np.ndarray, codec: str = "mpeg4", rotation: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
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
