"""Overlays, decoded again: the same frames at the same times, the curve and where it is now."""

import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.predict.features import Encoded
from pipeline.predict.overlay import FACE, WIDTH_MIN, overlay, panel_height
from pipeline.predict.pictures import colour_of, timeline
from pipeline.predict.prediction import Moment, VideoPrediction, WindowPrediction
from pipeline.predict.sources import Source
from pipeline.predict.windows import Sliding, place_windows_within
from pipeline.predict.written import write_overlay
from pipeline.video.crops import Crop
from pipeline.video.frames import source_sha256
from pipeline.video.images import BadVideoError
from pipeline.video.tracks import Track
from support.sources import pictures, write_folder

UNEVEN = np.concatenate([np.arange(10) / 25, 0.4 + np.arange(8) / 10, [3.0, 3.5]])


def predicted(
    path: Path, times_F: np.ndarray, sliding: Sliding | None = None, crop: Crop | None = None
) -> tuple[VideoPrediction, Encoded]:
    """A video whose influence grows from frame to frame, as if it had been predicted."""
    whole = 0, len(times_F)
    windows = place_windows_within(times_F, crop.track.span if crop else whole, 4, sliding)
    said = [
        WindowPrediction(
            start=float(windows.start_N[n]),
            end=float(windows.end_N[n]),
            label="sadness",
            probabilities={"happiness": 0.25, "sadness": 0.75},
            doubt=None,
            logits={},
            frames=tuple(
                Moment(frame=frame, seconds=times_F[frame], influence=t)
                for t, frame in enumerate(index_T.tolist())
            ),
        )
        for n, index_T in enumerate(windows.frame_NT)
    ]
    video = VideoPrediction(
        name="v",
        status="ok",
        label="sadness",
        probabilities=said[0].probabilities,
        frames=windows.count,
        seconds=windows.duration,
        windows=tuple(said),
    )
    digest = source_sha256(path)
    return video, Encoded(Source("v", path), crop=crop, sha256=digest, windows=windows)


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames, their times, and how long the video is; what every player needs is asserted."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = list(container.decode(stream))
        seconds = float(stream.duration * stream.time_base)
    images = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert images.shape[1] % 2 == images.shape[2] % 2 == 0
    return images, np.array([frame.time for frame in frames]), seconds


def marked(panel: np.ndarray) -> int:
    """The x at which the present time is marked, in red."""
    red = panel[:, :, 0].astype(int) - panel[:, :, 1:].max(2) > 60
    return round(float(np.average(np.arange(panel.shape[1]), weights=red.sum(0))))


def across(share: Any) -> Any:
    """The x of a share of the time between the margins."""
    return 6 + share * (WIDTH_MIN - 12)


