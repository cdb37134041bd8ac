"""What every method must keep, over the registry x granularity x density x optimizer."""

from __future__ import annotations

import importlib
import pkgutil
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from dynsparse import methods
from dynsparse.masks import MaskSet, SparseLayer, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.optimizer_state import moments
from dynsparse.masks.selection import Cut, cuts_smallest
from dynsparse.methods import AnyMethod, Clock, Method, MethodSettings
from dynsparse.reallocation import Reallocator

REGISTRY: dict[str, type[MethodSettings]] = {
    get_args(member.model_fields["name"].annotation)[0]: member for member in get_args(get_args(AnyMethod)[0])
}
#: Settings under which a method has something to do in the few steps of a test.
BUSY: dict[str, dict[str, Any]] = {"dsr": {"period": 2, "initial_threshold": 0.05, "target_moves": 20}}


class GrowByGradient(Method):
    """Exercises what no registered method does yet: drop a fifth, grow where the gradient is largest."""

    def is_due(self, clock: Clock) -> bool:
        return clock.step % 2 == 0

    def drop_cuts(self, scores: Any) -> list[Cut]:
        return cuts_smallest(scores, [layer.numel() // 5 for layer in scores])

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None
        gradient = layer.weight.grad.abs().reshape(layer.spec.units, layer.spec.unit_size)
        return gradient.mean(1)


def method_named(name: str) -> Method:
    return GrowByGradient() if name == "(by gradient)" else REGISTRY[name](name=name, **BUSY.get(name, {})).build()


class Run:
    """A small convolutional network under one method, with its own data."""

    def __init__(self, name: str, granularity: Any, sparsity: float, optimizer: str) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 9, 5),
        )
        specs = sparse_layers(self.model, granularity=granularity)
        self.masks = MaskSet(self.model, specs, uniform(specs, {"conv": sparsity, "fc": sparsity}), seed=5)
        self.optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2
            )
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, weight_decay=1e-2)
        self.reallocator = Reallocator(self.model, self.masks, method_named(name), self.optimizer, seed=11)
        self.events = 0

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(8, 2, 6, 6, generator=generator)
        labels = torch.randint(5, (8,), generator=generator)
        nn.functional.cross_entropy(self.model(images), labels).backward()
        clock = Clock(number, 0)
        due = self.reallocator.is_due(clock)
        if due:
            self.reallocator.look()
        self.masks.mask_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if due:
            self.reallocator(clock)
            self.events += 1


def assert_zero_outside(run: Run) -> None:
    for layer in run.masks:
        outside = ~layer.mask
        assert not layer.weight.detach()[outside].any(), layer.name
        for key, moment in moments(run.optimizer, layer):
            assert not moment[outside].any(), f"{layer.name} {key}"


CASES = list(product([*sorted(REGISTRY), "(by gradient)"], [1, 2, 3, 4], [0.0, 0.5, 0.9], ["sgd", "adamw"]))


@pytest.mark.parametrize(("name", "granularity", "sparsity", "optimizer"), CASES)
def test_contract(name: str, granularity: int, sparsity: float, optimizer: str) -> None:
    run, twin = (Run(name, granularity, sparsity, optimizer) for _ in range(2))
    budget = run.masks.budget
    largest_unit = max(layer.spec.unit_size for layer in run.masks)
    for number in range(1, 9):
        run.step(number)
        twin.step(number)
        assert abs(run.masks.active_weights - budget) < largest_unit
        run.masks.check()
        assert_zero_outside(run)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), twin.model.parameters(), strict=True))
    assert all(torch.equal(a.active, b.active) for a, b in zip(run.masks, twin.masks, strict=True))
    if name in BUSY:
        assert run.events == 4


def test_every_method_is_in_the_registry() -> None:
    """Each settings class in a file of dynsparse/methods/ can be named in a config."""
    found: set[type] = set()
    for module in pkgutil.iter_modules(methods.__path__):
        members = vars(importlib.import_module(f"dynsparse.methods.{module.name}")).values()
        found |= {
            m for m in members if isinstance(m, type) and issubclass(m, MethodSettings) and m is not MethodSettings
        }
    assert found == set(REGISTRY.values())
    assert {"dense", "dsr", "static"} <= set(REGISTRY)


def test_growth_by_score_takes_the_largest_free() -> None:
    """One layer 1 x 8, worked by hand.

    weights   .5  .4  .3  .2  .1   0   0   0    drop a fifth of five: the .1 at position 4
    gradient   9   9   9   9   9   1  -3   2    the largest free is |-3| at position 6;
                                                position 4 has a larger one, but was dropped just now
    """
    model = nn.Linear(8, 1, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 8})
    layer = masks.layers[0]
    masks.set_active(layer, torch.arange(5))
    masks.budget = 5
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.4, 0.3, 0.2, 0.1, 0, 0, 0]]))
    layer.weight.grad = torch.tensor([[9.0, 9, 9, 9, 9, 1, -3, 2]])
    reallocator = Reallocator(model, masks, GrowByGradient(), torch.optim.SGD(model.parameters(), lr=1.0))
    reallocator.look()
    masks.mask_gradients()
    reallocator(Clock(2, 0))
    assert layer.active.tolist() == [0, 1, 2, 3, 6]
