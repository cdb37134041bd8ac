"""Small reallocations worked by hand: layers of 1 x n whose weights are written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import MethodSettings
from dynsparse.reallocation import Reallocator


def by_hand(settings: MethodSettings, weights: list[list[float]], lr: float = 1.0, **options: Any) -> Reallocator:
    """Linear layers of 1 x n whose non-zero weights are the active ones, under SGD."""
    model = nn.ModuleList(nn.Linear(len(row), 1, bias=False) for row in weights)
    specs = sparse_layers(model)
    active = {spec.name: torch.tensor(row).nonzero().squeeze(1) for spec, row in zip(specs, weights, strict=True)}
    masks = MaskSet(model, specs, active)
    for layer, row in zip(masks, weights, strict=True):
        set_weights(layer, row)
    method = settings.build()
    method.prepare(masks)
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=lr), **options)


def set_weights(layer: Any, row: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(row).view_as(layer.weight))


def set_gradient(layer: Any, row: list[float]) -> None:
    layer.weight.grad = torch.tensor(row).view_as(layer.weight)


def values(layer: Any) -> list[float]:
    """All weights, rounded so that 0.3 reads 0.3."""
    return [round(value, 6) for value in layer.weight.detach().flatten().tolist()]
