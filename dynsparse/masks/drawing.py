"""Draw distinct numbers at random, the same on every device, and merge rising lists of numbers.

Several ranges are drawn from at once. Their numbers are consecutive: those of a range begin where the range before
ends. With sizes [4, 3] the ranges are 0..3 and 4..6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from dynsparse.masks.tensors import on_device, places_of
from dynsparse.seeds import random_bits, seed_for

AT_ONCE = 1 << 20
"""Random numbers that are made at once, at some 64 bytes each."""
Repeats = Sequence[Sequence[int]]
"""Distinct numbers that each round of a draw finds in each range, or in each part of one."""


class Rounds(Protocol):
    """Draw in rounds, each of which finds some of the numbers that are left."""

    @property
    def left(self) -> int:
        """Numbers that are left to draw."""

    def found(self, device: torch.device) -> Tensor:
        """Count the distinct numbers of a round: int64 [ranges or parts]."""

    def after(self, got: Sequence[int]) -> Rounds:
        """Return what is left to draw once a round has found so many."""


@dataclass(frozen=True)
class Draw:
    """Wish for `counts[i]` distinct numbers of range i, which has `sizes[i]`, by `seeds[i]`: at most half of them."""

    sizes: Sequence[int]
    counts: Sequence[int]
    seeds: Sequence[int]

    @property
    def left(self) -> int:
        """Numbers that are left to draw."""
        return sum(self.counts)

    def found(self, device: torch.device) -> Tensor:
        """Count the distinct numbers of a round in each range: int64 [ranges]."""
        return count_in(_round(self, device)[1], self.counts)

    def after(self, got: Sequence[int]) -> Draw:
        """Return what is left to draw once a round has found so many: ranks among the numbers that it has not found."""
        left = [size - have for size, have in zip(self.sizes, got, strict=True)]
        missing = [count - have for count, have in zip(self.counts, got, strict=True)]
        return Draw(left, missing, [seed_for(seed, "more") for seed in self.seeds])


def draw_distinct(
    sizes: Sequence[int],
    counts: Sequence[int],
    seeds: Sequence[int],
    device: torch.device,
    repeats: Repeats | None = None,
) -> Tensor:
    """Draw `counts[i]` distinct numbers from range i, which has `sizes[i]`, uniformly and by `seeds[i]` alone.

    Returns int64 [sum of counts] on `device`, rising. A range's draw does not depend on the other ranges. The cost is
    linear in the counts, but for sorting them. With `repeats`, of `foreseen`, nothing is copied to the host.

    Where more than half of a range is asked for, the rest is drawn and its complement returned. Example: 3 of 0..3
    draws 1 number, say 2, and returns 0, 1, 3.
    """
    starts = list(accumulate(sizes, initial=0))
    draw = at_most_half(sizes, counts, seeds)
    drawn = _drawn(draw, device, None if repeats is None else iter(repeats))
    if list(counts) == draw.counts:
        return drawn
    parts = []
    for start, count, wanted, part in zip(starts, counts, draw.counts, drawn.split(draw.counts), strict=False):
        inverted = count != wanted
        parts.append(free_numbers(part - start, torch.arange(count, device=device)) + start if inverted else part)
    return torch.cat(parts)


def at_most_half(sizes: Sequence[int], counts: Sequence[int], seeds: Sequence[int]) -> Draw:
    """Return the draw that leads to so many of each range: of those wanted, or of the others if they are fewer."""
    return Draw(sizes, [min(count, size - count) for size, count in zip(sizes, counts, strict=True)], seeds)


def foreseen(draws: Sequence[Rounds], device: torch.device) -> list[list[list[int]]]:
    """Find the `Repeats` of several draws. A round of all draws takes one copy to the host; no number is kept."""
    found: list[list[list[int]]] = [[] for _ in draws]
    while any(draw.left for draw in draws):
        counted = [draw.found(device) for draw in draws]
        got = iter(torch.cat(counted).tolist())
        for known, of_draw in zip(found, counted, strict=True):
            known.append([next(got) for _ in range(len(of_draw))])
        draws = [draw.after(known[-1]) for draw, known in zip(draws, found, strict=True)]
    return found


def _drawn(draw: Draw, device: torch.device, repeats: Iterator[Sequence[int]] | None) -> Tensor:
    """Draw as many as are missing, keep the distinct ones, draw the others from the numbers that are left.

    The fraction of repeats falls with its square, so a few rounds do. Each takes one copy to the host.

    Example, one range of 10 and 4 to draw: the bits give 7, 2, 7, 5. Sorted and distinct they are 2, 5, 7; one is
    missing. Of the 7 free numbers 0 1 3 4 6 8 9 the second round draws the one of rank 3, which is 4. Merged: 2 4 5 7.
    """
    total = sum(draw.counts)
    if total == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    numbers, is_new = _round(draw, device)
    got = count_in(is_new, draw.counts).tolist() if repeats is None else next(repeats)
    numbers = selected(numbers, is_new, sum(got)).to(torch.int64)
    if sum(got) == total:
        return numbers
    more = _drawn(draw.after(got), device, repeats)
    return merge_sorted(numbers, free_numbers(numbers, more))


def _round(draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw with repeats: `counts[i]` numbers of range i, rising, and bool marks of the first of equal ones."""
    total = sum(draw.counts)
    starts = list(accumulate(draw.sizes, initial=0))[:-1]
    upto = list(accumulate(draw.counts))
    first = [end - count for end, count in zip(upto, draw.counts, strict=True)]
    *table, ends = on_device([draw.seeds, draw.sizes, starts, first, upto], device)
    sorts_fast = sum(draw.sizes) < 1 << 31  # Several times as fast.
    numbers = torch.empty(total, dtype=torch.int32 if sorts_fast else torch.int64, device=device)
    for at in range(0, total, AT_ONCE):
        places = torch.arange(at, min(at + AT_ONCE, total), device=device)
        owner = torch.searchsorted(ends, places, right=True)
        seed, size, start, before = (row.index_select(0, owner) for row in table)
        numbers[at : at + AT_ONCE] = random_bits(seed, places.sub_(before)).remainder_(size).add_(start)
    numbers = numbers.sort().values
    is_new = torch.ones_like(numbers, dtype=torch.bool)
    torch.ne(numbers[1:], numbers[:-1], out=is_new[1:])
    return numbers, is_new


