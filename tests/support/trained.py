"""A small rendered set, its features by the bundled encoder, and two runs trained on them."""

from dataclasses import dataclass
from pathlib import Path

import tgdfer
from cache.store import Store
from pipeline.demo.faces import FacesSpec, read_faces, write_faces
from pipeline.train.record import Record


@dataclass(frozen=True)
class Trained:
    """The videos, their store, and the records of two seeds of one fold."""

    root: Path
    store: Store
    records: list[Record]

    @property
    def folders(self) -> list[Path]:
        return [record.folder for record in self.records]

    def tested(self) -> list[Path]:
        """The test videos' folders of frames, from which their features were extracted."""
        paths = {video.id: video.path for video in read_faces(self.root).videos}
        return [paths[video_id] for video_id in self.records[0].predictions()[0]]


def train_small(here: Path) -> Trained:
    write_faces(here / "faces", FacesSpec(videos=35, seed=5), workers=1)
    store = tgdfer.extract(read_faces(here / "faces"), here / "s.zarr", views=1, device="cpu")
    method = tgdfer.load_method("paper", ["optimiser.epochs=2"])
    records = tgdfer.train(store, method, ["1"], seeds=2, runs=here / "runs", device="cpu")
    return Trained(here / "faces", store, records)
