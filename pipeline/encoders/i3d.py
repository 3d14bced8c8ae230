"""I3D (Carreira and Zisserman, Quo vadis, action recognition?, CVPR 2017).

It is Inception-v1, inflated to three dimensions.  Parameters have the names that public ports to
PyTorch give them.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM = 1024
# Inputs and the widths of the branches: 1x1; 1x1, 3x3; 1x1, 3x3; pool, 1x1.
_MIXED = {
    "3b": (192, (64, 96, 128, 16, 32, 32)),
    "3c": (256, (128, 128, 192, 32, 96, 64)),
    "4b": (480, (192, 96, 208, 16, 48, 64)),
    "4c": (512, (160, 112, 224, 24, 64, 64)),
    "4d": (512, (128, 128, 256, 24, 64, 64)),
    "4e": (512, (112, 144, 288, 32, 64, 64)),
    "4f": (528, (256, 160, 320, 32, 128, 128)),
    "5b": (832, (256, 160, 320, 32, 128, 128)),
    "5c": (832, (384, 192, 384, 48, 128, 128)),
}


class I3D(nn.Sequential):
    """Clips [clip, 3, T, H, W] -> what the classifier reads, its mean over time, [clip, DIM].

    Published for 224 x 224 pixels and 64 frames; any number of frames will do.
    """

    def __init__(self) -> None:
        mixed = {name: _Mixed(*sizes) for name, sizes in _MIXED.items()}
        layers = {
            "Conv3d_1a_7x7": _Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": _MaxPool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": _Unit(64, 64),
            "Conv3d_2c_3x3": _Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": _MaxPool((1, 3, 3), (1, 2, 2)),
            **{f"Mixed_{name}": mixed[name] for name in ("3b", "3c")},
            "MaxPool3d_4a_3x3": _MaxPool((3, 3, 3), (2, 2, 2)),
            **{f"Mixed_{name}": mixed[name] for name in ("4b", "4c", "4d", "4e", "4f")},
            "MaxPool3d_5a_2x2": _MaxPool((2, 2, 2), (2, 2, 2)),
            **{f"Mixed_{name}": mixed[name] for name in ("5b", "5c")},
        }
        super().__init__(OrderedDict(layers))

    def forward(self, clip_NCTHW: Tensor) -> Tensor:
        """See the class."""
        x = super().forward(clip_NCTHW)
        # Published are the logits of every two steps, whose mean is that of their features.
        return F.avg_pool3d(x, (min(2, x.shape[2]), *x.shape[3:]), 1).mean((2, 3, 4))


class _Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, size, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv3d
        return F.relu(self.bn(conv(_padded(x, conv.kernel_size, conv.stride))))


class _MaxPool(nn.Module):
    def __init__(self, size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        # Zeros are below none of its inputs, which come from a ReLU.
        return F.max_pool3d(_padded(x, self.size, self.stride), self.size, self.stride)


class _Mixed(nn.Module):
    """An Inception module: four branches side by side."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, widths[0])
        self.b1a, self.b1b = _Unit(inputs, widths[1]), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(inputs, widths[3]), _Unit(widths[3], widths[4], 3)
        self.b3a, self.b3b = _MaxPool((3, 3, 3), (1, 1, 1)), _Unit(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(self.b3a(x)),
        )
        return torch.cat(branches, 1)


def _padded(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros around time, height and width, as TensorFlow's SAME adds them: more at the end."""
    around: list[int] = []
    for n, k, s in zip(x.shape[2:], size, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        around = [total // 2, total - total // 2, *around]  # the last axis comes first
    return F.pad(x, around)
