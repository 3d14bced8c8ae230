"""Sampling rules, and decoding of good, odd and broken sources by the real decoders."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.videos import VIDEO_SUFFIXES
from pipeline.video.frames import Found, list_images, read_frames, read_times
from pipeline.video.images import BadVideoError
from pipeline.video.sampling import at_moments, middle_of_segments, uniform_in_segments
from support.sources import pictures, write_folder, write_video
from support.trees import add_video

MIDDLES = {
    1: [0] * 16,
    5: [0, 1, 2, 3, 4] + [4] * 11,
    15: [*range(15), 14],
    16: list(range(16)),
    17: [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16],
    31: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30],
    100: [3, 9, 15, 21, 28, 34, 40, 46, 53, 59, 65, 71, 78, 84, 90, 96],
}


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES - {".ogv"}))  # no encoder makes one here
def test_every_suffix_that_lists_accept_is_decoded(tmp_path: Path, suffix: str) -> None:
    add_video(tmp_path / f"a{suffix}")
    assert (
        read_frames(tmp_path / f"a{suffix}", lambda count: [], lambda index, rgb: None).frames == 4
    )


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


CONTAINERS = {
    "mp4": ["mpeg4", "libx264", "libvpx-vp9", "mpeg2video", "dirac"],
    "mov": ["mjpeg", "prores_ks", "png", "qtrle", "jpeg2000", "cfhd", "v210", "cinepak", "rpza"],
    "avi": ["mpeg4", "mjpeg", "ffv1", "huffyuv", "msmpeg4", "msmpeg4v2", "utvideo", "zmbv", "snow"],
    "mkv": ["mpeg4", "libx264", "ffv1", "libvpx", "rawvideo"],
    "webm": ["libvpx", "libvpx-vp9"],
    "flv": ["flv", "libx264", "flashsv"],
    "wmv": ["wmv1", "wmv2"],
    "mpg": ["mpeg1video", "mpeg2video"],
    "ts": ["mpeg2video", "libx264"],
    "m2v": ["mpeg2video"],
    "ogv": ["libvpx"],
    "gif": ["gif"],
}


ODD_SIZES = ("mpeg4", "libvpx", "libvpx-vp9", "ffv1", "png", "gif", "mpeg2video")


@pytest.mark.parametrize(("suffix", "codec"), [(s, c) for s in CONTAINERS for c in CONTAINERS[s]])
def test_videos_decode_to_the_frames_that_were_encoded(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    frames = pictures(20)
    if codec in ODD_SIZES:
        frames = frames[:, :47, :61]
    found, decoded = read_all(write_video(tmp_path / f"v.{suffix}", frames, codec))
    assert (found.frames, found.flags) == (20, ())
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


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def faststart(path: Path, flags: str = "faststart") -> Path:
    """A long mp4 with its index in front, so that a cut leaves the header whole."""
    with av.open(str(path), "w", options={"movflags": flags}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in pictures(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def silence(path: Path, packets: int = 1, cover: bool = False, frames: int = 0) -> Path:
    """Sound, 1024 / 44100 seconds a packet, and perhaps a picture of its cover or a video."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        if cover or frames:
            video = container.add_stream("mjpeg", rate=25)
            video.height, video.width, video.pix_fmt = 48, 64, "yuvj420p"
            video.disposition = Disposition.attached_pic if cover else Disposition(0)
            for picture in pictures(frames or 1):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode())
        for _ in range(packets):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 44100
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


