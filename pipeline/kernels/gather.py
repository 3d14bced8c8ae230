"""Features of the chosen videos and views, gathered from the whole store and cast in one pass."""

import torch
from torch import Tensor

from pipeline.kernels import Impl, runs_triton


def gather(
    features_NVTD: Tensor,
    video_RB: Tensor,
    view_RB: Tensor,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> Tensor:
    """features[video, view] of float16 features as ``dtype``, [R, B, T, D]; no gradient.

    For a video or view that does not exist, PyTorch raises IndexError and the kernel writes NaN.
    """
    if runs_triton(impl, features_NVTD, (torch.float16,)):
        from pipeline.kernels.gather_triton import gathered

        return gathered(features_NVTD, video_RB, view_RB, dtype)
    return features_NVTD[video_RB, view_RB].to(dtype)
