"""The moves of a layer whose mask has a structure: each group loses and grows as many as it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.selection import chosen, cuts_smallest
from dynsparse.masks.structure import groups_of, in_groups, ranks_in_groups
from dynsparse.seeds import random_bits


def move(
    layer: SparseLayer, scores: Tensor, costs: Tensor | None, targets: Tensor, dropped: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Choose what a layer drops and grows, so that group i then has `targets[i]` active units.

    `scores`, float [active units]: the lowest are dropped, about `dropped` of them: as many as the groups need to lose,
    and can regrow from places free before. `costs`, float [units], inf where active: the lowest grow; None: at random
    by `seed`. Returns bool [active units], and the grown units, int64 rising. The same on every rank and device, for
    equal arguments: ties break by index.

    Example: 2:4, one group with the units 0 and 1 active, of drop scores 5 and 3. Units 2 and 3 cost 9 and 7 to grow.
    If one is to be dropped, 1 goes and 3 grows.
    """
    groups = groups_of(layer.spec)
    assert groups is not None
    active = torch.zeros(layer.spec.units, dtype=torch.bool, device=scores.device).index_fill_(0, layer.active, True)
    by_unit = torch.full((layer.spec.units,), torch.inf, dtype=scores.dtype, device=scores.device)
    by_unit.index_copy_(0, layer.active, scores)
    is_active, drop_costs = groups.of(active), groups.of(by_unit)
    there = is_active.sum(1)
    least = (there - targets).clamp(min=0)
    most = torch.minimum(there, groups.size - targets)
    ranks = ranks_in_groups(drop_costs)
    wanted = torch.where(ranks < most[:, None], drop_costs, torch.inf).masked_fill(ranks < least[:, None], -torch.inf)
    count = max(int(least.sum()), min(dropped, int(most.sum())))
    (cut,) = cuts_smallest([wanted.view(-1)], [count])
    gone = chosen(wanted.view(-1), cut).view_as(is_active)
    if costs is None:
        costs = random_bits(seed, torch.arange(layer.spec.units, device=scores.device)).masked_fill(active, 2**63 - 1)
    grown = in_groups(groups.of(costs), targets - there + gone.sum(1))
    return groups.units(gone)[layer.active], torch.nonzero(groups.units(grown)).squeeze(1)
