"""The stacked optimiser equals torch.optim.SGD, and waiting runs wait."""

import torch

from pipeline.train.sgd import StackedSGD


def test_steps_equal_torch_sgd_with_momentum_decay_and_a_schedule() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(3, 2, 2))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimiser = StackedSGD(ours, [0.1, 0.01], momentum=0.9, decay=1e-2)
    groups = [{"params": [theirs[0]], "lr": 0.1}, {"params": [theirs[1]], "lr": 0.01}]
    reference = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-2)
    for step in range(6):
        if step == 3:
            for group in reference.param_groups:
                group["lr"] *= 0.1
        grads = [torch.randn_like(p) for p in ours]
        for p, q, grad in zip(ours, theirs, grads, strict=True):
            p.grad, q.grad = grad.clone(), grad.clone()
        optimiser.step(torch.ones(3, dtype=torch.bool), factor=0.1 if step >= 3 else 1.0)
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6)


def test_a_waiting_run_keeps_parameters_and_momentum() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    alone = torch.nn.Parameter(parameter.detach()[:1].clone())
    both = StackedSGD([parameter], [0.1], momentum=0.9, decay=0.1)
    single = StackedSGD([alone], [0.1], momentum=0.9, decay=0.1)
    for active in ([True, True], [False, True], [True, True]):
        grad = torch.randn(2, 3)
        parameter.grad = grad
        both.step(torch.tensor(active))
        if active[0]:
            alone.grad = grad[:1].clone()
            single.step(torch.tensor([True]))
    torch.testing.assert_close(parameter[0], alone[0])
