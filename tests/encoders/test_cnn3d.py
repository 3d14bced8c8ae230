"""C3D, I3D and P3D: sizes of the publications, names of public ports, features of the formulas."""

import math
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from cache.errors import RefusedError
from pipeline.encoders.clip import Encoder, find_encoder
from pipeline.encoders.cnn3d_models import MODELS, build_cnn3d
from support.sources import pictures

State = dict[str, Tensor]
# As public ports name their classifiers, with as many classes as in the publication.
CLASSIFIERS = {
    "c3d": {"fc8.weight": (487, 4096), "fc8.bias": (487,)},
    "i3d": {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)},
    "p3d63": {"fc.weight": (487, 2048), "fc.bias": (487,)},
    "p3d199": {"fc.weight": (487, 2048), "fc.bias": (487,)},
}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("c3d", 321 / 4),  # MB, in Table 2 of P3D's publication
        ("i3d", 25 / 2),  # millions, in Table 1 of I3D's, of its two streams
        ("p3d199", 261 / 4),  # MB, in Table 2 of P3D's
    ],
)
def test_a_model_has_as_many_parameters_as_published(name: str, published: float) -> None:
    """To 3 %, as the publications do not say what else their files hold."""
    with torch.device("meta"):
        parameters = build_cnn3d(name).parameters()
    count = sum(p.numel() for p in parameters) + sum(map(math.prod, CLASSIFIERS[name].values()))
    assert count / 1e6 == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("name", "layers"), [("p3d63", 63), ("p3d199", 199)])
def test_a_p3d_has_as_many_layers_as_its_name_says(name: str, layers: int) -> None:
    with torch.device("meta"):
        weights = [n for n, p in build_cnn3d(name).named_parameters() if p.ndim > 3]
    assert sum("downsample" not in n for n in weights) + 1 == layers  # and the classifier


# Some parameters of the ports: davidea/c3d-pytorch, piergiaj/pytorch-i3d, qijiezhao/pseudo-3d.
PORTS = {
    "c3d": {
        "conv1.weight": (64, 3, 3, 3, 3),
        "conv3b.bias": (256,),
        "conv5a.weight": (512, 512, 3, 3, 3),
        "fc6.weight": (4096, 8192),
        "fc7.bias": (4096,),
    },
    "i3d": {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
        "Conv3d_1a_7x7.bn.running_var": (64,),
        "Conv3d_2c_3x3.conv3d.weight": (192, 64, 3, 3, 3),
        "Mixed_3b.b1b.conv3d.weight": (128, 96, 3, 3, 3),
        "Mixed_4e.b2a.bn.weight": (32,),
        "Mixed_5c.b3b.conv3d.weight": (128, 832, 1, 1, 1),
    },
    "p3d199": {
        "conv1_custom.weight": (64, 3, 1, 7, 7),
        "bn1.weight": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1, 1),
        "layer2.7.conv2.weight": (128, 128, 1, 3, 3),
        "layer3.35.conv3.weight": (256, 256, 3, 1, 1),
        "layer3.0.bn4.running_mean": (1024,),
        "layer4.0.downsample.1.bias": (2048,),
        "layer4.2.conv_normal.weight": (512, 512, 3, 3),
        "layer4.2.bn_normal.weight": (512,),
    },
}


@pytest.mark.parametrize("name", PORTS)
def test_parameters_have_the_names_of_public_ports(name: str) -> None:
    with torch.device("meta"):
        state = build_cnn3d(name).state_dict()
    assert {n: tuple(state[n].shape) for n in PORTS[name]} == PORTS[name]


