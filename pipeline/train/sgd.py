"""Stochastic gradient descent with momentum, for parameters with a leading run axis."""

from collections.abc import Sequence

import torch
from torch import Tensor


class StackedSGD:
    """torch.optim.SGD for R runs at once, with learning rates that differ by run and by group.

    v <- momentum v + (g + decay p);  p <- p - lr v.  Runs that are not ``active`` in a step keep
    their parameters and their momentum: a run that has no videos left in an epoch waits.
    """

    def __init__(
        self, parameters: Sequence[Tensor], lrs: Sequence[float], momentum: float, decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.lrs = list(lrs)
        self.momentum = momentum
        self.decay = decay
        self.velocities = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, active_R: Tensor, factor: float = 1.0) -> None:
        """One step at ``factor`` times every learning rate; clears the gradients."""
        waiting = not bool(active_R.all())
        grads = [parameter.grad for parameter in self.parameters]
        present = [i for i, grad in enumerate(grads) if grad is not None]
        updates = []
        for i in present:
            parameter, velocity = self.parameters[i], self.velocities[i]
            update = torch.add(grads[i], parameter, alpha=self.decay)  # type: ignore[arg-type]
            update.add_(velocity, alpha=self.momentum)
            if waiting:
                update = torch.where(_like(active_R, update), update, velocity)
            velocity.copy_(update)
            updates.append(update)
        for i, update in zip(present, updates, strict=True):
            if waiting:
                update = update * _like(active_R, update)
            self.parameters[i].sub_(update, alpha=self.lrs[i] * factor)
            self.parameters[i].grad = None


def _like(flags_R: Tensor, tensor: Tensor) -> Tensor:
    return flags_R.view(-1, *[1] * (tensor.ndim - 1))
