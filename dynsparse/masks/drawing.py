"""Draw distinct numbers at random, the same on every device, and merge rising lists of numbers.

Several ranges are drawn from at once. Their numbers are consecutive: those of a range begin where the range before
ends. With sizes [4, 3] the ranges are 0..3 and 4..6.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from dynsparse.seeds import random_bits, seed_for


def draw_distinct(sizes: Sequence[int], counts: Sequence[int], seeds: Sequence[int], device: torch.device) -> Tensor:
    """Draw `counts[i]` distinct numbers from range i, which has `sizes[i]`, uniformly and by `seeds[i]` alone.

    Returns int64 [sum of counts] on `device`, rising. A range's draw does not depend on the other ranges. The cost is
    linear in the counts, but for sorting them.

    Where more than half of a range is asked for, the rest is drawn and its complement returned. Example: 3 of 0..3
    draws 1 number, say 2, and returns 0, 1, 3.
    """
    starts = list(accumulate(sizes, initial=0))
    inverted = [2 * count > size for size, count in zip(sizes, counts, strict=True)]
    wanted = [size - count if inv else count for size, count, inv in zip(sizes, counts, inverted, strict=True)]
    drawn = _draw_at_most_half(sizes, wanted, seeds, device)
    if not any(inverted):
        return drawn
    parts = []
    for start, count, part, inv in zip(starts, counts, drawn.split(wanted), inverted, strict=False):
        parts.append(free_numbers(part - start, torch.arange(count, device=device)) + start if inv else part)
    return torch.cat(parts)


def _draw_at_most_half(
    sizes: Sequence[int], counts: Sequence[int], seeds: Sequence[int], device: torch.device
) -> Tensor:
    """Draw as many as are missing, keep the distinct ones, draw the others from the numbers that are left.

    The fraction of repeats falls with its square, so a few rounds do. Each takes two copies to the host.

    Example, one range of 10 and 4 to draw: the bits give 7, 2, 7, 5. Sorted and distinct they are 2, 5, 7; one is
    missing. Of the 7 free numbers 0 1 3 4 6 8 9 the second round draws the one of rank 3, which is 4. Merged: 2 4 5 7.
    """
    total = sum(counts)
    if total == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    ends = list(accumulate(sizes))
    table = torch.tensor([seeds, sizes, [end - size for end, size in zip(ends, sizes, strict=True)], ends, counts])
    table = table.to(device)
    owner = torch.arange(len(sizes), device=device).repeat_interleave(table[4], output_size=total)
    table[4] = table[4].cumsum(0) - table[4]
    seed, size, start, _, first = (row.index_select(0, owner) for row in table)
    numbers = random_bits(seed, torch.arange(total, device=device) - first).remainder_(size).add_(start)
    if ends[-1] < 1 << 31:
        numbers = numbers.to(torch.int32)  # Sorts several times as fast.
    numbers = numbers.sort().values
    is_new = torch.ones_like(numbers, dtype=torch.bool)
    torch.ne(numbers[1:], numbers[:-1], out=is_new[1:])
    numbers = numbers.masked_select(is_new).to(torch.int64)
    if numbers.numel() == total:
        return numbers
    upto = torch.searchsorted(numbers, table[3]).tolist()
    got = [b - a for a, b in pairwise([0, *upto])]
    left = [size - have for size, have in zip(sizes, got, strict=True)]
    missing = [count - have for count, have in zip(counts, got, strict=True)]
    more = _draw_at_most_half(left, missing, [seed_for(seed, "more") for seed in seeds], device)
    return merge_sorted(numbers, free_numbers(numbers, more))


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