def bn(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    kept = (state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    mean, var, scale, shift = (t.view(-1, *[1] * (x.ndim - 2)) for t in kept)
    return (x - mean) / (var + eps).sqrt() * scale + shift


def c3d(state: State, x: Tensor) -> Tensor:
    """8 convolutions of 3 x 3 x 3, 5 poolings, fc6 and fc7 (Fig. 3 of the publication)."""
    for name in ("1", "2", "3a", "3b", "4a", "4b", "5a", "5b"):
        weight, bias = state[f"conv{name}.weight"], state[f"conv{name}.bias"]
        x = F.conv3d(x, weight, bias, padding=1).clamp(min=0)
        if name in ("1", "2", "3b", "4b", "5b"):
            padding = (0, 1, 1) if name == "5b" else 0
            x = F.max_pool3d(x, (1, 2, 2) if name == "1" else 2, padding=padding)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = (x @ state[f"{name}.weight"].T + state[f"{name}.bias"]).clamp(min=0)
    return x


def same(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """TensorFlow's padding, by its own documentation."""
    pads: list[int] = []
    for n, k, s in list(zip(x.shape[2:], sizes, strides, strict=True))[::-1]:
        both = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)
        pads += [both // 2, both - both // 2]
    return F.pad(x, pads)


def i3d(state: State, x: Tensor) -> Tensor:
    """Fig. 3 of the publication."""

    def unit(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = same(x, tuple(weight.shape[2:]), (stride,) * 3)
        return bn(state, f"{name}.bn", F.conv3d(x, weight, stride=stride), 1e-3).clamp(min=0)

    def pool(x: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(same(x, sizes, strides), sizes, strides)

    x = pool(unit("Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
    x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        if block == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        own = f"Mixed_{block}"
        branches = [unit(f"{own}.b0", x)]
        branches += [unit(f"{own}.b{n}b", unit(f"{own}.b{n}a", x)) for n in (1, 2)]
        branches += [unit(f"{own}.b3b", pool(x, (3, 3, 3), (1, 1, 1)))]
        x = torch.cat(branches, 1)
    steps = x.mean((3, 4))  # of every two steps of time, of which the mean is taken
    return ((steps[..., 1:] + steps[..., :-1]) / 2).mean(2)


def p3d63(state: State, x: Tensor) -> Tensor:
    """Fig. 3 of the publication, and He et al.'s residual network of 50 layers."""
    kinds: Iterator[str] = cycle("ABC")
    x = F.conv3d(x, state["conv1_custom.weight"], stride=(1, 2, 2), padding=(0, 3, 3))
    x = F.max_pool3d(bn(state, "bn1", x).clamp(min=0), (2, 3, 3), 2, (0, 1, 1))
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            own, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            short = x
            if block == 0:
                short = step(state, x, f"{own}.downsample.0", f"{own}.downsample.1", stride)
            y = step(state, x, f"{own}.conv1", f"{own}.bn1", stride).clamp(min=0)
            if stage < 4:
                y = mixed(state, own, y, next(kinds))
            else:
                y = step(state, y, f"{own}.conv_normal", f"{own}.bn_normal").clamp(min=0)
            x = (step(state, y, f"{own}.conv4", f"{own}.bn4") + short).clamp(min=0)
        if stage < 4:
            x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
            x = x[:, :, 0] if stage == 3 else x
    return x.mean((2, 3))


def mixed(state: State, own: str, x: Tensor, kind: str) -> Tensor:
    def space(x: Tensor) -> Tensor:
        return step(state, x, f"{own}.conv2", f"{own}.bn2").clamp(min=0)

    def time(x: Tensor) -> Tensor:
        return step(state, x, f"{own}.conv3", f"{own}.bn3").clamp(min=0)

    return {
        "A": lambda: time(space(x)),
        "B": lambda: space(x) + time(x),
        "C": lambda: space(x) + time(space(x)),
    }[kind]()


def step(state: State, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
    """A convolution that keeps the size, strided in space, and its normalisation."""
    weight = state[f"{conv}.weight"]
    padding = tuple(k // 2 for k in weight.shape[2:])
    strides = (stride,) * 2 if x.ndim == 4 else (1, stride, stride)
    made = (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, None, strides, padding)
    return bn(state, norm, made)


def random_state(name: str) -> State:
    """Weights as training leaves them, with statistics of normalisation and a classifier."""
    torch.manual_seed(0)
    state: State = build_cnn3d(name).state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    return state | {key: torch.randn(shape) for key, shape in CLASSIFIERS[name].items()}


ORACLES: dict[str, Callable[[State, Tensor], Tensor]] = {"i3d": i3d, "p3d63": p3d63}


def test_features_of_c3d_are_those_of_the_published_network() -> None:
    """With a sixteenth of its channels."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build_cnn3d("c3d")
    for name, own in list(model.named_children()):
        if isinstance(own, torch.nn.Conv3d):
            sizes = max(own.in_channels // 16, 3), own.out_channels // 16
            model.add_module(name, torch.nn.Conv3d(*sizes, 3, padding=1))
        elif isinstance(own, torch.nn.Linear):
            model.add_module(name, torch.nn.Linear(own.in_features // 16, own.out_features // 16))
    clips = torch.randn(2, 3, 16, 112, 112)
    with torch.inference_mode():
        found, expected = model.eval()(clips), c3d(model.state_dict(), clips)
    assert found.shape == (2, 256)
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "frames"), [("i3d", 10), ("p3d63", 16)])
def test_features_are_those_of_the_published_network(
    name: str, frames: int, tmp_path: Path
) -> None:
    state = random_state(name)
    save_file({f"module.{n}": t for n, t in state.items()}, tmp_path / "w.safetensors")
    files = find_encoder(f"cnn3d:{name}/{frames}", str(tmp_path / "w.safetensors"))
    size, mean, std = MODELS[name].size_px, MODELS[name].mean, MODELS[name].std
    shown = torch.from_numpy(pictures(frames, seed=3, height=size, width=size)).permute(0, 3, 1, 2)
    found = Encoder(files, "cpu", "fp32").encode(shown).float()
    pixels = (shown / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        expected = ORACLES[name](state, pixels.transpose(0, 1)[None])
    assert found.shape == (1, files.identity.dim)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c3d/8", "c3d makes one feature of 16 frames; use cnn3d:c3d/16, or i3d"),
        ("i3d", "expected one of c3d, i3d, p3d63, p3d199, a slash and the number of frames"),
        ("r3d_18/4", "expected one of c3d"),
        ("i3d/0", "expected one of c3d"),
    ],
)
def test_3d_cnns_that_there_are_not_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=message):
        find_encoder(f"cnn3d:{name}", str(tmp_path / "w.safetensors"))
