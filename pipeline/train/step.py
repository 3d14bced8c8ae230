"""The batch and the loss of a step of R runs; on a GPU, the step as a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# (this step's batch, the following one) -> summed losses
Step = Callable[["Batch", "Batch | None"], Tensor]

WARM_UP_STEPS = 3  # before a graph is captured; they train like any other step


@dataclass(frozen=True)
class Batch:
    """The videos of R runs in a step, or in a micro-batch."""

    video_RB: Tensor  # rows of the store
    view_RB: Tensor
    weight_RB: Tensor  # 1, or 0 where a run has no video left
    other_RB: Tensor  # rows of the videos that may be mixed into them
    other_view_RB: Tensor
    mixed_RB: Tensor  # their share
    factor_R: Tensor  # of the runs' learning rates in this step
    share_R: Tensor  # of the new weights in their average
    key_R: Tensor  # of the runs' dropout

    def part(self, start: int, stop: int) -> "Batch":
        """Videos ``start`` to ``stop`` of each run."""
        of_videos = {
            own.name: getattr(self, own.name)[:, start:stop]
            for own in fields(self)
            if own.name.endswith("_RB")
        }
        return replace(self, **of_videos, key_R=self.key_R + start)

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in order."""
        return tuple(getattr(self, own.name) for own in fields(self))


def cross_entropy(
    logits_RBK: Tensor,
    target_RBK: Tensor,
    smoothing_R: Tensor,
    weight_RK: Tensor,
    shift_RK: Tensor,
    gamma_R: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each video with its run's smoothing s, class weights w and shifts, [R, B].

    sum_k y_k w_k ((1 - s) (-log p_k) + s mean_j(-log p_j)),  p = softmax(logits + shift)

    ``target_RBK`` has the shares y_k of the classes, of which there is one if a video has a label:
    so the loss is the mean over the annotators of what it would be with the label that each gave.
    With ``gamma_R`` it is the focal loss: each k's part times (1 - p_k)^gamma (Lin et al. 2017).
    """
    log_p_RBK = (logits_RBK + shift_RK[:, None]).log_softmax(-1)
    smoothing_R11 = smoothing_R[:, None, None]
    loss_RBK = -(1 - smoothing_R11) * log_p_RBK - smoothing_R11 * log_p_RBK.mean(-1, keepdim=True)
    if gamma_R is not None:
        unsure_RBK = -torch.expm1(log_p_RBK).clamp(max=0)
        loss_RBK = loss_RBK * unsure_RBK ** gamma_R[:, None, None]
    return (loss_RBK * target_RBK * weight_RK[:, None]).sum(-1)


def intensity_aware(logits_RBK: Tensor, target_RBK: Tensor) -> Tensor:
    """sum_k y_k (-log p'_k), [R, B], p' the softmax over k and the strongest other class alone.

    The term that the intensity-aware loss adds to the cross-entropy (Li et al. 2023).
    """
    (best, second), (at_best, _) = (own.split(1, -1) for own in logits_RBK.topk(2))
    is_best_RBK = at_best == torch.arange(logits_RBK.shape[-1], device=logits_RBK.device)
    loss_RBK = F.softplus(torch.where(is_best_RBK, second, best) - logits_RBK)
    return (loss_RBK * target_RBK).sum(-1)


class ReplayedStep:
    """A step that is captured once as a CUDA graph: one launch in place of hundreds.

    The first steps run uncaptured, on a separate stream as capturing requires. All batches must
    have the same shape, and the step must change parameters in place. The step is given at each
    call and not kept, so that whatever it belongs to can be freed without a garbage collection.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._left = WARM_UP_STEPS
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Step, batch: Batch) -> Tensor:
        """Summed loss of each run, [R]; valid until the next call."""
        # Streams and captures are those of the current device.
        with torch.cuda.device(self._device):
            if self._left:
                self._left -= 1
                return self._apart(step, batch)
            if self._graph is None:
                self._capture(step, batch)
            assert self._graph is not None
            for ours, given in zip(self._batch.tensors(), batch.tensors(), strict=True):
                ours.copy_(given)
            self._graph.replay()
            return self._loss_R

    def _capture(self, step: Step, batch: Batch) -> None:
        self._batch = Batch(*(tensor.clone() for tensor in batch.tensors()))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._loss_R = step(self._batch, None)
        self._graph = graph

    def _apart(self, step: Step, batch: Batch) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss_R = step(batch, None)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss_R
