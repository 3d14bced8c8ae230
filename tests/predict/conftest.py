"""What the tests of this folder predict with."""

import pytest

from pipeline.predict.predictor import Predictor, load_predictor
from support.trained import Trained


@pytest.fixture(scope="session")
def ensemble(trained: Trained) -> Predictor:
    return load_predictor(trained.folders, device="cpu")