def find(panel: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """The middle of what has this colour, as (y, x)."""
    distance = np.abs(panel.astype(int) - colour).sum(2)
    middle: np.ndarray = np.argwhere(distance < 100).mean(0)
    return middle


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_overlay_shows_the_same_frames_at_the_same_times(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "codecs_available", {codec, "mpeg4"})
    frames = pictures(len(UNEVEN), height=120, width=160)
    video, encoded = predicted(write_folder(tmp_path / "v", frames, ".png"), UNEVEN)
    overlay(tmp_path / "o.mp4", video, encoded)
    images, times, seconds = decoded(tmp_path / "o.mp4")
    np.testing.assert_allclose(times, UNEVEN, atol=1e-4)
    assert seconds == pytest.approx(encoded.windows.duration, abs=1e-3)  # type: ignore[union-attr]
    assert images.shape[1:3] == (WIDTH_MIN * 3 // 4 + panel_height(WIDTH_MIN), WIDTH_MIN)
    upper, panels = np.split(images, [WIDTH_MIN * 3 // 4], 1)
    for shown, frame in zip(upper, frames, strict=True):
        assert np.abs(shown[1::3, 1::3].astype(int) - frame).mean() < 20  # of 255
    places = np.array([marked(panel) for panel in panels])
    np.testing.assert_allclose(places, across(UNEVEN / seconds), atol=3)
    curve = panels[0, 48:]
    (low_y, low_x), (high_y, high_x) = find(curve, colour_of(0.0)), find(curve, colour_of(1.0))
    assert low_y > high_y + 30
    first, *_, last = video.windows[0].frames
    assert (low_x, high_x) == pytest.approx(
        (across(first.seconds / seconds), across(last.seconds / seconds)), abs=2
    )


def test_overlay_of_several_windows_shows_the_present_one_and_its_place(tmp_path: Path) -> None:
    times_F = np.arange(50) / 25
    source = write_folder(tmp_path / "v", pictures(50), ".png")
    video, encoded = predicted(source, times_F, Sliding(0.4, 0.4))
    overlay(tmp_path / "o.mp4", video, encoded)
    panels = decoded(tmp_path / "o.mp4")[0][:, -panel_height(WIDTH_MIN) :]
    places = np.array([marked(panel[:88]) for panel in panels])
    shares = np.arange(50) % 10 / 10  # it starts again in each window
    np.testing.assert_allclose(places, across(shares), atol=3)
    bars = np.array([marked(panel[-6:]) for panel in panels])
    np.testing.assert_allclose(bars, across(times_F / 2), atol=3)


def test_overlay_of_a_person_has_their_frames_and_a_box_around_the_face(tmp_path: Path) -> None:
    grey_F = 60 + 5 * np.arange(20, dtype=np.uint8)
    frames = np.broadcast_to(grey_F[:, None, None, None], (20, 96, 128, 3))
    x, y, width, height = box = 30, 20, 40, 48
    track = Track(6, np.array([[*box, *[0.0] * 10, 0.9]] * 9), frozenset({6, 14}))
    source = write_folder(tmp_path / "v", frames, ".png")
    video, encoded = predicted(source, np.arange(20) / 25, Sliding(0.12, 0.12), Crop(track))
    overlay(tmp_path / "o.mp4", video, encoded)
    images, times, seconds = decoded(tmp_path / "o.mp4")
    np.testing.assert_allclose(times, np.arange(9) / 25, atol=1e-4)
    assert seconds == pytest.approx(9 / 25)
    upper, panels = np.split(images, [WIDTH_MIN * 3 // 4], 1)
    np.testing.assert_allclose(upper[:, :40, :40].mean((1, 2, 3)), grey_F[6:15], atol=3)
    green = np.argwhere(np.abs(upper[0].astype(int) - FACE).sum(2) < 90)
    corners = np.array([[y, x], [y + height, x + width]]) * WIDTH_MIN / 128
    np.testing.assert_allclose([green.min(0), green.max(0)], corners, atol=4)
    places = [marked(panel[:88]) for panel in panels]
    np.testing.assert_allclose(places, across(np.arange(9) % 3 / 3), atol=3)
    bars = [marked(panel[-6:]) for panel in panels]
    np.testing.assert_allclose(bars, across(np.arange(9) / 9), atol=3)


def test_source_that_changed_leaves_no_overlay(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "v", pictures(10), ".png")
    video, encoded = predicted(source, np.arange(10) / 25)
    (source / "9.png").unlink()
    with pytest.raises(BadVideoError, match="changed while it was read"):
        write_overlay(tmp_path / "out", 0, video, encoded)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_name_in_a_timeline_is_no_formula_and_needs_no_font(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "v", pictures(1))
    video, _ = predicted(source, np.arange(50) / 25, Sliding(0.4, 0.4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("$x^{$", "\N{CJK UNIFIED IDEOGRAPH-540D}.mp4"):
            assert timeline(video.model_copy(update={"name": name})).startswith(b"\x89PNG")


def test_video_whose_time_stamps_stand_still_keeps_its_frames(tmp_path: Path) -> None:
    times_F = np.array([0, 0, 0, 0.04, 0.08])
    source = write_folder(tmp_path / "v", pictures(5), ".png")
    overlay(tmp_path / "o.mp4", *predicted(source, times_F))
    assert len(decoded(tmp_path / "o.mp4")[0]) == 5
