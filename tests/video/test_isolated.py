"""Videos that kill or hang their decoder: found, left out with their reason, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cache.check import plan_repair, verify
from cache.store import open_store
from pipeline.video import isolated
from pipeline.video.frames import read_frames
from pipeline.video.images import BadVideoError
from pipeline.video.isolated import Decoder, DecoderDeathError, read_frames_isolated
from support.commands import ROOT, environment, script
from support.sources import pictures, write_encoder, write_folder, write_video
from support.train_kills import GONE_SECONDS, processes_of

# Python runs this in every process before anything else: a decoder with faults.
FAULTY_DECODER = """
import os, time, av
sound = av.open
def opened(path, *arguments, **options):
    if "killer" in path:
        os.abort()
    if "glutton" in path:
        bytearray(8 << 30)
    if "sleeper" in path:
        time.sleep(3600)
    return sound(path, *arguments, **options)
av.open = opened
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "sitecustomize.py").write_text(FAULTY_DECODER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'faulty'}:{ROOT}")
    monkeypatch.setattr(isolated, "_servers", {})  # decoders are forked from a faulty one


def frames_of(read: object, path: Path, **options: float) -> tuple[object, list[np.ndarray]]:
    taken: dict[int, np.ndarray] = {}
    found = read(path, lambda n: range(0, n, 2), taken.__setitem__, **options)  # type: ignore[operator]
    return found, [taken[index] for index in sorted(taken)]


def test_frames_decoded_in_isolation_are_the_same(tmp_path: Path) -> None:
    sources = [
        write_video(tmp_path / "v.mp4", pictures(9)),
        write_folder(tmp_path / "f", pictures(5)),
    ]
    for path in sources:
        found, frames = frames_of(read_frames, path)
        same, isolated = frames_of(read_frames_isolated, path, seconds_max=60)
        assert same == found
        np.testing.assert_array_equal(np.stack(isolated), np.stack(frames))


def test_bad_video_has_the_same_reason_in_isolation(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"<html>")
    with pytest.raises(BadVideoError, match="not a video: begins with b'<html>'"):
        frames_of(read_frames_isolated, tmp_path / "v.mp4", seconds_max=60)


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("killer", r"kills its decoder \(SIGABRT\)"),
        ("sleeper", "hangs .* not finished after 5"),
    ],
)
def test_death_and_endless_decoding_are_told_apart(tmp_path: Path, name: str, reason: str) -> None:
    path = write_video(tmp_path / f"{name}.mp4", pictures(3))
    with pytest.raises(DecoderDeathError, match=reason):
        frames_of(read_frames_isolated, path, seconds_max=5)


@pytest.mark.usefixtures("faulty")
def test_memory_of_a_decoder_is_limited(tmp_path: Path) -> None:
    path = write_video(tmp_path / "glutton.mp4", pictures(3))
    with pytest.raises(BadVideoError, match="MemoryError"):
        frames_of(read_frames_isolated, path, seconds_max=60)


EXTRACT = (
    FAULTY_DECODER
    + """
import sys
from pathlib import Path
from support.sources import listed
from pipeline.encoders.clip import find_encoder
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings

if __name__ == "__main__":
    here, encoder, isolate = Path(sys.argv[1]), find_encoder(sys.argv[2]), sys.argv[3] == "isolated"
    settings = ExtractSettings(
        views=1, frames=4, device="cpu", batch_frames=8, workers=2, isolate=isolate,
        decode_seconds=5,
    )
    extract(listed(here), here / "s.zarr", encoder, settings)
"""
)


