"""Moves of a layer with a structure: decided on rank 0, found again on every rank.

Each layer by itself, with a few copies to the host, where free layers of a block share them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks.regrouping import move
from dynsparse.masks.structure import fitted, groups_of
from dynsparse.methods import Method


def structured_move(
    method: Method, layer: SparseLayer, scores: Tensor, costs: Tensor | None, units: int, dropped: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Choose what a layer with a structure drops and grows: see `structure.move`. The layer comes to about `units`."""
    groups = groups_of(layer.spec)
    assert groups is not None
    targets = method.group_targets(layer, scores, costs, units, dropped)
    if targets is None:
        targets = torch.full((groups.count,), fitted(layer.spec, units) // groups.count, device=scores.device)
    return move(layer, scores, costs, targets, dropped, seed)
