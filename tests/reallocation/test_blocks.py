"""The division of layers into blocks changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.masks import MaskSet, block, sparse_layers
from dynsparse.methods import Clock
from dynsparse.reallocation import Reallocator
from tests.methods.test_contract import method_named


def step_with_random_numbers(masks: MaskSet, step: int) -> Clock:
    """Give active weights and gradients random numbers, as a step would. Returns the clock of its event."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for layer in masks:
            layer.scatter_(layer.weight, 0.1 * torch.randn(layer.active_units, 1, generator=generator))
            layer.weight.grad = torch.randn(layer.spec.shape, generator=generator)
    return Clock(2 * step, 2 * step - 1, steps_per_epoch=1, epochs=16)


def run(name: str, in_cache: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """Blocks, and what there is after each of four reallocations."""
    monkeypatch.setattr(block, "IN_CACHE", in_cache)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(9, 5), nn.Linear(5, 7))
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: spec.units // 3 for spec in specs}, seed=1)
    method = method_named(name)
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=0.1), seed=2)
    found = []
    for step in range(1, 5):
        clock = step_with_random_numbers(masks, step)
        seen = reallocator.before_step(clock)
        report = reallocator(clock, seen)
        masks.check()
        found.append((mask_digest(masks), weight_digest(model, masks), report))
    state = masks.state_dict()
    masks.load_state_dict(state)
    masks.check()
    assert mask_digest(masks) == found[-1][0]
    return len(masks.blocks), found


@pytest.mark.parametrize("name", ["dsr", "set", "rigl", "deepr"])
def test_any_division_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, expected = run(name, 1 << 19, monkeypatch)
    assert one == 1
    for in_cache, blocks in ((1, 5), (200, 2)):
        assert run(name, in_cache, monkeypatch) == (blocks, expected)
    assert len({masks for masks, _, _ in expected}) == 4, "it moved"
