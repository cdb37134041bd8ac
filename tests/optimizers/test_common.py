from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn, optim

from dynsparse.optimizers import AdamWSettings, SgdSettings, check_layouts

BUILT = {
    "sgd": lambda parameters: SgdSettings().build(parameters, lr=0.1),
    "adamw": lambda parameters: AdamWSettings(name="adamw").build(parameters, lr=0.01),
}
PLAIN = {
    "sgd": lambda parameters: optim.SGD(
        parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=False
    ),
    "adamw": lambda parameters: optim.AdamW(parameters, lr=0.01, weight_decay=1e-2, foreach=False),
}


def network(channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(5, 7, 3, bias=False), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 3, 1))
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, 5, 9, 9, generator=generator)
    model(images).square().mean().backward()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", BUILT)
def test_steps_are_those_of_the_plain_optimizer(name: str, channels_last: bool) -> None:
    """They agree up to rounding: a fused kernel does not round between multiplication and addition."""
    ours, theirs = network(channels_last), network(channels_last)
    optimizers: list[tuple[nn.Module, Any]] = [
        (ours, BUILT[name](ours.parameters())),
        (theirs, PLAIN[name](theirs.parameters())),
    ]
    for step in range(5):
        for model, optimizer in optimizers:
            gradients(model, step)
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUILT)
def test_what_is_zero_in_weight_and_gradient_stays_zero(name: str) -> None:
    """They agree to the bit, the sign of 0 included."""
    weight = nn.Parameter(torch.randn(1001))
    outside = torch.rand(1001) < 0.9
    weight.data[outside] = 0
    optimizer = BUILT[name]([weight])
    for _ in range(5):
        weight.grad = torch.randn(1001).masked_fill_(outside, 0)
        optimizer.step()
        for tensor in (weight.detach(), *optimizer.state[weight].values()):
            if tensor.shape == weight.shape:
                assert not tensor[outside].view(torch.int32).any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_that_lie_otherwise_than_their_weights_are_caught(channels_last: bool) -> None:
    model = network(channels_last)
    gradients(model, 0)
    check_layouts(model.parameters())
    weight = model[0].weight
    other = torch.contiguous_format if channels_last else torch.channels_last
    weight.grad = copy.deepcopy(weight.grad).to(memory_format=other)
    with pytest.raises(AssertionError, match="lies otherwise"):
        check_layouts(model.parameters())
