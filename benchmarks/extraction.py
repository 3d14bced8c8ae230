"""How close extraction comes to what bounds it, beside a loader of peers; its growth and memory.

Run as ``python -m benchmarks.extraction [--quick]``; writes ``benchmarks/extraction.json``.

The floor of a frame is the slower of two: decoding on all cores, and the encoder alone on random
frames, with the batch, precision and threads of the extraction. On a CPU the same cores do both, so
that their sum bounds it as well. Measurements of one source alternate in one process, so that all
see the same machine; a peer's loader decodes and makes views in one process per core, and encodes
nothing. The weights of ViT-B/32 are random: rates do not depend on them.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import best_device, machine, seconds, write
from benchmarks.views import FRAMES, SOURCES, VIEWS, decode_shown, peer_views, write_source
from pipeline.datasets.videos import Video, VideoList
from pipeline.encoders.clip import Encoder, EncoderFiles, find_encoder
from pipeline.extract.loop import STAGES, extract
from pipeline.extract.planning import ExtractSettings, suited_batch
from pipeline.resources import usable_cores
from pipeline.video.views import decode_views

OUT = Path(__file__).with_suffix(".json")
VIT = "ViT-B-32-quickgelu"
COPIES = 4  # different files of each source
GROWTH = (60, 600)  # videos


@dataclass(frozen=True)
class Amount:
    """How much is measured of an encoder."""

    videos: int
    bare_frames: int
    rounds: int


AMOUNTS = {VIT: Amount(8, 128, 1), "mini": Amount(64, 256, 3)}
QUICK = Amount(COPIES, 64, 1)


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small round, for a smoke test")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--grown", nargs=2, metavar=("FOLDER", "VIDEOS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grown:
        print(*_grown_here(Path(arguments.grown[0]), int(arguments.grown[1])))
        return
    write(measure(quick=arguments.quick), arguments.out)


def measure(quick: bool = False) -> dict[str, Any]:
    """Rates, costs and cosines by encoder, source and number of views; growth."""
    before = machine(best_device())
    sources = list(SOURCES)[: 1 if quick else None]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in sources:
            for n in range(COPIES):
                write_source(folder / source / str(n), *SOURCES[source], seed=n)
        found = {}
        large = [] if quick else [random_vit(folder / "vit.safetensors")]
        for files in [*large, find_encoder("mini")]:
            encoder = Encoder(files, "auto", "auto")
            amount = QUICK if quick else AMOUNTS[files.name]
            found[files.name] = {
                "precision": encoder.precision,
                "rounds": amount.rounds,
                "sources": {
                    source: _of_source(encoder, folder / source, amount) for source in sources
                },
            }
        counts = () if quick else GROWTH
        growth = {str(count): _grown(folder / sources[0], count) for count in counts}
    return {
        "machine": before,
        "frames": FRAMES,
        "encoders": found,
        "growth": growth,
    }


def _of_source(encoder: Encoder, folder: Path, amount: Amount) -> dict[str, Any]:
    """By number of views: medians over the rounds, and the lowest cosine of the two paths."""
    videos, found = _videos(folder, amount.videos), {}
    for views in VIEWS:
        print(f"{encoder.files.name}, {folder.name}, views: {views}", file=sys.stderr)
        rounds = [_round(encoder, videos, views, amount.bare_frames) for _ in range(amount.rounds)]
        cosine = lowest_cosine(encoder, videos.videos[0], views)
        found[str(views)] = _medians(rounds) | {"lowest_cosine": cosine}
    return found


def _round(
    encoder: Encoder, videos: VideoList, views: int, bare_frames: int
) -> dict[str, dict[str, float]]:
    """Milliseconds a frame of a view by each way; of each stage, those of one core; ratios."""
    cores, size_px = usable_cores(), encoder.files.preprocessing.size_px
    batch = suited_batch(FRAMES, encoder.device.type)
    bare = min(_bare_cost(encoder, batch, bare_frames, workers) for workers in (1, cores))
    with tempfile.TemporaryDirectory() as name:
        settings = ExtractSettings(views=views)
        done = extract(videos, Path(name) / "a.zarr", encoder.files, settings).progress
    whole, decode = 1000 * done.seconds / done.frames, _decode_cost(videos.videos[0], views)
    stages = {stage: 1000 * getattr(done, f"{stage}_seconds") / done.frames for stage in STAGES}
    peers = _peer_cost(videos.videos[: 4 * cores], views, size_px, cores)
    on_cpu = encoder.device.type == "cpu"
    loading = stages["decode"] + (stages["views"] if on_cpu else 0)
    ways = {"bare encoder": bare, "decode, one core": decode, "peers": peers, "extraction": whole}
    ratios = {
        "of bare encoder": bare / whole,
        "of floor": max(decode / cores, bare) / whole,
        "core over peers": cores * peers / loading,
    }
    if on_cpu:
        ratios["of shared cores"] = (decode / cores + bare) / whole
    return {"milliseconds": ways, "stages": stages, "busy": done.busy, "ratios": ratios}


def _medians(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    return {
        kind: {name: median(one[kind][name] for one in rounds) for name in found}
        for kind, found in rounds[0].items()
    }


def _bare_cost(encoder: Encoder, batch_frames: int, frames: int, workers: int) -> float:
    """Of ``encode`` alone, in ``workers`` threads that share the cores."""
    batch = encoder.blank(batch_frames)
    threads, calls = max(1, usable_cores() // workers), max(workers, frames // batch_frames)

    def encode(_: int) -> None:
        encoder.encode(batch).cpu()

    with ThreadPoolExecutor(
        workers, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        list(pool.map(encode, range(2 * workers)))
        return 1000 * seconds(lambda: list(pool.map(encode, range(calls)))) / calls / batch_frames


def _decode_cost(video: Video, views: int) -> float:
    """Of decoding what the views show and nothing else, by one core."""
    pixels = find_encoder("mini").preprocessing
    index_VT = decode_views(video, tuple(range(views)), FRAMES, 0, pixels).frame_index_VT
    spent = seconds(partial(decode_shown, video.path, set(index_VT.flatten().tolist())))
    return 1000 * spent / index_VT.size


class _PeersVideos(Dataset[torch.Tensor]):
    """Each view of each video, [T, C, H, W], as loaders of peers make it."""

    def __init__(self, videos: Sequence[Video], views: int, size_px: int) -> None:
        self._views = [(video, view) for video in videos for view in range(views)]
        self._size_px = size_px

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, place: int) -> torch.Tensor:
        video, view = self._views[place]
        return peer_views(video, [view], self._size_px)[0]


def _peer_cost(videos: Sequence[Video], views: int, size_px: int, cores: int) -> float:
    """Of a ``DataLoader`` with a process for each core; the second time, when they have started."""
    data = _PeersVideos(videos, views, size_px)
    loader = DataLoader(data, batch_size=2, num_workers=cores, persistent_workers=True)
    list(loader)
    return 1000 * seconds(lambda: list(loader)) / len(data) / FRAMES


def lowest_cosine(encoder: Encoder, video: Video, views: int) -> float:
    """Of a video's features by views that the CPU made and by those of the device's kernel."""
    ours, theirs = (
        encoder.encode(
            decode_views(
                video, tuple(range(views)), FRAMES, 0, encoder.files.preprocessing, form=form
            ).views_VTCHW.flatten(0, 1)
        ).double()
        for form in (None, encoder.normalised)
    )
    return float(torch.cosine_similarity(ours, theirs, dim=-1).min())


def random_vit(path: Path) -> EncoderFiles:
    """ViT-B-32-quickgelu with random weights, loaded from a file as a user would."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = open_clip.create_model(VIT).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return find_encoder(VIT, str(path))


def _videos(folder: Path, count: int) -> VideoList:
    """``count`` videos, in turn from the files of a folder."""
    files = sorted(folder.iterdir())
    videos = (Video(str(n), files[n % len(files)], 0) for n in range(count))
    return VideoList("benchmark", ("any",), tuple(videos), ())


def _grown(folder: Path, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.extraction", "--grown", str(folder), str(count)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    rate, memory = map(float, found.stdout.split()[-2:])
    return {"frames_per_second": rate, "peak_memory_mib": memory}


def _grown_here(folder: Path, count: int) -> tuple[float, int]:
    """Frames per second of ``count`` videos by ``mini``, and this process's peak memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        videos, store = _videos(folder, count), Path(name) / "grown.zarr"
        done = extract(videos, store, find_encoder("mini")).progress
    # The kernel's own peak: that of getrusage includes the process which started this one.
    peak_kib = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    return done.frames / done.seconds, int(peak_kib) // 1024


if __name__ == "__main__":
    main()
