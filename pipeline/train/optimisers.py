"""SGD with momentum and AdamW, for parameters with a leading run axis.

Rates may differ per run, learning rates per parameter. Runs that are not ``active`` in a step keep
their parameters and moments: a run that has no videos left in an epoch waits. No value is read on
the host, so that a step can be captured as a CUDA graph.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SQUARE_DECAY, EPS = 0.999, 1e-8  # beta_2 and epsilon of AdamW


class StackedSGD:
    """torch.optim.SGD for R runs at once.

    v <- momentum v + (g + decay p);  p <- p - lr v.
    A learning rate is one per run, [R], or one per run and row of its parameter, [R, C].
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
        self.moments = self._moments()

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], active_R: Tensor, factor_R: Tensor) -> None:
        """One step at ``factor_R`` times the learning rates; skips parameters without gradient."""
        active_R = active_R.to(self.momentum_R.dtype)
        keep_R = 1 - active_R * (1 - self.momentum_R)
        decay_R, factor_R = active_R * self.decay_R, active_R * factor_R
        for p, velocity, lr_R, grad in zip(
            self.parameters, self.moments["velocity"], self.lrs_R, grads, strict=True
        ):
            if grad is None:
                continue
            velocity.mul_(like(keep_R, grad))
            velocity.addcmul_(grad, like(active_R, grad))
            velocity.addcmul_(p, like(decay_R, grad))
            p.addcmul_(velocity, _rate(factor_R, lr_R, grad), value=-1)

    def _moments(self) -> dict[str, list[Tensor]]:
        """What is remembered of each parameter, with the run axis."""
        return {"velocity": [torch.zeros_like(parameter) for parameter in self.parameters]}


class StackedAdamW(StackedSGD):
    """torch.optim.AdamW for R runs at once, with beta_1 = momentum.

    m <- beta_1 m + (1 - beta_1) g;  s <- beta_2 s + (1 - beta_2) g²;  in step n
    p <- (1 - lr decay) p - lr (m / (1 - beta_1^n)) / (sqrt(s / (1 - beta_2^n)) + eps).
    """

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], active_R: Tensor, factor_R: Tensor) -> None:
        """One step at ``factor_R`` times the learning rates; skips parameters without gradient."""
        active_R = active_R.to(self.momentum_R.dtype)
        new_R, new_square_R = active_R * (1 - self.momentum_R), active_R * (1 - SQUARE_DECAY)
        for n, (p, lr_R, grad) in enumerate(zip(self.parameters, self.lrs_R, grads, strict=True)):
            if grad is None:
                continue
            mean, square, steps_R = (tensors[n] for tensors in self.moments.values())
            steps_R += active_R
            mean.lerp_(grad, like(new_R, grad))
            square.lerp_(grad.square(), like(new_square_R, grad))
            rate, done_R = _rate(active_R * factor_R, lr_R, grad), steps_R.clamp(min=1)
            p.mul_(1 - rate * like(self.decay_R, grad))
            # 1 - beta^n, without the rounding of a difference of almost equal numbers.
            share_R = -torch.expm1(done_R * self.momentum_R.log())
            square_share_R = -torch.expm1(done_R * math.log(SQUARE_DECAY))
            deviation = (square / like(square_share_R, grad)).sqrt_().add_(EPS)
            p.addcmul_(mean / deviation, rate / like(share_R, grad), value=-1)

    def _moments(self) -> dict[str, list[Tensor]]:
        return {
            "mean": [torch.zeros_like(parameter) for parameter in self.parameters],
            "square": [torch.zeros_like(parameter) for parameter in self.parameters],
            "steps": [torch.zeros_like(self.momentum_R) for _ in self.parameters],
        }


def _rate(factor_R: Tensor, lr: Tensor, tensor: Tensor) -> Tensor:
    return like(like(factor_R, lr) * lr, tensor)


def like(values: Tensor, tensor: Tensor) -> Tensor:
    """Values of runs, or of runs and rows, as factors of such a tensor: of its type and rank."""
    return values.to(tensor.dtype).view(*values.shape, *[1] * (tensor.ndim - values.ndim))
