"""Sampling rules, and decoding of good, odd and broken sources by the real decoders."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.video.frames import BadVideoError, Found, decode_image, list_images, read_frames
from pipeline.video.sampling import at_moments, middle_of_segments, uniform_in_segments
from support.sources import pictures, write_folder, write_video

MIDDLES = {
    1: [0] * 16,
    5: [0, 1, 2, 3, 4] + [4] * 11,
    15: [*range(15), 14],
    16: list(range(16)),
    17: [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16],
    31: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30],
    100: [3, 9, 15, 21, 28, 34, 40, 46, 53, 59, 65, 71, 78, 84, 90, 96],
}


@pytest.mark.parametrize("length", MIDDLES)
def test_evaluation_takes_the_middle_of_each_segment(length: int) -> None:
    assert middle_of_segments(length, 16).tolist() == MIDDLES[length]


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(0, 2**32))
def test_sampled_frames_are_sorted_and_in_range(length: int, frames: int, seed: int) -> None:
    for index in (
        middle_of_segments(length, frames),
        uniform_in_segments(length, frames, np.random.default_rng(seed)),
    ):
        assert index.shape == (frames,)
        assert (np.diff(index) >= 0).all()
        assert index[0] >= 0
        assert index[-1] < length


@given(st.integers(16, 2000))
def test_training_can_show_the_first_and_the_last_frame(length: int) -> None:
    assert at_moments(length, np.zeros(16))[0] == 0
    assert at_moments(length, np.full(16, 1 - 1e-9))[-1] == length - 1


@given(st.integers(16, 2000), st.integers(0, 2**32))
def test_training_takes_one_frame_of_every_real_length_segment(length: int, seed: int) -> None:
    index = uniform_in_segments(length, 16, np.random.default_rng(seed))
    edges = np.arange(17) * length / 16
    assert (index >= np.floor(edges[:-1])).all()
    assert (index <= edges[1:]).all()


def test_video_of_no_frames_shows_nothing() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        middle_of_segments(0, 16)


def read_all(path: Path) -> tuple[Found, list[np.ndarray]]:
    taken: dict[int, np.ndarray] = {}
    found = read_frames(path, range, taken.__setitem__)
    assert list(taken) == sorted(taken)
    return found, [taken[i] for i in sorted(taken)]


CONTAINERS = [("mp4", "mpeg4"), ("avi", "mpeg4"), ("mkv", "mpeg4"), ("mpg", "mpeg2video")]


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_videos_decode_to_the_frames_that_were_encoded(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    frames = pictures(20)
    found, decoded = read_all(write_video(tmp_path / f"v.{suffix}", frames, codec))
    assert found.frames == 20
    errors = np.abs(np.stack(decoded)[:, None].astype(int) - frames[None]).mean((2, 3, 4))
    assert errors.argmin(axis=1).tolist() == list(range(20))


def test_folder_is_read_in_natural_order_without_hidden_files(tmp_path: Path) -> None:
    frames = pictures(12)
    folder = write_folder(tmp_path / "v", frames, ".png")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._1.png").write_bytes(b"x")
    found, decoded = read_all(folder)
    assert (found.frames, found.flags) == (12, ())
    np.testing.assert_array_equal(np.stack(decoded), frames)
    assert [p.name for p in list_images(folder)][9:] == ["9.png", "10.png", "11.png"]


def test_gap_in_a_folder_is_flagged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "v", pictures(4))
    (folder / "2.jpg").unlink()
    assert read_all(folder)[0].flags == ("gaps in the numbering",)


def test_rotation_of_a_video_is_applied(tmp_path: Path) -> None:
    frames = pictures(4)
    _, plain = read_all(write_video(tmp_path / "plain.mp4", frames))
    found, turned = read_all(write_video(tmp_path / "turned.mp4", frames, rotation=90))
    assert found.flags == ("rotated by its display matrix",)
    np.testing.assert_array_equal(turned[0], np.rot90(plain[0]))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_16_bit_grey_keeps_its_brightness() -> None:
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    image, flags = decode_image(encoded(Image.fromarray(grey), "PNG"))
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]
    assert flags[0].startswith("converted from I")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb_and_are_flagged(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image, flags = decode_image(encoded(Image.new("RGB", (4, 3)).convert(mode), kind))
    assert image.shape == (3, 4, 3)
    assert flags == (f"converted from {mode}",)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, flags = decode_image(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif))
    assert image.shape == (8, 4, 3)
    assert flags == ("rotated by EXIF",)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_gives_the_pixels_that_pillow_gives(mode: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(pictures(1)[0]).convert(mode), "JPEG", quality=90, **options)
    image, flags = decode_image(data)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(image, np.asarray(expected.convert("RGB")))
    assert flags == (() if mode == "RGB" else ("converted from L",))


def scarred(path: Path) -> Path:
    """A JPEG with stray markers among its pixels, which Pillow decodes without a word."""
    data = bytearray(path.read_bytes())
    data[-150:-140] = b"\xff\xd2" * 5
    path.write_bytes(data)
    with Image.open(path) as image:
        image.load()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def faststart(path: Path) -> Path:
    """A long mp4 with its index in front, so that a cut leaves the header whole."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in pictures(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def audio(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "none.mp4", "No such file"),
    "empty file": (lambda d: written(d / "v.mp4", b""), "0 bytes"),
    "html": (lambda d: written(d / "v.mp4", b"<!doctype html>"), "not a video"),
    "playlist": (lambda d: written(d / "v.mp4", b"ffconcat version 1.0\nfile x"), "not a video"),
    "hls": (lambda d: written(d / "v.mp4", b"#EXTM3U\n/etc/passwd"), "not a video"),
    "mp4 without its end": (
        lambda d: cut(write_video(d / "v.mp4", pictures(60)), 0.9),
        "Invalid",
    ),
    "mp4 cut behind its index": (lambda d: cut(faststart(d / "v.mp4"), 0.5), "its header promises"),
    "avi cut in half": (lambda d: cut(write_video(d / "v.avi", pictures(60)), 0.5), "promises"),
    "audio only": (lambda d: audio(d / "v.mp4"), "no video stream"),
    "noise": (lambda d: written(d / "v.mp4", b"\0\0\0\x18ftypmp42" + bytes(500)), "Invalid data"),
    "empty folder": (lambda d: d, "no images"),
    "empty image": (lambda d: written(d / "f" / "1.jpg", b"").parent, "1.jpg: 0 bytes"),
    "html image": (
        lambda d: written(d / "f" / "1.jpg", b"<html>").parent,
        "1.jpg: not an image",
    ),
    "gif named jpg": (
        lambda d: written(d / "f" / "1.jpg", encoded(Image.new("L", (4, 4)), "GIF")).parent,
        "1.jpg: not an image",
    ),
    "cut image": (
        lambda d: cut(write_folder(d / "f", pictures(1)) / "0.jpg", 0.7).parent,
        "0.jpg: .*[Pp]remature end",
    ),
    "image with stray markers": (
        lambda d: scarred(write_folder(d / "f", pictures(1)) / "0.jpg").parent,
        "0.jpg: Corrupt JPEG data",
    ),
    "pipe": (lambda d: pipe(d / "v.mp4"), "not a regular file"),
    "folder holding a pipe": (
        lambda d: pipe(write_folder(d / "f", pictures(1)) / "1.jpg").parent,
        "1.jpg: not a regular file",
    ),
    "cut png": (
        lambda d: cut(write_folder(d / "f", pictures(1), ".png") / "0.png", 0.5).parent,
        "0.png",
    ),
    "too many pixels": (
        lambda d: written(d / "f" / "1.png", encoded(Image.new("1", (8000, 8000)), "PNG")).parent,
        "8000 x 8000 pixels",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_source_has_one_reason(tmp_path: Path, kind: str) -> None:
    make, reason = BROKEN[kind]
    path = make(tmp_path)
    with pytest.raises(BadVideoError, match=reason):
        read_all(path)


def test_wrong_count_in_the_header_is_flagged_and_sampled_again(tmp_path: Path) -> None:
    path = cut(faststart(tmp_path / "v.mp4"), 0.97)
    lengths: list[int] = []

    def all_of(length: int) -> range:
        lengths.append(length)
        return range(length)

    found = read_frames(path, all_of, lambda i, frame: None)
    assert lengths == [60, found.frames]
    assert 54 <= found.frames < 60
    assert "header promises 60 frames" in found.flags
