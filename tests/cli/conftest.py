"""What the tests of this folder extract features of."""

from pathlib import Path

import pytest

from pipeline.demo.faces import FacesSpec, write_faces


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small face set in DFEW's layout; tests must not change it."""
    folder = tmp_path_factory.mktemp("faces") / "DFEW"
    write_faces(folder, FacesSpec(videos=35), workers=1)
    return folder
