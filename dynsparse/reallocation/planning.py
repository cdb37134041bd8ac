"""Turn scores into a plan. Pure: it knows no ranks, files or clocks, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.allocation import share_out
from dynsparse.masks.joint import joint_counts
from dynsparse.masks.made import MadeAnew
from dynsparse.masks.parted import Scores, whole
from dynsparse.masks.regrouping import Wish
from dynsparse.masks.selection import NO_CUT, Cut, cuts_smallest
from dynsparse.masks.structure import FREE, blocks_of
from dynsparse.methods import Clock, Method
from dynsparse.reallocation.plan import LayerPlan, Plan, change_of
from dynsparse.reallocation.structured import structured_plans
from dynsparse.seeds import seed_for


@dataclass(frozen=True)
class Planner:
    """The rules by which a method's wishes become exact counts that fit the budget."""

    masks: MaskSet
    method: Method

    @property
    def resting(self) -> Collection[str]:
        """Layers in which nothing moves in this event."""
        return self.method.resting

    def plan(self, clock: Clock, scores: Sequence[Scores], growth_costs: Mapping[str, Scores], seed: int) -> Plan:
        """Decide. `scores` are the drop scores of each layer, `growth_costs` are inf at active units."""
        layers = list(self.masks)
        after = [
            layer.active_weights if layer.name in self.resting else weights
            for layer, weights in zip(layers, self.method.budgets(layers, clock), strict=True)
        ]
        budget = self._budget(clock)
        known = cast(Sequence[Tensor], scores)  # Parted ones are made for a method that `works_in_parts`.
        exchanges = self.method.exchanges(clock) and not self.method.at_rest
        wished = self.method.drop_cuts(known, clock) if exchanges else [NO_CUT] * len(layers)
        cuts = [NO_CUT if layer.name in self.resting else cut for layer, cut in zip(layers, wished, strict=True)]
        drops: Sequence[int]
        grows: Sequence[int]
        if self.method.trades:
            drops = self._traded_drops(scores, cuts, budget)
            grows = self._traded_growth(drops, budget, growth_costs)
        else:
            drops, grows = zip(*map(_own_moves, layers, cuts, after, self._closed), strict=True)
        if any(layer.spec.structure != FREE for layer in layers):
            return self._structured(clock, scores, growth_costs, seed, drops, grows)
        decided = zip(_with_counts(scores, cuts, drops), _growth_cuts(layers, grows, growth_costs), strict=True)
        return Plan(clock.step, seed, budget, tuple(LayerPlan(drop, grow) for drop, grow in decided))

    def _budget(self, clock: Clock) -> int:
        """Weights of all layers after this event."""
        still = sum(layer.active_weights for layer in self.masks if layer.name in self.resting)
        budget = still + self.method.moving_budget(self.masks, clock)
        if not (self.method.trades and self.method.lacking):
            return budget
        least = self.masks.active_weights - sum(
            max(0, layer.active_units - self.method.least_units(layer.spec)) * layer.spec.unit_size
            for layer in self.masks
            if layer.name not in self.resting
        )
        return min(max(budget, least), self.masks.active_weights + self._room)  # As far as the other layers can.

    @cached_property
    def _room(self) -> int:
        """Weights that can grow, in all layers that do not rest."""
        return sum(
            (layer.spec.units - layer.active_units - closed) * layer.spec.unit_size
            for layer, closed in zip(self.masks, self._closed, strict=True)
            if layer.name not in self.resting
        )

    @cached_property
    def _closed(self) -> Sequence[int]:
        """Inactive units of each layer that may not grow. One copy to the host for all layers."""
        flags = [(layer, self.method.closed(layer)) for layer in self.masks]
        counts = {
            layer.name: units.count_nonzero() - units[layer.active].count_nonzero()
            for layer, units in flags
            if units is not None
        }
        found = dict(zip(counts, torch.stack([*counts.values()]).tolist(), strict=True)) if counts else {}
        return [found.get(layer.name, 0) for layer in self.masks]

    def _structured(
        self,
        clock: Clock,
        scores: Sequence[Scores],
        costs: Mapping[str, Scores],
        seed: int,
        drops: Sequence[int],
        grows: Sequence[int],
    ) -> Plan:
        """Plan for layers of which some have a structure: these drop and grow as their groups can."""
        asked = list(zip(self.masks, scores, drops, grows, strict=True))
        bound = [layer.spec.structure != FREE and layer.name not in self.resting for layer in self.masks]
        wishes = [
            Wish(
                layer,
                whole(score),
                whole(costs[layer.name]) if layer.name in costs else None,
                layer.active_units - drop + grow,
                drop,
                seed_for(seed, layer.name),
            )
            for (layer, score, drop, grow), one in zip(asked, bound, strict=True)
            if one
        ]
        with_groups = iter(structured_plans(self.method, wishes))
        without = iter(_free_plans([one for one, is_bound in zip(asked, bound, strict=True) if not is_bound], costs))
        decided = [next(with_groups if one else without) for one in bound]
        budget = sum(
            (layer.active_units - one.drop.count + one.grow.count) * layer.spec.unit_size
            for layer, one in zip(self.masks, decided, strict=True)
        )
        return Plan(clock.step, seed, budget, tuple(decided))

    def _traded_drops(self, scores: Sequence[Scores], cuts: Sequence[Cut], budget: int) -> Sequence[int]:
        """Units to drop in each layer where layers trade: never a layer's last, nor more than can grow elsewhere.

        A position that is dropped in this event may not grow in it. So a nearly dense network moves only as many
        weights as were free before. Where the budget falls by more than the method drops, the lowest scores of all
        layers go as well.
        """
        spare = [max(0, layer.active_units - self.method.least_units(layer.spec)) for layer in self.masks]
        counts = [min(cut.count, most) for cut, most in zip(cuts, spare, strict=True)]
        sizes = [layer.spec.unit_size for layer in self.masks]
        wanted = [count * size for count, size in zip(counts, sizes, strict=True)]
        if sum(wanted) < (least := self.masks.active_weights - budget):
            resting = [layer.name in self.resting for layer in self.masks]
            most_of = [0 if rests else most for rests, most in zip(resting, spare, strict=True)]
            return joint_counts(scores, sizes, least, counts, most_of)
        more = budget - self.masks.active_weights
        most = self._room - more  # Kept weights must reach the budget in places free before.
        return counts if sum(wanted) <= most else share_out(most, wanted, capacity=counts, unit_size=sizes)

    def _traded_growth(self, drops: Sequence[int], budget: int, costs: Mapping[str, Scores]) -> Sequence[int]:
        """Units that each layer grows, so that all together reach `budget` weights.

        In the method's proportions, or where the growth scores of all layers compete by these.
        """
        changes = [
            change_of(layer, drop, closed=closed)
            for layer, drop, closed in zip(self.masks, drops, self._closed, strict=True)
        ]
        kept = sum(change.kept * change.unit_size for change in changes)
        room = [0 if change.name in self.resting else change.room for change in changes]
        sizes = [change.unit_size for change in changes]
        if self.method.grows_globally:
            layers = list(self.masks)
            scores = MadeAnew(lambda i: _costs_of(layers[i], costs), len(layers))
            return joint_counts(scores, sizes, max(0, budget - kept), [0] * len(room), room)
        return share_out(max(0, budget - kept), self.method.shares(changes), capacity=room, unit_size=sizes)