def count_in(flags: Tensor, lengths: Sequence[int]) -> Tensor:
    """Count the True flags (bool [n]) in consecutive runs of these lengths: int64 [runs]. Nothing goes to the host."""
    ends = on_device(list(accumulate(lengths, initial=0)), flags.device)
    upto = torch.cat((flags.new_zeros(1, dtype=torch.int32), flags.cumsum(0, dtype=torch.int32)))
    return upto.index_select(0, ends).long().diff()


def selected(values: Tensor, flags: Tensor, count: int) -> Tensor:
    """Return the values at the True flags, of which there are `count`: so the host need not wait for a GPU."""
    return values.index_select(0, places_of(flags, count)) if flags.is_cuda else values.masked_select(flags)


def free_numbers(taken: Tensor, ranks: Tensor) -> Tensor:
    """Return the `ranks[i]`-th, counted from 0, of the numbers 0, 1, 2, ... that are not in `taken`.

    Both are int64 and rising; so is the result. Example: with 1 and 2 taken, 0 3 4 5 ... are free, and ranks [0, 1, 3]
    give [0, 3, 5].
    """
    return ranks + taken_before(taken, ranks)


def taken_before(taken: Tensor, ranks: Tensor) -> Tensor:
    """Count the entries of `taken` that lie before each of `free_numbers(taken, ranks)`.

    Taken number j has `taken[j] - j` free numbers before it. A free number of rank r lies behind all taken ones with
    at most r free numbers before them. Example: of 1 and 2 both have one; ranks [0, 1, 3] have [0, 2, 2] before them.
    """
    free_before = taken - torch.arange(taken.numel(), device=taken.device)
    return torch.searchsorted(free_before, ranks, right=True)


def merge_sorted(a: Tensor, b: Tensor) -> Tensor:
    """Merge two disjoint rising int64 tensors into one. Linear in a, b log a in b."""
    return insert(a, b, torch.searchsorted(a, b))


def insert(a: Tensor, b: Tensor, before: Tensor) -> Tensor:
    """Return all of `a` and `b`, each in its order, with `before[i]` entries of a before b[i]. All are int64."""
    merged = torch.empty(a.numel() + b.numel(), dtype=a.dtype, device=a.device)
    place = before + torch.arange(b.numel(), device=b.device)
    from_a = torch.ones(merged.numel(), dtype=torch.bool, device=a.device).index_fill_(0, place, False)
    merged.scatter_(0, place, b)
    merged.masked_scatter_(from_a, a)  # Unlike indexing by a mask, it does not wait for the GPU.
    return merged
