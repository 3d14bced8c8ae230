"""Where kernels are tested."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run: in the interpreter, or compiled."""
    if request.param == "cuda":
        return request.getfixturevalue("gpu")
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels run compiled here")
    return torch.device("cpu")
