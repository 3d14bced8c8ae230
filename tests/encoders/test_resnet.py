"""A frozen ResNet computes what open_clip's does."""

from typing import Literal

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.encoders.resnet import FrozenResNet


def resnet(layers: list[int], width: int, heads: int, size: int) -> ModifiedResNet:
    """With weights and statistics of which none is at its initial value."""
    torch.manual_seed(0)
    made = ModifiedResNet(layers, 24, heads, size, width)
    for name, values in made.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            values.normal_(0, 0.3)
        elif name.endswith("running_var") or values.ndim == 1:
            values.uniform_(0.5, 1.5)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "size"),
    [([1, 1, 1, 1], 8, 4, 32), ([2, 3, 1, 2], 16, 8, 96), ([1, 2, 2, 1], 6, 3, 64)],
)
def test_features_are_those_of_the_network_itself(
    layers: list[int], width: int, heads: int, size: int
) -> None:
    original = resnet(layers, width, heads, size)
    frames = torch.randn(5, 3, size, size).to(memory_format=torch.channels_last)
    features = FrozenResNet(original)(frames).double()
    plain = original(frames).double()
    exact = original.double()(frames.double())
    assert exact.std() > 0.1
    error = (features - exact).abs().max() / exact.abs().max()
    assert error <= max(1e-6, 2 * (plain - exact).abs().max() / exact.abs().max())


def test_weights_are_where_those_of_the_network_are() -> None:
    frozen = FrozenResNet(resnet([1, 2, 1, 1], 8, 4, 32).to("meta"))
    tensors = [*frozen.parameters(), *frozen.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert not any(tensor.requires_grad for tensor in tensors)


def test_weights_of_the_network_stay_its_own() -> None:
    original = resnet([1, 1, 1, 1], 8, 4, 32)
    before = {name: values.clone() for name, values in original.state_dict().items()}
    frames = torch.randn(2, 3, 32, 32)
    frozen = FrozenResNet(original)
    kept = frozen(frames)
    for name, values in original.state_dict().items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=0)
        values += 1
    torch.testing.assert_close(frozen(frames), kept, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoder_uses_it_until_it_is_trained(precision: Literal["fp32", "bf16"]) -> None:
    encoder = Encoder(find_encoder("mini"), "cpu", precision)
    frames = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    features = encoder.encode(frames).double()
    encoder = Encoder(find_encoder("mini"), "cpu", "fp32")
    encoder.make_trainable()
    theirs = encoder.encode_with_gradient(frames).detach().double()
    cosine = torch.cosine_similarity(features, theirs, dim=1)
    assert cosine.min() > (1 - 1e-6 if precision == "fp32" else 0.999)
    encoder.visual.attnpool.c_proj.bias.data.zero_()
    assert not torch.equal(encoder.encode(frames).double(), features)
