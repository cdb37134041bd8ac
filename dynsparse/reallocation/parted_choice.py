"""The units of a large layer that go and grow, chosen and moved in parts of the layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks import block as blocks
from dynsparse.masks.block import Block, Known, Moved
from dynsparse.masks.drawing import Repeats, selected
from dynsparse.masks.parted import Parted, each
from dynsparse.masks.parted_drawing import PartedDraw, counts_of, draw_in_parts, parted_half
from dynsparse.masks.selection import chosen_in_parts
from dynsparse.masks.tensors import places_of
from dynsparse.reallocation.plan import LayerPlan


@dataclass(frozen=True)
class PartedChoice:
    """Choice in a block of one large layer. It is made anew, part by part, whenever it is read."""

    block: Block
    scores: Parted
    """Drop scores."""
    costs: Parted | None
    """Negated growth scores, inf where nothing can grow; None: growth is at random."""
    plan: LayerPlan
    seed: int

    @property
    def layer(self) -> SparseLayer:
        """The only layer."""
        return self.block.layers[0]

    def counts(self) -> Tensor:
        """Count what goes, what grows by score, and scores that are NaN, by part: int64 [parts, 3], on the device."""
        lost = torch.stack([flags.count_nonzero() for _, flags in chosen_in_parts(self.scores, self.plan.drop)])
        nans = torch.stack([part.isnan().count_nonzero() for part in each(self.scores)])
        if self.costs is None:
            return torch.stack((lost, torch.zeros_like(lost), nans), 1)
        won = torch.stack([flags.count_nonzero() for _, flags in chosen_in_parts(self.costs, self.plan.grow)])
        return torch.stack((lost, won, nans), 1)

    def draw(self) -> PartedDraw:
        """Wish for what grows at random."""
        return parted_half(self._free, self._at_random, self.seed)

    def known(self, counts: Sequence[Sequence[int]], repeats: Repeats | None) -> Known:
        """Put together what the host knows of each part, given `counts()` and the course of `draw`."""
        assert repeats is not None
        grown = [won for _, won, _ in counts] if self.costs else counts_of(self._free, self._at_random, repeats)
        return Known([lost for lost, _, _ in counts], grown, repeats)

    def move(self, known: Known) -> tuple[Moved, list[Tensor | None]]:
        """Carry the choice out. Returns its effect, and the costs of the units that have grown, if there are any.

        Only one part is in memory, beside the old index of the layer and the new one.
        """
        layer, device = self.layer, self.block.device
        parts, left = layer.parts(blocks.A_PART), layer.active_units - sum(known.dropped) + sum(known.grown)
        after = torch.empty(left, dtype=torch.int64, device=device)
        new = torch.zeros(1, dtype=torch.int64, device=device)
        dropped, grown, their_costs = list[Tensor](), list[Tensor](), list[Tensor]()
        falling = chosen_in_parts(self.scores, self.plan.drop)
        start = written = 0
        for k, (part, (_, falls), (cost, grows)) in enumerate(zip(parts, falling, self._growing(known), strict=True)):
            fallen = selected(part.active, falls, known.dropped[k])
            won = places_of(grows, known.grown[k])
            active = ~part.inactive.view(-1)
            active.index_fill_(0, fallen, False).index_fill_(0, won, True)
            count = part.active_units - known.dropped[k] + known.grown[k]
            torch.add(places_of(active, count), start, out=after[written : written + count])
            new += self.block.explore(won + start).count_nonzero()
            dropped.append(fallen + start)
            grown.append(won + start)
            if cost is not None:
                their_costs.append(cost.index_select(0, won))
            start, written = start + part.spec.units, written + count
        now = zip(layer.active_in_parts(blocks.A_PART), known.dropped, known.grown, strict=True)
        counts = [active - lost + won for active, lost, won in now]
        layer.activate(after)
        layer.tell_active_in_parts(blocks.A_PART, counts)
        moved = Moved([torch.cat(dropped)], [torch.cat(grown)], new)
        layer.zero_(layer.weight, moved.dropped[0])
        return moved, [torch.cat(their_costs) if their_costs else None]

    def _growing(self, known: Known) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Yield the costs of the units of each part, if growth has any, and marks of those that grow: bool [units]."""
        if self.costs is not None:
            yield from chosen_in_parts(self.costs, self.plan.grow)
            return
        assert known.repeats is not None
        drawn = draw_in_parts(self._free, self._at_random, self.seed, self.block.device, known.repeats)
        for part, marks, count in zip(self.layer.parts(blocks.A_PART), drawn, known.grown, strict=True):
            free = places_of(part.inactive.view(-1), part.spec.units - part.active_units)
            grows = torch.zeros_like(part.inactive.view(-1))
            yield None, grows.index_fill_(0, free.index_select(0, places_of(marks, count)), True)

    @property
    def _at_random(self) -> int:
        return self.plan.grow.count if self.costs is None else 0

    @property
    def _free(self) -> list[int]:
        """Inactive units of each part, before the move."""
        units, active = self.layer.units_in_parts(blocks.A_PART), self.layer.active_in_parts(blocks.A_PART)
        return [all_of_it - some for all_of_it, some in zip(units, active, strict=True)]
