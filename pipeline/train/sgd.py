"""Stochastic gradient descent with momentum, for parameters with a leading run axis."""

from collections.abc import Sequence

import torch
from torch import Tensor


class StackedSGD:
    """torch.optim.SGD for R runs at once; rates may differ per run, learning rates per parameter.

    v <- momentum v + (g + decay p);  p <- p - lr v.  Runs that are not ``active`` in a step keep
    their parameters and momentum: a run that has no videos left in an epoch waits.
    No value is read on the host, so that a step can be captured as a CUDA graph.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lrs_R: Sequence[Tensor],
        momentum_R: Tensor,
        decay_R: Tensor,
    ) -> None:
        self.parameters = list(parameters)
        self.lrs_R = list(lrs_R)
        self.momentum_R, self.decay_R = momentum_R, decay_R
        self.velocities = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], active_R: Tensor, factor_R: Tensor) -> None:
        """One step at ``factor_R`` times the learning rates; skips parameters without gradient."""
        active_R = active_R.to(self.momentum_R.dtype)
        keep_R = 1 - active_R * (1 - self.momentum_R)
        decay_R, factor_R = active_R * self.decay_R, active_R * factor_R
        for parameter, velocity, lr_R, grad in zip(
            self.parameters, self.velocities, self.lrs_R, grads, strict=True
        ):
            if grad is None:
                continue
            velocity.mul_(_like(keep_R, grad))
            velocity.addcmul_(grad, _like(active_R, grad))
            velocity.addcmul_(parameter, _like(decay_R, grad))
            parameter.addcmul_(velocity, _like(factor_R * lr_R, grad), value=-1)


def _like(values_R: Tensor, tensor: Tensor) -> Tensor:
    return values_R.view(-1, *[1] * (tensor.ndim - 1))
