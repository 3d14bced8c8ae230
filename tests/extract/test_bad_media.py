"""The command line, on a list of three: one bad image must not cost the other two."""

from pathlib import Path

import numpy as np
import pytest

from cache.store import open_store
from support.commands import tgdfer
from support.sources import BOMB, chunk, pictures, png, write_folder


@pytest.mark.slow
def test_bad_png_is_left_out_and_the_others_are_committed(tmp_path: Path) -> None:
    for part, rows in (("train", "1,1\n2,2\n"), ("test", "3,7\n")):
        path = tmp_path / f"DFEW/EmoLabel_DataSplit/{part}(single-labeled)/set_1.csv"
        path.parent.mkdir(parents=True)
        path.write_text("video_name,label\n" + rows)
    for i in (1, 2, 3):
        folder = write_folder(tmp_path / f"DFEW/Clip/clip_224x224/{i:05d}", pictures(3), ".png")
    warns = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\xff\xff\xff\xff\0\0\0\x08"
    (folder / "0.png").write_bytes(png(chunk(b"eXIf", warns), width=64, height=48))
    (folder.parent / "00002/1.png").write_bytes(png(chunk(b"zTXt", b"a\0\0" + BOMB)))
    options = ["--dataset", "dfew", "--root", "DFEW", "--encoder", "mini", "--views", 1]
    done = tgdfer("extract", *options, "--store", "s.zarr", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
    store = open_store(tmp_path / "s.zarr")
    reason = store.missing["00002"]
    assert reason.startswith("1.png: ValueError: Decompressed data too large")
    assert (tmp_path / "s.zarr.failed.txt").read_text() == f"00002\t{reason}\n"
    finite = np.isfinite(store.load_features()).all(axis=(1, 2, 3))
    assert finite.tolist() == [True, False, True]
