"""A step on values beside an optimizer's parameters is the one that it would make on its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn, optim

from dynsparse.optimizers import AdamWSettings, LambSettings, SgdSettings
from dynsparse.optimizers.beside import holders, step_beside

MAKERS: dict[str, Any] = {
    "sgd, fused": lambda p: SgdSettings(weight_decay=0.01).build(p, lr=0.1),
    "sgd, plain": lambda p: optim.SGD(p, lr=0.1),
    "adamw, fused": lambda p: AdamWSettings(name="adamw").build(p, lr=0.1),
    "adam, each": lambda p: optim.Adam(p, lr=0.1, foreach=False, amsgrad=True),
    "lamb": lambda p: LambSettings(name="lamb").build(p, lr=0.1),
    "nadam": lambda p: optim.NAdam(p, lr=0.1),
    "radam": lambda p: optim.RAdam(p, lr=0.1),
    "rprop": lambda p: optim.Rprop(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_is_the_optimizers_own_step(name: str) -> None:
    """Five steps of the same gradients; a scheduler has wrapped the step, and halves the rate."""
    first = torch.randn(7, generator=torch.Generator().manual_seed(1))
    real = nn.Parameter(first.clone())
    optimizer = MAKERS[name]([real])
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    beside, state = first.clone(), copy.deepcopy(dict(optimizer.state.get(real, {})))
    for step in range(5):
        gradient = torch.randn(7, generator=torch.Generator().manual_seed(step + 2))
        lent = nn.Parameter(beside.clone())
        lent.grad, real.grad = gradient.clone(), gradient.clone()
        before, known = real.detach().clone(), copy.deepcopy(optimizer.state_dict())
        step_beside(optimizer, [(lent, holders([optimizer])[id(real)][1], state)])
        assert torch.equal(real, before)
        assert str(optimizer.state_dict()) == str(known), "its own state stays"
        optimizer.step()
        scheduler.step()
        beside = lent.detach()
        assert torch.equal(beside, real.detach())
    assert state.keys() == optimizer.state[real].keys()


class Outer(optim.Optimizer):
    """Wrapper that steps through an optimizer inside it, as SAM and Lookahead do."""

    def __init__(self, inner: optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner


def test_the_innermost_optimizer_holds_a_parameter() -> None:
    weight = nn.Parameter(torch.zeros(2))
    inner = optim.SGD([weight], lr=0.1)
    assert holders([Outer(inner), inner])[id(weight)][0] is inner
    later = optim.SGD([weight], lr=0.2)
    assert holders([inner, later])[id(weight)] == (later, later.param_groups[0])
