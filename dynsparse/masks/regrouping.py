"""The moves of layers whose masks have a structure: each group loses and grows as many as it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.selection import Cut, chosen, cuts_smallest
from dynsparse.masks.structure import Groups, groups_of, in_groups, ranks_in_groups
from dynsparse.seeds import random_bits


@dataclass(frozen=True)
class Wish:
    """Moves that a layer with a structure is to make in one event, as far as its groups can."""

    layer: SparseLayer
    scores: Tensor
    """Drop scores, float [active units]: the lowest are dropped."""
    costs: Tensor | None
    """Negated growth scores, float [units], inf where active: the lowest grow. None: at random, by `seed`."""
    units: int
    """Active units that the layer is to have after the event, about."""
    dropped: int
    """Units that it is to drop, about."""
    seed: int

    @property
    def groups(self) -> Groups:
        """Groups of the layer's units."""
        found = groups_of(self.layer.spec)
        assert found is not None, self.layer.spec
        return found

    @property
    def active(self) -> Tensor:
        """Marks of the active units: bool [units]."""
        flags = torch.zeros(self.layer.spec.units, dtype=torch.bool, device=self.scores.device)
        return flags.index_fill_(0, self.layer.active, True)


def moves(wishes: Sequence[Wish], targets: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Choose what each layer drops and grows, so that its group i then has `targets[layer][i]` active units (int64).

    Of the lowest scores about `dropped` go: as many as the groups need to lose, and can regrow from places free before.
    Returns for each layer the units that go, bool [active units], and those that grow, bool [units]. The same on every
    rank and device, for equal arguments: ties break by index. Two copies to the host for all layers together.

    Example: 2:4, one group with the units 0 and 1 active, of drop scores 5 and 3. Units 2 and 3 cost 9 and 7 to grow.
    If one is to be dropped, 1 goes and 3 grows.
    """
    if not wishes:
        return []
    falls = [_falls(wish, target) for wish, target in zip(wishes, targets, strict=True)]
    bounds = torch.stack([torch.stack((fall.least, fall.most)) for fall in falls]).tolist()
    counts = [max(least, min(wish.dropped, most)) for wish, (least, most) in zip(wishes, bounds, strict=True)]
    cuts = cuts_smallest([fall.wanted for fall in falls], counts)
    return [_moved(*one) for one in zip(wishes, targets, falls, cuts, strict=True)]


@dataclass(frozen=True)
class _Falls:
    """Choice of a layer that drops: the scores of its groups, float [groups x size], and the bounds of the number."""

    wanted: Tensor
    """-inf where the group has to lose the unit, inf where it must keep it, or has none."""
    least: Tensor
    most: Tensor


def _falls(wish: Wish, targets: Tensor) -> _Falls:
    groups = wish.groups
    by_unit = torch.full((wish.layer.spec.units,), torch.inf, dtype=wish.scores.dtype, device=wish.scores.device)
    costs = groups.of(by_unit.index_copy_(0, wish.layer.active, wish.scores))
    there = groups.of(wish.active).sum(1)
    least = (there - targets).clamp(min=0)
    most = torch.minimum(there, groups.size - targets)
    ranks = ranks_in_groups(costs)
    wanted = torch.where(ranks < most[:, None], costs, torch.inf).masked_fill(ranks < least[:, None], -torch.inf)
    return _Falls(wanted.view(-1), least.sum(), most.sum())


def _moved(wish: Wish, targets: Tensor, falls: _Falls, cut: Cut) -> tuple[Tensor, Tensor]:
    """Drop by a cut over what the groups may lose, and let each group grow to its target."""
    groups, active = wish.groups, wish.active
    gone = chosen(falls.wanted, cut).view(groups.count, groups.size)
    costs = wish.costs
    if costs is None:
        places = torch.arange(wish.layer.spec.units, device=active.device)
        costs = random_bits(wish.seed, places).masked_fill(active, 2**63 - 1)
    grown = in_groups(groups.of(costs), targets - groups.of(active).sum(1) + gone.sum(1))
    return groups.units(gone).index_select(0, wish.layer.active), groups.units(grown)
