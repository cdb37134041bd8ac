"""A reallocation reads a fixed number of times what lies on the device, whatever the number of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.parts.gpu.waits import host_waits
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.reallocation import Reallocator
from tests.methods.test_contract import REGISTRY, method_named, structure_of

CPU = torch.device("cpu")
AT_MOST = 24
"""Reads and copies. A round of random draws takes 3 of them; how many rounds there are is by chance."""


def build(name: str, layers: int, **options: Any) -> Reallocator:
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(30, 20, bias=False) for _ in range(layers))
    dense = REGISTRY[name](name=name).starts == "dense"
    specs = sparse_layers(model, structure=structure_of(name))
    masks = MaskSet(model, specs, {spec.name: spec.units if dense else 60 for spec in specs}, seed=1)
    assert len(masks.blocks) == 1, "as on a GPU"
    method = method_named(name, **options)
    method.prepare(masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Reallocator(model, masks, method, optimizer, seed=2)


def moves(name: str) -> bool:
    return bool(REGISTRY[name](name=name).starts != "tied") and name not in ("dense", "static")


# Layers with a structure are moved one by one (reallocation/structured.py).
CASES = [(name, {}) for name in sorted(REGISTRY) if moves(name) and structure_of(name) == "free"]
CASES += [(name, {"new_weights": "initial"}) for name in ("dsr", "deepr")]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_host_copies_do_not_grow_with_layers(name: str, options: dict[str, Any]) -> None:
    counts = {}
    for layers in (2, 20, 200):
        reallocator = build(name, layers, **options)
        for step in (1, 2):
            for layer in reallocator.masks:
                layer.weight.grad = torch.randn_like(layer.weight)
            clock = Clock(step, step - 1, steps_per_epoch=1, epochs=4)
            with host_waits(CPU) as waits:
                seen = reallocator.before_step(clock)
                reallocator.optimizers[0].step()
                reallocator.method.after_step(reallocator.masks, clock, seed=2)
                reallocator(clock, seen)
            counts[layers, step] = len(waits)
        reallocator.masks.check()
    assert max(counts.values()) <= AT_MOST, counts
    growth = max(counts[200, step] - counts[20, step] for step in (1, 2))
    assert growth <= 6, f"{counts}: no more than two rounds of draws"
