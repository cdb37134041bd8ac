"""Draw distinct numbers from one large range, in parts: the same numbers as `draw_distinct`, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.masks import drawing
from dynsparse.masks.drawing import Repeats
from dynsparse.masks.tensors import places_of
from dynsparse.seeds import random_bits, seed_for


@dataclass(frozen=True)
class PartedDraw:
    """Wish for `count` distinct numbers, at most half, of a range of which `sizes[k]` lie in part k, by `seed`.

    A round makes all its random numbers anew for each part, and marks those that lie in it: no sort is needed.
    """

    sizes: Sequence[int]
    count: int
    seed: int

    @property
    def left(self) -> int:
        """Numbers that are left to draw."""
        return self.count

    def found(self, device: torch.device) -> Tensor:
        """Count the distinct numbers of a round in each part: int64 [parts]."""
        return torch.stack([self.marks(k, device).count_nonzero() for k in range(len(self.sizes))])

    def after(self, got: Sequence[int]) -> PartedDraw:
        """Return what is left to draw once a round has found so many in each part."""
        left = [size - have for size, have in zip(self.sizes, got, strict=True)]
        return PartedDraw(left, self.count - sum(got), seed_for(self.seed, "more"))

    def marks(self, part: int, device: torch.device) -> Tensor:
        """Mark the numbers of a part that a round draws: bool [sizes[part]]."""
        start, size, total = sum(self.sizes[:part]), self.sizes[part], sum(self.sizes)
        marks = torch.zeros(size + 1, dtype=torch.bool, device=device)  # The last one stands for all other parts.
        for first in range(0, self.count, drawing.AT_ONCE):
            places = torch.arange(first, min(first + drawing.AT_ONCE, self.count), device=device)
            numbers = random_bits(self.seed, places).remainder_(total).sub_(start)
            marks.index_fill_(0, numbers.masked_fill_((numbers < 0) | (numbers >= size), size), True)
        return marks[:size]


def parted_half(sizes: Sequence[int], count: int, seed: int) -> PartedDraw:
    """Return the draw that leads to `count` numbers: of those wanted, or of the others if they are fewer."""
    return PartedDraw(sizes, min(count, sum(sizes) - count), seed)


def counts_of(sizes: Sequence[int], count: int, repeats: Repeats) -> list[int]:
    """Return how many of `count` numbers lie in each part, given the course of `parted_half`."""
    drawn = [sum(got[k] for got in repeats) for k in range(len(sizes))]
    return drawn if _is_direct(sizes, count) else [size - n for size, n in zip(sizes, drawn, strict=True)]


def draw_in_parts(
    sizes: Sequence[int], count: int, seed: int, device: torch.device, repeats: Repeats
) -> Iterator[Tensor]:
    """Yield the marks of the `count` numbers drawn in each part: bool [sizes[k]]. Nothing goes to the host.

    `repeats` is the course of `parted_half` with the same arguments, of `foreseen`.
    """
    rounds = [parted_half(sizes, count, seed)]
    for got in repeats:
        rounds.append(rounds[-1].after(got))
    for k in range(len(sizes)):
        marks = torch.zeros(sizes[k], dtype=torch.bool, device=device)
        for draw, got in zip(rounds, repeats, strict=False):
            open_ones = places_of(~marks, draw.sizes[k])
            marks.index_fill_(0, open_ones.index_select(0, places_of(draw.marks(k, device), got[k])), True)
        yield marks if _is_direct(sizes, count) else ~marks


def _is_direct(sizes: Sequence[int], count: int) -> bool:
    """Whether the numbers wanted are drawn, and not the others."""
    return 2 * count <= sum(sizes)
