"""Layers that are treated as one, so that a reallocation costs a few operations for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from dynsparse.masks.bits import Bits
from dynsparse.masks.drawing import draw_distinct, insert, merge_sorted, taken_before
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.layer import SparseLayer

IN_CACHE = 1 << 19
"""Most active units of a block on a processor. Larger intermediates leave its cache and cost page faults."""


class Block:
    """Consecutive layers whose units are numbered through: a layer's numbers begin where those before it end.

    Two layers of 4 and 3 units have the numbers 0..3 and 4..6. On a GPU one block holds all layers: kernels are few,
    and copies to the host do not grow with the number of layers.
    """

    def __init__(self, specs: Sequence[LayerSpec], weights: Sequence[nn.Parameter]) -> None:
        self.device = weights[0].device
        self._units = [spec.units for spec in specs]
        self._explored = Bits(sum(self._units), self.device)
        starts = accumulate(self._units, initial=0)
        self.layers = [
            SparseLayer(spec, weight, self._explored, start)
            for spec, weight, start in zip(specs, weights, starts, strict=False)
        ]

    def to(self, device: torch.device) -> None:
        """Follow weights that have moved to another device."""
        self.device = device
        self._explored.to(device)
        for layer in self.layers:
            layer.to(device)

    def set_active(self, active: Sequence[Tensor]) -> None:
        """Make these units of each layer (int64, rising, distinct) the active ones."""
        for layer, units in zip(self.layers, active, strict=True):
            layer.activate(units)
        (found,) = self._counts([self._explored.add(self.numbers())])
        for layer, count in zip(self.layers, found, strict=True):
            layer.explored_units += count

    def numbers(self) -> Tensor:
        """Active units of all layers, numbered through: int64 [active units], rising."""
        starts = accumulate(self._units, initial=0)
        return torch.cat([layer.active + start for layer, start in zip(self.layers, starts, strict=False)])

    def draw(self, counts: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """Draw `counts[i]` units of layer i at random, free or not: each layer's own numbers, int64, rising."""
        return self._by_layer(draw_distinct(self._units, counts, seeds, self.device), counts)

    def move(self, gone: Tensor, counts: Sequence[int], seeds: Sequence[int], scored: Tensor | None = None) -> Moved:
        """Drop the active units marked in `gone` (bool [active units]); activate units that were free before the call.

        Layer i grows `counts[i]` units at random, by `seeds[i]`, and the units `scored` (int64, rising, numbered
        through). No unit is dropped and grown at once. Weights at dropped units become 0, as those at all free units
        are. Linear in the active units, with a fixed number of copies to the host, however many the layers.

        Example, layers of 4 and 3 units; one unit is to grow in each:

            before  0 2 5 6          active, numbered through: 0 and 2 of the first layer, 1 and 2 of the second
            gone    - x - x          drop 2 and 6
            free    1 3 | 4          2 and 1 units are free
            ranks   1 | 2            drawn: the second free unit of the first layer, the only one of the second
            older   2 | 2            active units before these: 0 2 and 0 2
            grown   3 4              rank + older
            kept    0 5              before, without those gone
            after   0 3 4 5          grown units go behind 1 and 1 kept ones: older - those gone before them
        """
        before = self.numbers()
        free = [layer.spec.units - layer.active_units for layer in self.layers]
        ranks = draw_distinct(free, counts, seeds, self.device)
        older = taken_before(before, ranks)
        grown = ranks + older
        if scored is not None:
            grown = merge_sorted(grown, scored)
            older = torch.searchsorted(before, grown)
        dropped = before.index_select(0, torch.nonzero(gone).squeeze(1))
        kept = before.masked_select(~gone)
        gone_before = torch.cat((gone.new_zeros(1, dtype=torch.int64), gone.cumsum(0)))
        after = insert(kept, grown, older - gone_before.index_select(0, older))
        lost, won, left, found = self._counts((dropped, grown, after, self._explored.add(grown)))
        moved = Moved(self._by_layer(dropped, lost), self._by_layer(grown, won))
        parts = zip(self.layers, self._by_layer(after, left), moved.dropped, found, strict=True)
        for layer, active, gone_units, new in parts:
            layer.activate(active)
            layer.zero_(layer.weight, gone_units)
            layer.explored_units += new
        return moved

    def _by_layer(self, numbers: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Split units numbered through (int64, rising), so many in each layer, into each layer's own numbers."""
        starts = accumulate(self._units, initial=0)
        return [part - start for part, start in zip(numbers.split(list(counts)), starts, strict=False)]

    def _counts(self, lists: Sequence[Tensor]) -> list[list[int]]:
        """Count each layer's units in each of `lists` (int64, rising, numbered through). One copy to the host."""
        ends = torch.tensor(list(accumulate(self._units))).to(self.device)
        upto = torch.stack([torch.searchsorted(numbers, ends) for numbers in lists]).tolist()
        return [[b - a for a, b in pairwise([0, *row])] for row in upto]


@dataclass(frozen=True)
class Moved:
    """Effect of `Block.move`: the units of each layer, int64, rising."""

    dropped: Sequence[Tensor]
    grown: Sequence[Tensor]


def blocks(specs: Sequence[LayerSpec], weights: Sequence[nn.Parameter], active_units: Sequence[int]) -> list[Block]:
    """Divide the layers into blocks, in their order."""
    found: list[Block] = []
    first = held = 0
    for i, units in enumerate(active_units):
        if first < i and held + units > IN_CACHE and not weights[i].is_cuda:
            found.append(Block(specs[first:i], weights[first:i]))
            first, held = i, 0
        held += units
    return [*found, Block(specs[first:], weights[first:])] if specs else []