def _free_plans(asked: Sequence[tuple[SparseLayer, Scores, int, int]], costs: Mapping[str, Scores]) -> list[LayerPlan]:
    """Plan for layers without a structure, or at rest, given their drop scores, and units to drop and to grow."""
    falls = _with_counts(
        [scores for _, scores, _, _ in asked], [NO_CUT] * len(asked), [drop for _, _, drop, _ in asked]
    )
    grown = _growth_cuts([layer for layer, _, _, _ in asked], [grow for _, _, _, grow in asked], costs)
    return [LayerPlan(drop, grow) for drop, grow in zip(falls, grown, strict=True)]


def _costs_of(layer: SparseLayer, costs: Mapping[str, Scores]) -> Scores:
    """Return the costs of growth in a layer; none if it rests."""
    return costs[layer.name] if layer.name in costs else torch.empty(0, device=layer.device)


def _own_moves(layer: SparseLayer, cut: Cut, budget: int, closed: int) -> tuple[int, int]:
    """Units to drop and to grow in a layer that is to have `budget` weights, whatever the others do.

    `closed` of its free units may not grow.

    A position that is dropped in this event may not grow in it. A layer with too few free positions moves less.
    """
    units = budget // layer.spec.unit_size
    last = 0 if blocks_of(layer.spec) is not None else 1  # All of a transposable mask may move: as many grow at once.
    least, most = layer.active_units - units, min(layer.active_units - last, layer.spec.units - closed - units)
    dropped = max(0, least, min(cut.count, most))
    return dropped, units - layer.active_units + dropped


def _with_counts(scores: Sequence[Scores], cuts: Sequence[Cut], counts: Sequence[int]) -> list[Cut]:
    """The cuts; where `counts` asks for another number, a cut that takes as many of the lowest scores."""
    result = list(cuts)
    others = [i for i, (cut, count) in enumerate(zip(cuts, counts, strict=True)) if count != cut.count]
    exact = cuts_smallest(MadeAnew(lambda k: scores[others[k]], len(others)), [counts[i] for i in others])
    for i, cut in zip(others, exact, strict=True):
        result[i] = cut
    return result


def _growth_cuts(layers: Sequence[SparseLayer], grows: Sequence[int], costs: Mapping[str, Scores]) -> list[Cut]:
    """Cuts that take the units of least cost; for layers without costs only the counts."""
    cuts = [replace(NO_CUT, count=count) for count in grows]
    scored = [i for i, layer in enumerate(layers) if layer.name in costs]
    asked = MadeAnew(lambda k: costs[layers[scored[k]].name], len(scored))
    found = cuts_smallest(asked, [grows[i] for i in scored])
    for i, cut in zip(scored, found, strict=True):
        cuts[i] = cut
    return cuts
