"""How close extraction comes to the bare encoder's speed, and how much memory it takes.

Run as ``python -m benchmarks.extraction [--quick]``; writes ``benchmarks/extraction.json``.

The bare rate is that of the encoder alone on random frames, with the batch, precision and threads
of the extraction. Bare and whole measurements alternate in one process, so that both see the same
machine. The weights are random: the rate does not depend on them.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from benchmarks.machine import best_device, machine, write
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import MINI, Encoder, EncoderFiles, find_encoder
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings, suited_batch

OUT = Path(__file__).with_suffix(".json")
SIZE_PX, FRAMES = 256, 60
BARE_FRAMES = 1024


@dataclass(frozen=True)
class Rates:
    """Frames per second of one encoder, medians over the rounds."""

    encoder: str
    device: str
    precision: str
    batch_frames: int
    workers: int
    rounds: int
    bare_torch_threads: float  # one call at a time, torch's own threads
    bare_per_core: float  # one call per core at a time, one thread each
    whole: float
    ratio: float  # whole over the better bare rate, median of the rounds' ratios


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small round, for a smoke test")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--memory", nargs=2, metavar=("FOLDER", "VIDEOS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(_peak_memory_here(Path(arguments.memory[0]), int(arguments.memory[1])))
        return
    report = measure(quick=arguments.quick)
    write(report, arguments.out)


def measure(quick: bool = False) -> dict[str, object]:
    """Rates of each encoder, and peak memory at two numbers of videos."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = write_videos(folder / "videos", 8 if quick else 32)
        encoders = [random_vit(folder / "vit.safetensors")]
        if any(MINI.glob("*.safetensors")):
            encoders.append(find_encoder("mini"))
        rounds = 1 if quick else 3
        rates = [asdict(measure_rates(files, videos, folder, rounds)) for files in encoders]
        counts = (8, 16) if quick else (128, 384)
        memory = {str(count): _peak_memory(folder, count) for count in counts}
    return {
        "machine": machine(best_device()),
        "video": {"size_px": SIZE_PX, "frames": FRAMES, "codec": "mpeg4"},
        "rates_frames_per_second": rates,
        "peak_memory_mib_by_videos": memory,
    }


def measure_rates(files: EncoderFiles, videos: VideoList, folder: Path, rounds: int) -> Rates:
    """Bare and whole rates of one encoder, measured alternately."""
    settings = ExtractSettings()
    encoder = Encoder(files, settings.device, settings.precision)
    batch_frames = suited_batch(settings.frames, encoder.device.type)
    workers = len(os.sched_getaffinity(0))
    taken: list[tuple[float, float, float]] = []
    for i in range(rounds):
        bare = (_bare(encoder, batch_frames, 1), _bare(encoder, batch_frames, workers))
        progress = extract(videos, folder / f"{files.name}{i}.zarr", files, settings).progress
        taken.append((*bare, progress.frames / progress.seconds))
    one, per_core, whole = (statistics.median(column) for column in zip(*taken, strict=True))
    return Rates(
        encoder=files.name,
        device=encoder.device.type,
        precision=encoder.precision,
        batch_frames=batch_frames,
        workers=workers,
        rounds=rounds,
        bare_torch_threads=one,
        bare_per_core=per_core,
        whole=whole,
        ratio=statistics.median(w / max(a, b) for a, b, w in taken),
    )


def write_videos(folder: Path, count: int) -> VideoList:
    """``count`` short videos of moving blocks."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    videos = []
    for i in range(count):
        blocks = rng.integers(0, 256, (SIZE_PX // 16, SIZE_PX // 16, 3), dtype=np.uint8)
        picture = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
        path = folder / f"{i}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = SIZE_PX, SIZE_PX, "yuv420p"
            for shift in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, shift, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        videos.append(Video(str(i), path, 0))
    return VideoList("benchmark", ("any",), tuple(videos), ())


def _bare(encoder: Encoder, batch_frames: int, workers: int) -> float:
    """Frames per second of ``encode`` alone, in ``workers`` threads sharing the cores."""
    import torch

    size = encoder.files.preprocessing.size_px
    batch = torch.randint(0, 256, (batch_frames, 3, size, size), dtype=torch.uint8)
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    calls = BARE_FRAMES // batch_frames
    with ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        list(pool.map(lambda _: encoder.encode(batch), range(2 * workers)))
        started = time.perf_counter()
        list(pool.map(lambda _: encoder.encode(batch), range(calls)))
        return calls * batch_frames / (time.perf_counter() - started)


def random_vit(path: Path) -> EncoderFiles:
    """ViT-B-32-quickgelu with random weights, loaded from a file as a user would."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return find_encoder("ViT-B-32-quickgelu", str(path))


def _peak_memory(folder: Path, count: int) -> int:
    command = [sys.executable, "-m", "benchmarks.extraction", "--memory", str(folder), str(count)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(found.stdout.splitlines()[-1])


def _peak_memory_here(folder: Path, count: int) -> int:
    """Peak memory in MiB when extracting ``count`` videos, one view each, in this process."""
    sources = sorted((folder / "videos").iterdir())
    videos = tuple(Video(str(i), sources[i % len(sources)], 0) for i in range(count))
    files = find_encoder("ViT-B-32-quickgelu", str(folder / "vit.safetensors"))
    store = folder / f"memory{count}.zarr"
    extract(VideoList("memory", ("any",), videos, ()), store, files, ExtractSettings(views=1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
