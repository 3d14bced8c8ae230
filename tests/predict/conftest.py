"""What the tests of this folder predict with."""

import pytest

from pipeline.predict.predictor import Predictor, load_predictor
from support.trained import Trained, train_small


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_small(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def ensemble(trained: Trained) -> Predictor:
    return load_predictor(trained.folders, device="cpu")