def extract(here: Path, encoder: str, *mode: str) -> subprocess.CompletedProcess[str]:
    (here / "extract.py").write_text(EXTRACT)
    return script(here / "extract.py", here, encoder, *(mode or ("",)), timeout=120)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Six videos, one of which kills its decoder, and one hangs it."""
    (tmp_path / "videos").mkdir()
    names = ("a", "b-killer", "c", "d", "e-sleeper", "f")
    for seed, name in enumerate(names):
        write_video(tmp_path / f"videos/{name}.mp4", pictures(6, seed=seed))
    return tmp_path


def test_video_that_kills_or_hangs_its_decoder_is_left_out_at_the_second_attempt(
    here: Path, faulty: None
) -> None:
    encoder = write_encoder(here / "encoder")
    first = extract(here, encoder)
    assert first.returncode == -signal.SIGABRT
    second = extract(here, encoder)
    assert second.returncode == 1
    assert "video 'e-sleeper' hangs its decoder" in second.stderr
    assert "run the same command again" in second.stderr
    third = extract(here, encoder)
    assert third.returncode == 0, third.stderr
    store = open_store(here / "s.zarr")
    assert store.missing == {
        "b-killer": "kills its decoder (SIGABRT)",
        "e-sleeper": "hangs its decoder: not finished after 5 seconds",
    }
    assert np.isfinite(store.load_features()[[0, 2, 3, 5]]).all()
    assert verify(store.path, deep=True) == []
    # Redone by repair, they are decoded in isolation at once.
    begin_repair(here / "s.zarr")
    again = extract(here, encoder)
    assert again.returncode == 0, again.stderr
    assert open_store(store.path).digest == store.digest


def test_isolated_decoding_survives_both_at_once(here: Path, faulty: None) -> None:
    encoder = write_encoder(here / "encoder")
    done = extract(here, encoder, "isolated")
    assert done.returncode == 0, done.stderr
    assert sorted(open_store(here / "s.zarr").missing) == ["b-killer", "e-sleeper"]


ISOLATED = """
import sys
from pathlib import Path
from pipeline.video.isolated import read_frames_isolated
read_frames_isolated(Path(sys.argv[1]), lambda frames: [], lambda index, frame: None, 60)
"""


def test_decoder_that_hangs_ends_with_the_process_that_started_it(
    tmp_path: Path, faulty: None
) -> None:
    path = write_video(tmp_path / "sleeper.mp4", pictures(3))
    parent = subprocess.Popen([sys.executable, "-c", ISOLATED, str(path)], env=environment())
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.02)
    server = int(found[0])  # it leads the decoder's session
    while len(processes_of(server)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)  # until the decoder hangs; before that, it would notice by itself
    assert len(processes_of(server)) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + GONE_SECONDS
    while processes_of(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of(server) == []


def begin_repair(path: Path) -> None:
    planned = plan_repair(path)
    planned.begin()
    assert planned.extraction


@pytest.mark.usefixtures("faulty")
def test_decoder_goes_on_after_a_bad_video_and_is_replaced_after_a_death(tmp_path: Path) -> None:
    names = ("a", "killer", "b", "c")
    paths = [write_video(tmp_path / f"{name}.mp4", pictures(9)) for name in names]
    (tmp_path / "bad.mp4").write_bytes(b"<html>")
    times: list[np.ndarray] = []
    with Decoder() as decoder:

        def read(path: Path) -> list[np.ndarray]:
            options = {"seconds_max": 60, "take_times": times.append}
            return frames_of(decoder.read_frames, path, **options)[1]  # type: ignore[arg-type]

        first = read(paths[0])
        with pytest.raises(BadVideoError, match="not a video"):
            read(tmp_path / "bad.mp4")
        with pytest.raises(DecoderDeathError, match="SIGABRT"):
            read(paths[1])
        assert len(first) == 5
        np.testing.assert_array_equal(read(paths[2]), first)
        np.testing.assert_array_equal(read(paths[3]), first)
    assert [len(found) for found in times] == [9, 0, 9, 9]
    with pytest.raises(DecoderDeathError, match="closed"):
        read(paths[0])


def test_decoders_are_forked_from_one_process_that_survives_their_deaths(
    tmp_path: Path, faulty: None
) -> None:
    good, killer = (write_video(tmp_path / f"{name}.mp4", pictures(3)) for name in ("a", "killer"))
    frames_of(read_frames_isolated, good, seconds_max=60)
    server = vars(isolated)["_servers"][os.getpid()]
    with Decoder() as one, Decoder() as other:
        for decoder in (one, other):
            with pytest.raises(DecoderDeathError, match="SIGABRT"):
                frames_of(decoder.read_frames, killer, seconds_max=60)
            frames_of(decoder.read_frames, good, seconds_max=60)
    assert list(vars(isolated)["_servers"].values()) == [server]
    assert server.is_alive


@pytest.mark.usefixtures("faulty")
def test_decoder_imports_nothing_from_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "v.mp4", pictures(3))
    (tmp_path / "json.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    assert len(frames_of(read_frames_isolated, path, seconds_max=60)[1]) == 2
    assert not (tmp_path / "executed").exists()
