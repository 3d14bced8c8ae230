"""Features as the encoder gives them -> features that training can work with, of the same shape.

An encoder's features share a large mean and have a few dimensions of large variance, which hide
what tells two frames apart. The statistics come from the videos that a run trains on.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scale = Literal["none", "layer_norm", "standardise", "whiten"]

# Added to every variance, as a share of the mean variance: dimensions that hardly vary stay small.
FLOOR = {"standardise": 1e-5, "whiten": 1e-2}


def log_quality(x_RBTD: Tensor, quality_R: Tensor) -> Tensor:
    """Log weights of the frames of a video by how near they are to the training frames, [R, B, T].

    w = softmax_t(-quality mean_d x_td²), of features scaled by training statistics: what is unlike
    the training frames, such as an occluded face, gets less weight.
    """
    distance_RBT = x_RBTD.square().mean(-1)
    return (-quality_R.to(x_RBTD.dtype)[:, None, None] * distance_RBT).log_softmax(2)


class InputScale(nn.Module):
    """The features X^v of R runs, [R, B, T, D], scaled; nothing is learned by gradients.

    - none: x
    - layer_norm: each frame minus its mean over D, divided by its standard deviation
    - standardise: (x - m) / s, with the mean m and deviation s of every dimension
    - whiten: (x - m) C^(-1/2), with the covariance C of the dimensions (ZCA)
    """

    mean_RD: Tensor
    scale_RD: Tensor
    scale_RDD: Tensor

    def __init__(self, runs: int, size: int, kind: Scale) -> None:
        super().__init__()
        self.kind = kind
        if self.needs_statistics:
            self.register_buffer("mean_RD", torch.zeros(runs, size))
        if kind == "standardise":
            self.register_buffer("scale_RD", torch.zeros(runs, size))
        if kind == "whiten":
            self.register_buffer("scale_RDD", torch.zeros(runs, size, size))

    @property
    def needs_statistics(self) -> bool:
        """Whether ``fit`` must be called before the first use."""
        return self.kind in FLOOR

    def forward(self, x_RBTD: Tensor) -> Tensor:
        if self.kind == "none":
            return x_RBTD
        if self.kind == "layer_norm":
            return F.layer_norm(x_RBTD, x_RBTD.shape[-1:])
        centred_RBTD = x_RBTD - self.mean_RD[:, None, None]
        if self.kind == "standardise":
            return centred_RBTD * self.scale_RD[:, None, None]
        with torch.autocast(x_RBTD.device.type, enabled=False):
            return torch.matmul(centred_RBTD, self.scale_RDD[:, None])

    @torch.no_grad()
    def fit(self, run: int, parts: Iterable[Tensor]) -> None:
        """Take the statistics of a run from its training videos, in parts [..., D]."""
        device, size = self.mean_RD.device, self.mean_RD.shape[1]
        count = 0
        sum_D = torch.zeros(size, dtype=torch.float64, device=device)
        products_DD = torch.zeros(size, size, dtype=torch.float64, device=device)
        for part in parts:
            x_ND = part.flatten(0, -2).double()
            count += len(x_ND)
            sum_D += x_ND.sum(0)
            products_DD += x_ND.T @ x_ND
        mean_D = sum_D / count
        covariance_DD = products_DD / count - torch.outer(mean_D, mean_D)
        floor = FLOOR[self.kind] * covariance_DD.diagonal().mean()
        self.mean_RD[run] = mean_D
        if self.kind == "standardise":
            self.scale_RD[run] = (covariance_DD.diagonal() + floor).rsqrt()
        else:
            variance_D, axes_DD = torch.linalg.eigh(covariance_DD)
            shrunk_D = (variance_D.clamp(min=0) + floor).rsqrt()
            self.scale_RDD[run] = axes_DD @ (shrunk_D[:, None] * axes_DD.T)
