"""Turn scores into a plan. Pure: it knows no ranks, files or clocks, and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.allocation import share_out
from dynsparse.masks.selection import NO_CUT, Cut, cuts_smallest
from dynsparse.methods import Clock, Method
from dynsparse.reallocation.plan import LayerPlan, Plan, change_of


@dataclass(frozen=True)
class Planner:
    """The rules by which a method's wishes become exact counts that fit the budget."""

    masks: MaskSet
    method: Method
    resting: Collection[str] = ()
    """Layers in which nothing moves in this event."""

    def plan(self, clock: Clock, scores: Sequence[Tensor], growth_costs: Mapping[str, Tensor], seed: int) -> Plan:
        """Decide. `scores` are the drop scores of each layer, `growth_costs` are inf at active units."""
        layers = list(self.masks)
        after = self.method.budgets(layers, clock)
        budget = self.masks.budget + sum(after) - sum(layer.active_weights for layer in layers)
        cuts = [
            NO_CUT if layer.name in self.resting else cut
            for layer, cut in zip(layers, self.method.drop_cuts(scores, clock), strict=True)
        ]
        drops: Sequence[int]
        grows: Sequence[int]
        if self.method.trades:
            drops = self._traded_drops(cuts, budget)
            grows = self._traded_growth(drops, budget)
        else:
            drops, grows = zip(*map(_own_moves, layers, cuts, after), strict=True)
        decided = zip(_with_counts(scores, cuts, drops), _growth_cuts(layers, grows, growth_costs), strict=True)
        return Plan(clock.step, seed, budget, tuple(LayerPlan(drop, grow) for drop, grow in decided))

    def _traded_drops(self, cuts: Sequence[Cut], budget: int) -> Sequence[int]:
        """Units to drop in each layer where layers trade: never a layer's last, nor more than can grow elsewhere.

        A position that is dropped in this event may not grow in it. So a nearly dense network moves only as many
        weights as were free before.
        """
        counts = [min(cut.count, layer.active_units - 1) for cut, layer in zip(cuts, self.masks, strict=True)]
        sizes = [layer.spec.unit_size for layer in self.masks]
        wanted = [count * size for count, size in zip(counts, sizes, strict=True)]
        room = sum(
            (layer.spec.units - layer.active_units) * layer.spec.unit_size
            for layer in self.masks
            if layer.name not in self.resting
        )
        most = room - (budget - self.masks.active_weights)  # Kept weights must reach the budget in places free before.
        return counts if sum(wanted) <= most else share_out(most, wanted, capacity=counts, unit_size=sizes)

    def _traded_growth(self, drops: Sequence[int], budget: int) -> Sequence[int]:
        """Units that each layer grows, so that all together reach `budget` weights: in the method's proportions."""
        changes = [change_of(layer, drop) for layer, drop in zip(self.masks, drops, strict=True)]
        kept = sum(change.kept * change.unit_size for change in changes)
        return share_out(
            max(0, budget - kept),
            self.method.shares(changes),
            capacity=[0 if change.name in self.resting else change.room for change in changes],
            unit_size=[change.unit_size for change in changes],
        )


def _own_moves(layer: SparseLayer, cut: Cut, budget: int) -> tuple[int, int]:
    """Units to drop and to grow in a layer that is to have `budget` weights, whatever the others do.

    A position that is dropped in this event may not grow in it. A layer with too few free positions moves less.
    """
    units = budget // layer.spec.unit_size
    least, most = layer.active_units - units, min(layer.active_units - 1, layer.spec.units - units)
    dropped = max(0, least, min(cut.count, most))
    return dropped, units - layer.active_units + dropped


def _with_counts(scores: Sequence[Tensor], cuts: Sequence[Cut], counts: Sequence[int]) -> list[Cut]:
    """The cuts; where `counts` asks for another number, a cut that takes as many of the lowest scores."""
    result = list(cuts)
    others = [i for i, (cut, count) in enumerate(zip(cuts, counts, strict=True)) if count != cut.count]
    exact = cuts_smallest([scores[i] for i in others], [counts[i] for i in others])
    for i, cut in zip(others, exact, strict=True):
        result[i] = cut
    return result


def _growth_cuts(layers: Sequence[SparseLayer], grows: Sequence[int], costs: Mapping[str, Tensor]) -> list[Cut]:
    """Cuts that take the units of least cost; for layers without costs only the counts."""
    cuts = [replace(NO_CUT, count=count) for count in grows]
    scored = [i for i, layer in enumerate(layers) if layer.name in costs]
    found = cuts_smallest([costs[layers[i].name] for i in scored], [grows[i] for i in scored])
    for i, cut in zip(scored, found, strict=True):
        cuts[i] = cut
    return cuts
