"""Views made on the encoder's device are those of the CPU, up to rounding; here it is a CPU too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.store import open_store
from pipeline.datasets.videos import Video
from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from pipeline.extract.reencode import compare_reencoded
from pipeline.kernels.pixels import PixelFormat
from pipeline.predict.features import Encoded, ReadSettings, encode_sources, read_pictures
from pipeline.predict.sources import find_sources
from pipeline.video import views
from pipeline.video.augmentation import ViewNames, view_rule
from pipeline.video.views import DeviceViews, HostViews, decode_views
from support.crowds import Walk, compose, scripts
from support.sources import listed, pictures, write_folder, write_list, write_video

FILES = find_encoder("mini")
PIXELS = FILES.preprocessing
LEVELS = PixelFormat(torch.ones(3), torch.zeros(3), torch.uint8)
SETTINGS = ExtractSettings(views=2, frames=4, batch_frames=8, device="cpu", workers=2)


def made(maker: HostViews | DeviceViews, frames: list[np.ndarray]) -> torch.Tensor:
    for length in (len(frames) + 3, len(frames)):  # the header promised three frames more
        wanted = maker.choose(length)
        for index, frame in enumerate(frames):
            if index in wanted:
                maker.take(index, frame)
    return maker.finish().int()


@pytest.mark.parametrize("waiting_bytes", [1, 64 << 20])
def test_views_are_those_of_the_cpu_up_to_rounding_however_often_frames_are_uploaded(
    waiting_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "WAITING_BYTES", waiting_bytes)
    sizes = [(48, 64), (200, 150), (64, 64)]
    frames = [pictures(1, seed=i, height=h, width=w)[0] for i in range(4) for h, w in sizes]
    rules = [view_rule(0, "a", view, 8) for view in range(3)]
    error = made(DeviceViews(rules, PIXELS, LEVELS), frames) - made(
        HostViews(rules, PIXELS), frames
    )
    assert error.abs().max() <= 3
    assert error.abs().float().mean() < 0.3


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were a GPU: frames are uploaded, and views normalised by the definitions."""
    monkeypatch.setattr(Encoder, "pixel_format", Encoder.normalised)


def features_of(encoded: Encoded) -> np.ndarray:
    assert encoded.features_NTD is not None
    return encoded.features_NTD


def lowest_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = (torch.from_numpy(x).double() for x in (ours, theirs))
    return float(torch.cosine_similarity(a, b, dim=-1).min())


def test_features_by_the_two_ways_have_a_cosine_of_9999(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "videos").mkdir()
    write_list(tmp_path / "videos", 5)
    whole = listed(tmp_path)
    broken = replace(whole.videos[2], path=tmp_path / "nothing")
    videos = replace(whole, videos=(*whole.videos[:2], broken, *whole.videos[3:]))
    busy = extract(videos, tmp_path / "host.zarr", FILES, SETTINGS).progress.busy
    assert min(busy[name] for name in ("decode", "views", "encode", "write")) > busy["upload"] == 0
    host = open_store(tmp_path / "host.zarr")
    sources = find_sources([str(videos.videos[0].path)])
    settings = ReadSettings(frames=4, batch_frames=8, faces="whole")
    encoder = Encoder(FILES, "cpu", "auto")
    ((_, (predicted,)),) = encode_sources(sources, encoder, settings)
    request.getfixturevalue("on_device")
    busy = extract(videos, tmp_path / "device.zarr", FILES, SETTINGS).progress.busy
    assert 0 < min(busy.values()) <= max(busy.values()) <= 1
    device = open_store(tmp_path / "device.zarr")
    assert device.identity == host.identity
    assert device.missing.keys() == host.missing.keys() == {broken.id}
    kept = [row for row, name in enumerate(host.ids) if name != broken.id]
    ours, theirs = (store.load_features()[kept] for store in (device, host))
    assert not np.array_equal(ours, theirs)
    assert lowest_cosine(ours, theirs) >= 0.9999
    again = compare_reencoded(device, videos, Encoder(FILES, "cpu", "auto"), 3)
    assert all(one.identical for one in again)
    ((_, (uploaded,)),) = encode_sources(sources, Encoder(FILES, "cpu", "auto"), settings)
    assert lowest_cosine(features_of(uploaded), features_of(predicted)) >= 0.9999
    assert np.array_equal(features_of(uploaded)[0], ours[0, 0])


def test_a_view_knows_how_long_its_upload_and_its_pixels_took(tmp_path: Path) -> None:
    video = Video("a", write_folder(tmp_path / "a", pictures(6)), 0)
    found = decode_views(video, (0, 1), 4, 0, PIXELS, form=LEVELS)
    assert min(found.upload_seconds, found.views_seconds) > 0
    plain = decode_views(video, (0, 1), 4, 0, PIXELS)
    assert plain.views_seconds > plain.upload_seconds == 0
    assert np.array_equal(plain.frame_index_VT, found.frame_index_VT)


@pytest.mark.slow  # it renders
def test_faces_are_cut_out_before_the_upload_and_views_follow_the_named_rules(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    walks = (Walk(330, 170, 130, first=6), Walk(40, 40, 90))
    path = write_video(
        tmp_path / "a.mp4", compose(list(zip(scripts(2), walks, strict=True)), 24).frames
    )
    names = ViewNames("dfer-clip", "dfer-clip")
    host, device = (
        decode_views(
            Video("a", path, 0), (0, 1, 2), 8, 0, PIXELS, names=names, cropping="crop", form=form
        )
        for form in (None, LEVELS)
    )
    assert device.found == host.found
    assert device.length == host.length < host.found.frames
    assert np.array_equal(device.frame_index_VT, host.frame_index_VT)
    assert (host.views_VTCHW.int() - device.views_VTCHW.int()).abs().max() <= 3

    sources = find_sources([str(path)])
    settings = ReadSettings(frames=4, batch_frames=8, workers=1)
    encoder = Encoder(FILES, "cpu", "auto")
    ((_, rows),) = encode_sources(sources, encoder, settings)
    theirs = {own.source.name: own for own in rows}
    request.getfixturevalue("on_device")
    ((_, rows),) = encode_sources(sources, encoder, settings)
    ours = {own.source.name: own for own in rows}
    assert ours.keys() == theirs.keys() == {f"{path}#1", f"{path}#2"}
    for name, one in ours.items():
        assert lowest_cosine(features_of(one), features_of(theirs[name])) >= 0.9999
        assert one.windows is not None
        assert one.pictures_TCHW is not None
        (again,) = read_pictures([(one, one.windows.frame_NT[0])], encoder)
        assert torch.equal(again, one.pictures_TCHW)
