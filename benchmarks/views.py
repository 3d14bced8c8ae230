"""What a frame costs on the way into a store, stage by stage, beside a plain loader of peers.

Run as ``python -m benchmarks.views [--quick]``; writes ``benchmarks/views.json``. One thread does
everything in turn, so all figures are of one core. A peer's loader decodes the same frames, and
makes each view of torchvision's transforms of Pillow images, as loaders of this field do.
"""

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.machine import arguments, by_turns, machine, write
from pipeline.datasets.videos import Video
from pipeline.encoders.clip import MINI, Encoder, find_encoder
from pipeline.extract.planning import suited_batch
from pipeline.video.frames import read_frames
from pipeline.video.sampling import at_moments
from pipeline.video.views import decode_views

OUT = Path(__file__).with_suffix(".json")
FRAMES, LENGTH = 16, 48
PIXELS_PX = 224
SOURCES = {
    "224-px jpg": (224, 224, "folder"),
    "256-px mp4": (256, 256, "mp4"),
    "1080p mp4": (1080, 1920, "mp4"),
}
VIEWS = (1, 5)


def main() -> None:
    """Measure, print and write the report."""
    found = arguments(__doc__ or "", OUT, "--quick")
    write(measure(quick=found.quick), found.out)


def measure(quick: bool = False) -> dict[str, Any]:
    """Milliseconds a frame of decoding alone, with views, and of the peer's loader."""
    torch.set_num_threads(1)
    rounds = 1 if quick else 5
    sources = dict(list(SOURCES.items())[:1]) if quick else SOURCES
    with tempfile.TemporaryDirectory() as name:
        videos = {n: write_source(Path(name) / n, *shape) for n, shape in sources.items()}
        costs = {n: _costs(video, rounds) for n, video in videos.items()}
    return {
        "machine": machine(),
        "frames": FRAMES,
        "size_px": PIXELS_PX,
        "rounds": rounds,
        "milliseconds_per_view_frame": costs,
        "encoder_milliseconds_per_frame": _encoder_cost(rounds),
    }


def _costs(video: Video, rounds: int) -> dict[str, dict[str, float]]:
    """By number of views: of decoding what they show, of that and the views, and of the peer."""
    pixels = find_encoder("mini").preprocessing.model_copy(update={"size_px": PIXELS_PX})
    costs = {}
    for count in VIEWS:
        ours = partial(decode_views, video, tuple(range(count)), FRAMES, 0, pixels)
        shown = set(ours().frame_index_VT.flatten().tolist())
        ways: dict[str, Callable[[], object]] = {
            "decode": partial(decode_shown, video.path, shown),
            "decode and views": ours,
            "peer": partial(peer_views, video, range(count), PIXELS_PX),
        }
        taken = by_turns(ways, rounds)
        costs[str(count)] = {n: 1000 * s / (count * FRAMES) for n, s in taken.items()}
    return costs


def decode_shown(path: Path, shown: set[int]) -> None:
    """Decode these frames, and make nothing of them."""
    read_frames(path, lambda _: shown, lambda index, image: None)


def peer_views(video: Video, views: Iterable[int], size_px: int) -> torch.Tensor:
    """The views by Pillow and torchvision; like its peers, it decodes anew for every view."""
    even = transforms.Compose([transforms.Resize(size_px), transforms.CenterCrop(size_px)])
    jitter = transforms.Compose(
        [
            transforms.RandomResizedCrop(size_px, scale=(0.6, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ColorJitter(0.3, 0.3, 0.3),
        ]
    )
    made = []
    for view in views:
        frames: dict[int, Image.Image] = {}
        index_T = at_moments(LENGTH, np.full(FRAMES, 0.5))
        _decode_as_peers(video.path, set(index_T.tolist()), frames)
        change = transforms.Compose([jitter if view else even, transforms.ToTensor()])
        made.append(torch.stack([change(frames[index]) for index in index_T.tolist()]))
    return torch.stack(made)


def _decode_as_peers(path: Path, wanted: set[int], frames: dict[int, Image.Image]) -> None:
    if path.is_dir():
        for index in wanted:
            frames[index] = Image.open(path / f"{index:03d}.jpg").convert("RGB")
        return
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                frames[index] = frame.to_image()


def _encoder_cost(rounds: int) -> dict[str, float]:
    """The bare encoder ``mini``, if it is there."""
    if not any(MINI.glob("*.safetensors")):
        return {}
    encoder = Encoder(find_encoder("mini"), "cpu", "auto")
    batch = encoder.blank(suited_batch(FRAMES, "cpu"))
    taken = by_turns({"mini": partial(encoder.encode, batch)}, 4 * rounds)
    return {name: 1000 * spent / len(batch) for name, spent in taken.items()}


def write_source(path: Path, height: int, width: int, kind: str, seed: int = 0) -> Video:
    """A video of smooth blocks that move."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    base = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    frames = [np.roll(base, 3 * i, axis=1) for i in range(LENGTH)]
    if kind == "folder":
        path.mkdir(parents=True)
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(path / f"{i:03d}.jpg", quality=90)
        return Video("video", path, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path.with_suffix(".mp4")), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return Video("video", path.with_suffix(".mp4"), 0)


if __name__ == "__main__":
    main()
