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
from tests.methods.test_contract import REGISTRY, method_named, settings_named, structure_of

CPU = torch.device("cpu")
AT_MOST = 24
"""Reads and copies. A round of random draws takes 3 of them; how many rounds there are is by chance."""


def build(name: str, layers: int, structure: str, optimizer: str, **options: Any) -> Reallocator:
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(32, 20, bias=False) for _ in range(layers))
    dense = REGISTRY[name](name=name).starts == "dense"
    specs = sparse_layers(model, structure=structure)
    units = 60 if structure == "free" else 320
    masks = MaskSet(model, specs, {spec.name: spec.units if dense else units for spec in specs}, seed=1)
    assert len(masks.blocks) == 1, "as on a GPU"
    method = method_named(name, **options)
    method.prepare(masks)
    more = {"momentum": 0.9} if optimizer == "SGD" else {}
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **more)
    return Reallocator(model, masks, method, made, seed=2)


def moves(name: str) -> bool:
    return bool(REGISTRY[name](name=name).starts != "tied") and name not in ("dense", "static")


def trades(name: str) -> bool:
    return settings_named(name, 0.5).build().trades


MOVING = [name for name in sorted(REGISTRY) if moves(name)]
Case = tuple[str, str, str, dict[str, Any]]
CASES: list[Case] = [(name, structure_of(name), "SGD", {}) for name in MOVING]
CASES += [(name, "free", "SGD", {"new_weights": "initial"}) for name in ("dsr", "deepr")]
CASES += [(name, "fan_in", "SGD", {}) for name in ("rigl", "set")]
CASES += [("nm", "2:4", "SGD", {"criterion": "gradient", "until": 1.0}), ("nm", "2:4", "AdamW", {})]
CASES += [("srigl", "fan_in", "SGD", {"ablation": 0.9, "keep_neurons": []})]
CASES += [("rigl", "free", optimizer, {}) for optimizer in ("AdamW", "RMSprop", "Rprop")]
OTHERS = [name for name in MOVING if structure_of(name) == "free" and not trades(name) and name not in ("rigl", "set")]
CASES_SLOW: list[Case] = [(name, "fan_in", "SGD", {"period": 1} if name == "chts" else {}) for name in OTHERS]


@pytest.mark.parametrize(
    ("name", "structure", "optimizer", "options"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES_SLOW)],
)
def test_host_copies_do_not_grow_with_layers(
    name: str, structure: str, optimizer: str, options: dict[str, Any]
) -> None:
    few, many = (20, 200) if structure == "free" and optimizer == "SGD" else (6, 40)
    counts = {}
    for layers in (2, few, many):
        reallocator = build(name, layers, structure, optimizer, **options)
        for step in (1, 2):
            for layer in reallocator.masks:
                layer.weight.grad = torch.randn_like(layer.weight)
            clock = Clock(step, step - 1, steps_per_epoch=1, epochs=4)
            with host_waits(CPU) as waits:
                seen = reallocator.before_step(clock)
            reallocator.optimizers[0].step()  # Torch's optimizers read their own counters of steps, on the CPU.
            with host_waits(CPU) as more:
                reallocator.method.after_step(reallocator.masks, clock, seed=2)
                reallocator(clock, seen if reallocator.method.grows_by_gradient else reallocator._scored_now())
            counts[layers, step] = len(waits) + len(more)
        reallocator.masks.check()
    assert max(counts.values()) <= AT_MOST, counts
    growth = max(counts[many, step] - counts[few, step] for step in (1, 2))
    assert growth <= 6, f"{counts}: no more than two rounds of draws"