GIF = b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2L\1\0;"


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
        r"its index \(moov\) is missing: the recording or the copy was not finished; .* untrunc",
    ),
    "mp4 without any of its index": (
        lambda d: cut(write_video(d / "v.mp4", pictures(60)), 0.5),
        r"its index \(moov\) is missing",
    ),
    "mp4 cut behind its index": (lambda d: cut(faststart(d / "v.mp4"), 0.5), "its header promises"),
    "avi cut in half": (lambda d: cut(write_video(d / "v.avi", pictures(60)), 0.5), "promises"),
    "mkv cut in half": (lambda d: cut(write_video(d / "v.mkv", pictures(60)), 0.5), "promises"),
    "webm cut in half": (
        lambda d: cut(write_video(d / "v.webm", pictures(60), "libvpx"), 0.5),
        r"decoded \d+ frames of the 60 its header promises",
    ),
    "mkv with sound cut in half": (
        lambda d: cut(silence(d / "v.mkv", packets=200, frames=60), 0.5),
        "promises",
    ),
    "flv cut in half": (lambda d: cut(write_video(d / "v.flv", pictures(60), "flv"), 0.5), "60"),
    "mp4 in fragments, cut in half": (
        lambda d: cut(faststart(d / "v.mp4", "frag_keyframe+empty_moov"), 0.5),
        "its header promises",
    ),
    "gif cut in half": (
        lambda d: cut(write_video(d / "v.gif", pictures(60), "gif"), 0.5),
        "cut short: the GIF has no end",
    ),
    "gif without its last byte": (lambda d: written(d / "v.gif", GIF[:-1]), "cut short"),
    "audio only": (lambda d: silence(d / "v.mp4"), "no video stream"),
    "audio with its cover": (
        lambda d: silence(d / "v.mp4", packets=9, cover=True),
        r"no video stream \(cover art only\)",
    ),
    "video of one line": (
        lambda d: write_video(d / "v.mkv", pictures(3, width=1024)[:, :2], "ffv1"),
        "1024 x 2 pixels: one side is more than 100 times the other",
    ),
    "video of no frames": (
        lambda d: write_video(d / "v.avi", pictures(1)[:0]),
        "its header promises 0 frames",
    ),
    "noise": (lambda d: written(d / "v.mp4", b"\0\0\0\x18ftypmp42" + bytes(500)), "Invalid data"),
    "empty folder": (lambda d: d, "no images"),
    "empty image": (lambda d: written(d / "f" / "1.jpg", b"").parent, "1.jpg: 0 bytes"),
    "html image": (
        lambda d: written(d / "f" / "1.jpg", b"<html>").parent,
        "1.jpg: not an image",
    ),
    "gif named jpg": (
        lambda d: written(d / "f" / "1.jpg", GIF).parent,
        "1.jpg: not an image",
    ),
    "cut image": (
        lambda d: cut(write_folder(d / "f", pictures(1)) / "0.jpg", 0.7).parent,
        "0.jpg: .*[Pp]remature end",
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
        lambda d: write_folder(d / "f", np.zeros((1, 8000, 8000), np.uint8), ".png"),
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


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flips", [{}, {"hflip": True}, {"vflip": True}])
def test_display_matrix_is_applied(tmp_path: Path, degrees: int, flips: dict[str, bool]) -> None:
    _, plain = read_all(write_video(tmp_path / "plain.mp4", pictures(2)))
    path = write_video(tmp_path / "shown.mp4", pictures(2), rotation=degrees, flips=flips)
    found, shown = read_all(path)
    expected = np.rot90(plain[0], degrees // 90)
    if "hflip" in flips:
        expected = np.fliplr(expected)
    if "vflip" in flips:
        expected = np.flipud(expected)
    np.testing.assert_array_equal(shown[0], expected)
    done = "mirrored" if flips else "rotated"
    assert found.flags == ((f"{done} by its display matrix",) if degrees or flips else ())


def test_display_matrix_of_an_odd_angle_is_flagged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", pictures(2), rotation=100)
    found, frames = read_all(path)
    assert frames[0].shape == (64, 48, 3)
    assert "odd display matrix, applied roughly" in found.flags


@pytest.mark.parametrize(
    ("aspect", "shape", "flags"),
    [
        (Fraction(4, 3), (48, 85, 3), ("resampled to square pixels",)),
        (Fraction(8, 9), (54, 64, 3), ("resampled to square pixels",)),
        (Fraction(405, 404), (48, 64, 3), ()),
    ],
)
def test_frames_have_square_pixels(
    tmp_path: Path, aspect: Fraction, shape: tuple[int, ...], flags: tuple[str, ...]
) -> None:
    found, frames = read_all(write_video(tmp_path / "v.mp4", pictures(2), aspect=aspect))
    assert frames[0].shape == shape
    assert found.flags == flags


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_frames_before_an_edit_list_are_not_missed(tmp_path: Path, codec: str) -> None:
    _, whole = read_all(write_video(tmp_path / "whole.mp4", pictures(30), codec))
    found, shown = read_all(write_video(tmp_path / "edited.mp4", pictures(30), codec, begins=8))
    assert (found.frames, found.flags) == (22, ())
    np.testing.assert_array_equal(shown[-1], whole[-1])


def test_size_may_change_midway(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.ts", pictures(5), "libx264")
    large = write_video(tmp_path / "b.ts", pictures(5, height=96, width=128), "libx264")
    small.write_bytes(small.read_bytes() + large.read_bytes())
    found, frames = read_all(small)
    assert (found.frames, found.flags) == (10, ())
    assert [frame.shape[0] for frame in frames] == 5 * [48] + 5 * [96]


def test_sound_that_outlasts_the_pictures_promises_none(tmp_path: Path) -> None:
    found, _ = read_all(silence(tmp_path / "v.mkv", packets=200, frames=20))
    assert (found.frames, found.flags) == (20, ())


def test_video_that_lacks_its_end_is_flagged(tmp_path: Path) -> None:
    short = cut(write_video(tmp_path / "v.mkv", pictures(60)), 0.97)
    assert "header promises 60 frames" in read_all(short)[0].flags
    stream = cut(write_video(tmp_path / "v.ts", pictures(60), "libx264"), 0.501)
    assert "ends inside a packet" in read_all(stream)[0].flags


def test_name_of_an_image_need_not_be_text(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", pictures(2))
    bad = Path(os.fsdecode(bytes(folder / "1") + b"\xff.jpg"))
    (folder / "1.jpg").rename(bad)
    assert read_all(folder)[0].frames == 2
    bad.write_bytes(b"")
    with pytest.raises(BadVideoError, match=r"1\\udcff.jpg: 0 bytes"):
        read_all(folder)


def test_video_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", pictures(3))

    def replace(index: int, _: np.ndarray) -> None:
        if index == 2:
            write_video(path, pictures(3, seed=1))

    with pytest.raises(BadVideoError, match="changed while it was read"):
        read_frames(path, range, replace)


@pytest.mark.parametrize("error", [KeyError("ours"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("fails", ["choose", "take"])
def test_fault_of_the_caller_is_no_property_of_a_video(
    tmp_path: Path, error: Exception, fails: str
) -> None:
    def raising(*_: object) -> Any:
        raise error

    sources = [
        write_video(tmp_path / "v.mp4", pictures(3)),
        write_folder(tmp_path / "f", pictures(3)),
    ]
    for path in sources:
        with pytest.raises(type(error)):
            read_frames(path, raising if fails == "choose" else range, raising)


@pytest.mark.parametrize(
    ("name", "codec", "begins", "frames"),
    [
        ("v.mp4", "mpeg4", 0, 12),
        ("v.mp4", "h264", 0, 12),
        ("v.mp4", "mpeg4", 4, 8),
        ("v.webm", "vp9", 0, 12),
        ("v.avi", "mpeg4", 0, 12),
        ("v.gif", "gif", 0, 12),
    ],
)
def test_times_are_those_of_the_frames_that_are_shown(
    tmp_path: Path, name: str, codec: str, begins: int, frames: int
) -> None:
    path = write_video(tmp_path / name, pictures(12), codec, begins=begins)
    found = read_frames(path, lambda count: [], lambda index, frame: None)
    times = read_times(path)
    assert len(times) == found.frames == frames
    np.testing.assert_allclose(times, np.arange(frames) / 25, atol=2e-3)


def test_times_of_what_is_no_video_are_empty(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"<html>")
    assert read_times(tmp_path / "v.mp4").size == 0
