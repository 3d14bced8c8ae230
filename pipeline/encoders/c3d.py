"""C3D (Tran et al., Learning spatiotemporal features with 3D convolutional networks, ICCV 2015).

Parameters have the names that public ports to PyTorch give them.
"""

import torch.nn.functional as F
from torch import Tensor, nn

DIM = 4096


class C3D(nn.Module):
    """Clips [clip, 3, 16, 112, 112] -> what the classifier reads, fc7 after its ReLU, [clip, DIM].

    The dropout of public ports is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64)
        self.conv2 = _conv(64, 128)
        self.conv3a, self.conv3b = _conv(128, 256), _conv(256, 256)
        self.conv4a, self.conv4b = _conv(256, 512), _conv(512, 512)
        self.conv5a, self.conv5b = _conv(512, 512), _conv(512, 512)
        self.fc6 = nn.Linear(512 * 4 * 4, DIM)
        self.fc7 = nn.Linear(DIM, DIM)

    def forward(self, clip_NCTHW: Tensor) -> Tensor:
        """See the class."""
        x = F.max_pool3d(F.relu(self.conv1(clip_NCTHW)), (1, 2, 2))
        x = F.max_pool3d(F.relu(self.conv2(x)), 2)
        x = F.max_pool3d(F.relu(self.conv3b(F.relu(self.conv3a(x)))), 2)
        x = F.max_pool3d(F.relu(self.conv4b(F.relu(self.conv4a(x)))), 2)
        x = F.relu(self.conv5b(F.relu(self.conv5a(x))))
        x = F.max_pool3d(x, 2, padding=(0, 1, 1)).flatten(1)
        return F.relu(self.fc7(F.relu(self.fc6(x))))


def _conv(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, padding=1)
