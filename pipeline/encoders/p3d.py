"""P3D (Qiu, Yao and Mei, Learning spatio-temporal representation with pseudo-3D residual networks,
ICCV 2017).

Parameters have the names that public ports to PyTorch give them.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

DIM = 2048

_Kind = Literal["A", "B", "C"]
_KINDS: tuple[_Kind, ...] = ("A", "B", "C")


class P3D(nn.Module):
    """Clips [clip, 3, 16, 160, 160] -> what the classifier reads, [clip, DIM].

    ``blocks`` are those of the four stages: 3, 4, 6, 3 make P3D-63 and 3, 8, 36, 3 P3D-199.  The
    last stage is in 2-D, as only one step of time is left by then.
    """

    def __init__(self, blocks: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1_custom = nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        kinds = cycle(_KINDS)
        self.layer1 = _stage(blocks[0], 64, 64, 1, kinds)
        self.layer2 = _stage(blocks[1], 256, 128, 2, kinds)
        self.layer3 = _stage(blocks[2], 512, 256, 2, kinds)
        later = (_Block2D(DIM, 512, 1) for _ in range(1, blocks[3]))
        self.layer4 = nn.Sequential(_Block2D(1024, 512, 2), *later)

    def forward(self, clip_NCTHW: Tensor) -> Tensor:
        """See the class."""
        x = F.relu(self.bn1(self.conv1_custom(clip_NCTHW)))
        x = F.max_pool3d(x, (2, 3, 3), 2, (0, 1, 1))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = F.max_pool3d(stage(x), (2, 1, 1))
        features_ND: Tensor = self.layer4(x.squeeze(2)).mean((2, 3))
        return features_ND


def _stage(
    blocks: int, inputs: int, width: int, stride: int, kinds: Iterator[_Kind]
) -> nn.Sequential:
    """Residual blocks whose kinds take turns throughout the network."""
    first = _Block3D(inputs, width, stride, next(kinds))
    return nn.Sequential(
        first, *(_Block3D(4 * width, width, 1, next(kinds)) for _ in range(1, blocks))
    )


class _Block3D(nn.Module):
    """A bottleneck whose convolution is one in space, S, and one in time, T.

    Between the two layers that change the width, x becomes T(S(x)), S(x) + T(x) or
    S(x) + T(S(x)), by its kind A, B or C.
    """

    def __init__(self, inputs: int, width: int, stride: int, kind: _Kind) -> None:
        super().__init__()
        self.kind = kind
        strides = (1, stride, stride)
        self.conv1 = nn.Conv3d(inputs, width, 1, strides, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn3 = nn.BatchNorm3d(width)
        self.conv4 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm3d(4 * width)
        self.downsample = nn.Sequential()  # the shortcut
        if inputs != 4 * width:
            wider = nn.Conv3d(inputs, 4 * width, 1, strides, bias=False)
            self.downsample.extend([wider, nn.BatchNorm3d(4 * width)])

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.relu(self.bn1(self.conv1(x)))
        space = F.relu(self.bn2(self.conv2(narrow)))
        time = F.relu(self.bn3(self.conv3(narrow if self.kind == "B" else space)))
        mixed = time if self.kind == "A" else space + time
        return F.relu(self.bn4(self.conv4(mixed)) + self.downsample(x))


class _Block2D(nn.Module):
    """A bottleneck of the 2-D residual network."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv_normal = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_normal = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * width)
        self.downsample = nn.Sequential()  # the shortcut
        if inputs != 4 * width:
            wider = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample.extend([wider, nn.BatchNorm2d(4 * width)])

    def forward(self, x: Tensor) -> Tensor:
        narrow = F.relu(self.bn1(self.conv1(x)))
        mixed = F.relu(self.bn_normal(self.conv_normal(narrow)))
        return F.relu(self.bn4(self.conv4(mixed)) + self.downsample(x))
