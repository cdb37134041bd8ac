"""A plain dense program of Top-KAST and SR-STE, to compare the methods with: all weights in one parameter.

Forward passes see the product of weights and mask. The gradient of that product is the gradient of all weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

Optimizer = Callable[[list[nn.Parameter]], optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda weights: optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "plain": lambda weights: optim.SGD(weights, lr=0.1),
    "adamw": lambda weights: optim.AdamW(weights, lr=0.03, weight_decay=0.1),
}


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 8, generator=generator).double(), torch.randint(4, (6,), generator=generator)


def loss_of(weight: Tensor, step: int) -> Tensor:
    images, labels = data(step)
    return nn.functional.cross_entropy(images @ weight.t(), labels)


class DenseTwin:
    """Weights [4, 8] that all have values. `choose` gives the masks of those seen and of those that train."""

    def __init__(
        self,
        weight: Tensor,
        mask: Tensor,
        optimizer: Optimizer,
        choose: Callable[[Tensor], tuple[Tensor, Tensor]],
        pull: float,
    ) -> None:
        self.weight = nn.Parameter(weight.clone())
        self.optimizer = optimizer([self.weight])
        self.choose, self.pull, self.mask = choose, pull, mask
        self.trains = mask | choose(weight * ~mask)[1]

    def step(self, step: int, *, chooses: bool) -> None:
        seen = (self.weight.detach() * self.mask).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(seen, step), seen)
        before = self.weight.detach().clone()
        self.weight.grad = (gradient + self.pull * self.weight.detach() * ~self.mask) * self.trains
        self.optimizer.step()
        with torch.no_grad():
            self.weight.copy_(torch.where(self.trains, self.weight, before))
        if chooses:
            self.mask, self.trains = self.choose(self.weight.detach())


def largest(values: Tensor, count: int) -> Tensor:
    """Mark the entries of largest magnitude: bool of the same shape."""
    flags = torch.zeros(values.numel(), dtype=torch.bool)
    return flags.index_fill_(0, values.abs().view(-1).topk(count).indices, True).view_as(values)
