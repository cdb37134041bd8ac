"""The units of a block of layers that go and grow, chosen before any has moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.masks.block import Block, Known, Moved
from dynsparse.masks.drawing import Draw, Repeats, at_most_half
from dynsparse.masks.parted import Scores, whole
from dynsparse.masks.tensors import places_of


@dataclass(frozen=True)
class Choice:
    """Choice in one block, as flags of the units of each of its layers."""

    block: Block
    gone: Sequence[Tensor]
    """Bool [active units]: True for units that go."""
    nans: Sequence[Tensor]
    """Number of active units without a number as their score: int64 []."""
    grown: Sequence[Tensor | None]
    """Bool [units]: True for units that grow by score; None for a layer that grows at random."""
    at_random: Sequence[int]
    """Number of units that grow at random."""
    seeds: Sequence[int]
    costs: Mapping[str, Scores]
    """Negated growth scores of the layers that have any, float [units] each, made when they are asked for."""

    def counts(self) -> Tensor:
        """Count what goes, what grows by score, and scores that are NaN: int64 [layers, 3], on the device."""
        zero = torch.zeros((), dtype=torch.int64, device=self.block.device)
        lost = [flags.count_nonzero() for flags in self.gone]
        won = [zero if flags is None else flags.count_nonzero() for flags in self.grown]
        return torch.stack((torch.stack(lost), torch.stack(won), torch.stack(list(self.nans))), 1)

    def known(self, counts: Sequence[Sequence[int]], repeats: Repeats | None) -> Known:
        """Put together what the host knows, given `counts()` and the course of `draw`."""
        won = [by_score + more for (_, by_score, _), more in zip(counts, self.at_random, strict=True)]
        return Known([lost for lost, _, _ in counts], won, repeats)

    def draw(self) -> Draw:
        """Wish for what grows at random."""
        return at_most_half(self.block.free(), self.at_random, self.seeds)

    def move(self, known: Known) -> tuple[Moved, list[Tensor | None]]:
        """Carry the choice out. Returns its effect, and the costs of the units that have grown in each layer."""
        before = [self.costs.get(layer.name) for layer in self.block.layers]  # Before: active units cost inf.
        scored = self._scored(sum(known.grown) - sum(self.at_random))
        moved = self.block.move(torch.cat(list(self.gone)), self.at_random, self.seeds, scored, known)
        return moved, [_at(one, units) for one, units in zip(before, moved.grown, strict=True)]

    def _scored(self, count: int) -> Tensor | None:
        """Units that grow by score, int64 [count], rising, numbered through. None: all grow at random."""
        if all(flags is None for flags in self.grown):
            return None
        each = [
            torch.zeros(layer.spec.units, dtype=torch.bool, device=self.block.device) if flags is None else flags
            for layer, flags in zip(self.block.layers, self.grown, strict=True)
        ]
        return places_of(torch.cat(each), count)


def _at(costs: Scores | None, units: Tensor) -> Tensor | None:
    return None if costs is None else whole(costs).index_select(0, units)
