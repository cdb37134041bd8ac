"""Layers that are treated as one, so that a reallocation costs a few operations for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from dynsparse.masks import bits
from dynsparse.masks.bits import Bits
from dynsparse.masks.drawing import (
    Repeats,
    count_in,
    draw_distinct,
    foreseen,
    insert,
    merge_sorted,
    selected,
    taken_before,
)
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.parted_drawing import counts_of, draw_in_parts, parted_half
from dynsparse.masks.tensors import on_device, places_of

IN_CACHE = 1 << 19
"""Most active units of a block on a processor. Larger intermediates leave its cache and cost page faults."""
ON_GPU = 1 << 22
"""Most units of a block on a GPU, active or not. It bounds the memory of intermediates.

A larger layer is alone in its block. Work that knows how goes through it in parts.
"""
A_PART = 1 << 21
"""Most units of a part of a large layer, or those of one row. Its work takes more bytes a unit than that of a block."""


class Block:
    """Consecutive layers whose units are numbered through: a layer's numbers begin where those before it end.

    Two layers of 4 and 3 units have the numbers 0..3 and 4..6. On a GPU a block is as large as memory for its
    intermediates allows, so that kernels are few.
    """

    def __init__(self, layers: Sequence[SparseLayer]) -> None:
        self.layers = list(layers)
        self.device = layers[0].device
        self._units = [layer.spec.units for layer in layers]
        self._explored = Bits(sum(self._units), self.device)
        for layer, start in zip(layers, accumulate(self._units, initial=0), strict=False):
            layer.keep_explored_in(self._explored, start)

    def to(self, device: torch.device) -> None:
        """Follow weights that have moved to another device."""
        self.device = device
        self._explored.to(device)
        for layer in self.layers:
            layer.to(device)

    def parts(self) -> list[Block]:
        """Divide a block that has come to a GPU, where it may be too large; else it is the only part."""
        sizes = [_size(layer.parameter, layer.spec.units, layer.active_units) for layer in self.layers]
        ranges = _ranges(sizes)
        return [self] if len(ranges) == 1 else [Block(self.layers[first:last]) for first, last in ranges]

    def set_active(self, active: Sequence[Tensor]) -> None:
        """Make these units of each layer (int64, rising, distinct) the active ones."""
        for layer, units in zip(self.layers, active, strict=True):
            layer.activate(units)
        self.note_explored(torch.stack([self._explore_all(i) for i in range(len(self.layers))]).tolist())

    def _explore_all(self, i: int) -> Tensor:
        """Note that all active units of layer i are active. Returns how many never were before: int64 scalar."""
        start = sum(self._units[:i])
        pieces = self.layers[i].active_pieces(bits.AT_ONCE * self.layers[i].spec.unit_size)
        return torch.stack([self.explore(piece + start).count_nonzero() for piece in pieces]).sum()

    def explore(self, numbers: Tensor) -> Tensor:
        """Note that units, numbered through (int64 [n], distinct), are active: bool [n], True where none ever was."""
        return self._explored.add(numbers)

    def note_explored(self, counts: Sequence[int]) -> None:
        """Take note that so many units of each layer have become active for the first time."""
        for layer, count in zip(self.layers, counts, strict=True):
            layer.explored_units += count

    def numbers(self) -> Tensor:
        """Active units of all layers, numbered through: int64 [active units], rising."""
        starts = accumulate(self._units, initial=0)
        return torch.cat([layer.active + start for layer, start in zip(self.layers, starts, strict=False)])

    def draw(self, counts: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
        """Draw `counts[i]` units of layer i at random, free or not: each layer's own numbers, int64, rising."""
        if self.is_large:
            return [self._drawn_in_parts(counts[0], seeds[0])]
        return self._by_layer(draw_distinct(self._units, counts, seeds, self.device), counts)

    def _drawn_in_parts(self, count: int, seed: int) -> Tensor:
        """Draw `count` units of the only layer: int64, rising."""
        sizes = [min(A_PART, self._units[0] - first) for first in range(0, self._units[0], A_PART)]
        (repeats,) = foreseen([parted_half(sizes, count, seed)], self.device)
        drawn = torch.empty(count, dtype=torch.int64, device=self.device)
        places = zip(drawn.split(counts_of(sizes, count, repeats)), accumulate(sizes, initial=0), strict=False)
        for (part, start), marks in zip(places, draw_in_parts(sizes, count, seed, self.device, repeats), strict=True):
            torch.add(places_of(marks, len(part)), start, out=part)
        return drawn

    @property
    def is_large(self) -> bool:
        """Whether the only layer has more units than a block on a GPU should have."""
        return is_large(self.layers[0])

    def free(self) -> list[int]:
        """Number of inactive units of each layer."""
        return [layer.spec.units - layer.active_units for layer in self.layers]

    def move(
        self,
        gone: Tensor,
        counts: Sequence[int],
        seeds: Sequence[int],
        scored: Tensor | None = None,
        known: Known | None = None,
    ) -> Moved:
        """Drop the active units marked in `gone` (bool [active units]); activate units that were free before the call.

        Layer i grows `counts[i]` units at random, by `seeds[i]`, and the units `scored` (int64, rising, numbered
        through). No unit is dropped and grown at once. Weights at dropped units become 0, as those at all free units
        are. Linear in the active units. With `known` nothing is copied to the host, and `Moved.explored` is left to
        `note_explored`.

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
        numbers = known or self._known(gone, counts, scored)
        ranks = draw_distinct(self.free(), counts, seeds, self.device, numbers.repeats)
        older = taken_before(before, ranks)
        grown = ranks + older
        if scored is not None:
            grown = merge_sorted(grown, scored)
            older = torch.searchsorted(before, grown)
        falling = sum(numbers.dropped)
        dropped, kept = selected(before, gone, falling), selected(before, ~gone, gone.numel() - falling)
        gone_before = torch.cat((gone.new_zeros(1, dtype=torch.int64), gone.cumsum(0)))
        after = insert(kept, grown, older - gone_before.index_select(0, older))
        explored = count_in(self.explore(grown), numbers.grown)
        moved = Moved(self._by_layer(dropped, numbers.dropped), self._by_layer(grown, numbers.grown), explored)
        changes = zip(self.layers, numbers.dropped, numbers.grown, strict=True)
        left = [layer.active_units - lost + won for layer, lost, won in changes]
        for layer, active, gone_units in zip(self.layers, self._by_layer(after, left), moved.dropped, strict=True):
            layer.activate(active)
            layer.zero_(layer.weight, gone_units)
        if known is None:
            self.note_explored(explored.tolist())
        return moved

    def _known(self, gone: Tensor, counts: Sequence[int], scored: Tensor | None) -> Known:
        """Count what `move` is to drop and grow, given its arguments. One copy to the host."""
        active = [layer.active_units for layer in self.layers]
        ends = on_device(list(accumulate(self._units)), self.device)
        upto = torch.zeros_like(ends) if scored is None else torch.searchsorted(scored, ends)
        lost, upto_each = torch.stack((count_in(gone, active), upto)).tolist()
        by_score = [b - a for a, b in pairwise([0, *upto_each])]
        return Known(lost, [count + more for count, more in zip(counts, by_score, strict=True)])

    def _by_layer(self, numbers: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Split units numbered through (int64, rising), so many in each layer, into each layer's own numbers."""
        starts = accumulate(self._units, initial=0)
        return [part - start for part, start in zip(numbers.split(list(counts)), starts, strict=False)]


