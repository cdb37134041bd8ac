"""Devices of the tests in this folder: the CPU everywhere, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import allocated
from dynsparse.methods import Clock
from dynsparse.reallocation import Reallocator
from tests.methods.test_contract import REGISTRY, method_named, structure_of

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
everywhere = pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=pytest.mark.gpu)], ids=str)


def network(device: torch.device) -> nn.Sequential:
    """Make a network with the same weights on every device."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )
    return model.to(device)


class Reallocating:
    """A network under a method, without training: weights and gradients come from the CPU's generator.

    So they are the same bits on every device, which those of a training step are not.
    """

    STEPS = 8

    def __init__(self, name: str, device: torch.device, sparsity: float = 0.8) -> None:
        self.model = network(device)
        specs = sparse_layers(self.model, structure=structure_of(name))
        sparsity = 0.0 if REGISTRY[name](name=name).starts == "dense" else sparsity
        self.masks = MaskSet(self.model, specs, allocated("uniform", specs, {"conv": sparsity, "fc": sparsity}), seed=5)
        method = method_named(name)
        method.prepare(self.masks)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.reallocator = Reallocator(self.model, self.masks, method, optimizer, seed=11)

    def clock(self, step: int) -> Clock:
        return Clock(step, (step - 1) // 2, steps_per_epoch=2, epochs=self.STEPS)

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Leave weights and gradients as after a step's backward and its optimizer."""
        generator = torch.Generator().manual_seed(step)
        for layer in self.masks:
            values = 0.1 * torch.randn(layer.active_units, layer.spec.unit_size, generator=generator)
            layer.scatter_(layer.weight, values.to(layer.weight.device))
            layer.weight.grad = torch.randn(layer.spec.shape, generator=generator).to(layer.weight.device)
        self.seen = self.reallocator.before_step(self.clock(step))

    def state(self) -> dict[str, Tensor]:
        """Masks and weights, on the CPU."""
        masks = {f"{layer.name} mask": layer.mask.cpu() for layer in self.masks}
        return masks | {name: value.detach().cpu() for name, value in self.model.named_parameters()}


def unequal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Sequence[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def images_and_labels(device: torch.device, batch: int = 8, **options: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 8, 8, generator=generator).to(device, **options)
    return images, torch.randint(10, (batch,), generator=generator).to(device)
