"""The stacked optimisers equal torch's, and waiting runs wait."""

import pytest
import torch

from pipeline.train.optimisers import StackedAdamW, StackedSGD

TORCH = {
    StackedSGD: lambda groups, momentum, decay: torch.optim.SGD(
        groups, momentum=momentum, weight_decay=decay
    ),
    StackedAdamW: lambda groups, momentum, decay: torch.optim.AdamW(
        groups, betas=(momentum, 0.999), weight_decay=decay
    ),
}


def rates(*values: float) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("kind", [StackedSGD, StackedAdamW])
def test_steps_equal_torch_with_each_run_s_own_rates(kind: type[StackedSGD]) -> None:
    torch.manual_seed(0)
    lrs, momenta, decays = ((0.1, 0.3, 0.02), (0.01, 0.02, 0.3)), (0.9, 0.5, 0.0), (1e-2, 0.0, 0.1)
    ours = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(3, 2, 2))]
    stacked = kind(ours, [rates(*lr) for lr in lrs], rates(*momenta), rates(*decays))
    theirs = [[torch.nn.Parameter(p.detach()[r].clone()) for p in ours] for r in range(3)]
    references = [
        TORCH[kind](
            [{"params": [p], "lr": lr[r]} for p, lr in zip(theirs[r], lrs, strict=True)],
            momenta[r],
            decays[r],
        )
        for r in range(3)
    ]
    factors = (1.0, 0.1, 0.5)  # of the runs' schedules, from step 3 on
    for step in range(6):
        grads = [torch.randn_like(p) for p in ours]
        stacked.step(grads, torch.ones(3), rates(*factors) if step >= 3 else torch.ones(3))
        for r, reference in enumerate(references):
            for group, p, grad in zip(reference.param_groups, theirs[r], grads, strict=True):
                p.grad = grad[r].clone()
                group["lr"] *= factors[r] if step == 3 else 1
            reference.step()
            for p, q in zip(ours, theirs[r], strict=True):
                torch.testing.assert_close(p[r], q, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [StackedSGD, StackedAdamW])
def test_a_waiting_run_keeps_parameters_and_moments(kind: type[StackedSGD]) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    alone = torch.nn.Parameter(parameter.detach()[:1].clone())
    same = rates(0.1, 0.1)
    both = kind([parameter], [same], rates(0.9, 0.9), same)
    single = kind([alone], [same[:1]], rates(0.9), same[:1])
    for active in ([True, True], [False, True], [True, True]):
        grad = torch.randn(2, 3)
        before = parameter.detach().clone()
        both.step([grad], torch.tensor(active), torch.ones(2))
        if active[0]:
            single.step([grad[:1]], torch.tensor([True]), torch.ones(1))
        else:
            assert torch.equal(parameter[0], before[0])
    torch.testing.assert_close(parameter[0], alone[0])