@dataclass(frozen=True)
class Moved:
    """Effect of `Block.move`: the units of each layer, int64, rising."""

    dropped: Sequence[Tensor]
    grown: Sequence[Tensor]
    explored: Tensor
    """Units of each layer that were never active before: int64 [layers], on the device."""


@dataclass(frozen=True)
class Known:
    """Numbers that the host knows before `Block.move`, so that it need not ask a GPU for them."""

    dropped: Sequence[int]
    """Units that each layer drops."""
    grown: Sequence[int]
    """Units that each layer grows, at random and by score."""
    repeats: Repeats | None = None
    """Course of the draw of what grows at random; None: the draw asks for it."""


def blocks(specs: Sequence[LayerSpec], weights: Sequence[nn.Parameter], active_units: Sequence[int]) -> list[Block]:
    """Divide the layers into blocks, in their order."""
    layers = [SparseLayer(spec, weight) for spec, weight in zip(specs, weights, strict=True)]
    sizes = [_size(weight, spec.units, count) for spec, weight, count in zip(specs, weights, active_units, strict=True)]
    return [Block(layers[first:last]) for first, last in _ranges(sizes)]


def is_large(layer: SparseLayer) -> bool:
    """Whether a layer lies on a GPU and has more units than a block should have."""
    return bool(layer.parameter.is_cuda) and layer.spec.units > ON_GPU


def _size(weight: nn.Parameter, units: int, active_units: int) -> Fraction:
    """Return the part of a block that a layer takes."""
    return Fraction(units, ON_GPU) if weight.is_cuda else Fraction(active_units, IN_CACHE)


def _ranges(sizes: Sequence[Fraction]) -> list[tuple[int, int]]:
    """Divide consecutive sizes into ranges of a sum up to 1. A larger one has a range for itself."""
    found, first, held = [], 0, Fraction(0)
    for i, size in enumerate(sizes):
        if first < i and held + size > 1:
            found.append((first, i))
            first, held = i, Fraction(0)
        held += size
    return [*found, (first, len(sizes))] if sizes else []
