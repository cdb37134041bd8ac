"""Moves of layers with a structure: decided on rank 0, found again on every rank.

They take a fixed number of copies to the host, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynsparse.masks.regrouping import Wish, moves
from dynsparse.masks.selection import Cut
from dynsparse.masks.structure import fitted
from dynsparse.methods import Method
from dynsparse.reallocation.plan import LayerPlan


def structured_moves(method: Method, wishes: Sequence[Wish]) -> list[tuple[Tensor, Tensor]]:
    """Choose what layers with a structure drop, bool [active units], and grow, bool [units]: see `regrouping.moves`."""
    targets = [
        _as_many(wish) if own is None else own for wish, own in zip(wishes, method.group_targets(wishes), strict=True)
    ]
    return moves(wishes, targets)


def structured_plans(method: Method, wishes: Sequence[Wish]) -> list[LayerPlan]:
    """Plan for layers with a structure: what they wish, and how many units that moves."""
    found = structured_moves(method, wishes)
    counts = [torch.stack((gone.count_nonzero(), grown.count_nonzero())) for gone, grown in found]
    pairs = torch.stack(counts).tolist() if counts else []
    return [
        LayerPlan(Cut(float(wish.dropped), 0, dropped), Cut(float(wish.units), 0, grown))
        for wish, (dropped, grown) in zip(wishes, pairs, strict=True)
    ]


def _as_many(wish: Wish) -> Tensor:
    """Give all groups as many: int64 [groups]."""
    each = fitted(wish.layer.spec, wish.units) // wish.groups.count
    return torch.full((wish.groups.count,), each, device=wish.scores.device)
