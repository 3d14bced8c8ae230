"""Times of frames -> windows, as tables of literals; which videos a user means."""

from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from pipeline.predict.sources import find_sources
from pipeline.predict.windows import WINDOWS_MAX, Sliding, place_windows, times_of
from pipeline.video.images import BadVideoError

AT_10_HZ = np.arange(20) / 10  # 2 seconds


@pytest.mark.parametrize(
    ("sliding", "starts", "frames"),
    [
        (None, [0.0], [[2, 7, 12, 17]]),
        (Sliding(2, 1), [0.0], [[2, 7, 12, 17]]),
        (Sliding(9, 1), [0.0], [[2, 7, 12, 17]]),
        (Sliding(0.8, 0.6), [0.0, 0.6, 1.2], [[1, 3, 5, 7], [7, 9, 11, 13], [13, 15, 17, 19]]),
        # The rest at the end has a window of its own.
        (Sliding(0.8, 0.8), [0.0, 0.8, 1.2], [[1, 3, 5, 7], [9, 11, 13, 15], [13, 15, 17, 19]]),
        # A window of one frame, and windows that begin between two frames.
        (Sliding(0.1, 0.1), None, None),
        (Sliding(0.2, 0.15), None, None),
    ],
)
def test_windows_show_the_middles_of_their_segments(
    sliding: Sliding | None, starts: list[float] | None, frames: list[list[int]] | None
) -> None:
    windows = place_windows(AT_10_HZ, 4, sliding)
    assert windows.duration == pytest.approx(2)
    if starts is not None:
        np.testing.assert_allclose(windows.start_N, starts)
        assert windows.frame_NT.tolist() == frames
    seconds = windows.times_F[windows.frame_NT]
    assert (seconds + 0.1 > windows.start_N[:, None] - 1e-9).all()  # shown until the next frame is
    assert (seconds < windows.end_N[:, None]).all()
    assert windows.end_N[-1] == pytest.approx(2)


def test_frames_of_an_uneven_video_are_chosen_by_their_time() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 5.0, 5.1])
    windows = place_windows(times, 2, Sliding(1, 1))
    assert windows.frame_NT.tolist()[0] == [1, 3]
    assert windows.frame_NT.tolist()[2] == [3, 3]  # the picture that stood still from 2 to 3 s


def test_times_that_a_file_does_not_give_are_spaced_evenly() -> None:
    assert times_of(3, [np.empty(0)], 10).tolist() == [0, 0.1, 0.2]
    assert times_of(3, [], None).tolist() == [0, 0.04, 0.08]
    np.testing.assert_allclose(times_of(3, [np.array([0, 0.5, 1.0, 1.5])], 10), [0, 0.5, 1.0])


def test_windows_that_cannot_be_meant_are_refused() -> None:
    for window, stride, message in (
        (0.0, 1.0, "window is 0 seconds"),
        (float("nan"), 1.0, "window is nan"),
        (1.0, 2.0, "never be seen"),
        (None, 1.0, "stride is not read without window"),
    ):
        with pytest.raises(RefusedError, match=message):
            Sliding.of(window, stride)
    assert Sliding.of(3.0) == Sliding(3, 1.5)
    with pytest.raises(BadVideoError, match=f"expected at most {WINDOWS_MAX}"):
        place_windows(np.arange(100_000) / 10, 4, Sliding(0.05, 0.01))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_folders_and_lists_name_videos_and_folders_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "a/10.mp4", "a/2.mp4", "a/.hidden.mp4", "a/notes.md", "a/f/1.jpg", "a/f/2.jpg")
    (tmp_path / "a/link").symlink_to(tmp_path)
    (tmp_path / "list.txt").write_text("a/f\n\na/2.mp4\na\n")
    names = [["2.mp4", "10.mp4", "f"], ["f", "2.mp4", "10.mp4"], ["10.mp4"]]
    for given, expected in zip(("a", "list.txt", "a/10.mp4"), names, strict=True):
        assert [source.path.name for source in find_sources([tmp_path / given])] == expected


def test_inputs_that_are_not_there_or_not_clear_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "both/1.jpg", "both/v.mp4", "empty/readme.md")
    (tmp_path / "list.txt").write_text("both/v.mp4\nboth/w.mp4\n")
    for given, message in (
        ("none.mp4", "no video at"),
        ("both", "both videos and images"),
        ("both/1.jpg", "1.jpg is an image; name a folder"),
        ("empty", "holds neither videos nor folders of images"),
        ("list.txt", r"list\.txt:2: no video at"),
    ):
        with pytest.raises(RefusedError, match=message):
            find_sources([tmp_path / given])
