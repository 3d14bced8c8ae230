"""Videos in which faces are not cropped -> a store of the features of cropped faces."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.errors import RefusedError
from cache.store import open_store
from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.extract.loop import extract
from pipeline.extract.planning import ExtractSettings
from pipeline.extract.reencode import compare_reencoded
from pipeline.extract.repair import settings_of
from pipeline.video.crops import Crop, cropping_rule
from pipeline.video.frames import read_frames
from pipeline.video.tracks import find_people
from support.crowds import Walk, compose, scripts
from support.sources import listed, pictures, write_encoder, write_folder, write_video

SETTINGS = ExtractSettings(views=2, frames=4, device="cpu", workers=1, faces="crop")

pytestmark = pytest.mark.slow  # it renders


def test_store_of_cropped_faces_is_that_of_the_crops(tmp_path: Path) -> None:
    walks = (Walk(330, 170, 130, first=6), Walk(40, 40, 90))
    cast = list(zip(scripts(2), walks, strict=True))
    raw, cut = tmp_path / "raw", tmp_path / "cut"
    (raw / "videos").mkdir(parents=True)
    path = write_video(raw / "videos/a.mp4", compose(cast, 30).frames)
    write_video(raw / "videos/b.mp4", pictures(9))
    people = find_people(path, read_frames)
    first, count = people.main.span
    assert first >= 6
    faces: list[np.ndarray] = []
    crop = Crop(people.main)
    read_frames(path, lambda _: range(first, first + count), lambda n, i: faces.append(crop(n, i)))
    write_folder(cut / "videos/a", np.stack(faces), ".png")
    write_folder(cut / "videos/b", pictures(9))

    encoder = find_encoder(write_encoder(tmp_path / "encoder"))
    summary = extract(listed(raw), tmp_path / "raw.zarr", encoder, SETTINGS)
    assert summary.failures == {"b": "no face found"}
    store = open_store(tmp_path / "raw.zarr")
    assert store.load_rows(0)[0].flags == ("more people: 1",)
    assert (store.identity.faces, store.plan.schema_version) == (cropping_rule("crop"), 3)

    whole = replace(SETTINGS, faces="whole")
    extract(listed(cut), tmp_path / "cut.zarr", encoder, whole)
    other = open_store(tmp_path / "cut.zarr")
    assert '"faces"' not in (tmp_path / "cut.zarr/plan.json").read_text()
    for view in range(2):
        one, same = (own.load_features([view])[0] for own in (store, other))
        np.testing.assert_array_equal(one, same)
        shown = store.load_frame_index([view])[0] - other.load_frame_index([view])[0]
        assert (shown == first).all()

    with pytest.raises(RefusedError, match=r"faces +crop, rules 1, opencv .* whole"):
        extract(listed(raw), tmp_path / "raw.zarr", encoder, whole)
    assert settings_of(store.plan, ExtractSettings()).faces == "crop"
    (again,) = compare_reencoded(store, listed(raw), Encoder(encoder, "cpu", "fp32"), 1)
    assert again.identical


def test_faces_of_other_names_are_refused() -> None:
    with pytest.raises(RefusedError, match="--faces auto: expected whole, crop, aligned"):
        ExtractSettings(faces="auto")
