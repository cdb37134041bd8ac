"""Exact choices among units: the k smallest, and k free positions at random.

Both are the same on every device and every rank: ties break by index, random
draws come from a CPU generator with a seed that names the event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """Chooses units by score: all below `threshold`, and the first `ties` that equal it.

    `count` is how many that makes on the scores that the cut was computed from.
    """

    threshold: float
    ties: int
    count: int


NO_CUT = Cut(threshold=float("-inf"), ties=0, count=0)


def cuts_below(scores: Sequence[Tensor], threshold: float) -> list[Cut]:
    """For each layer the cut that takes the scores below `threshold`. One host copy in all."""
    if not scores:
        return []
    counts = torch.stack([(layer < threshold).sum() for layer in scores]).tolist()
    return [Cut(threshold, 0, count) for count in counts]


def cuts_smallest(scores: Sequence[Tensor], counts: Sequence[int]) -> list[Cut]:
    """For each layer the cut that takes exactly its `counts[i]` smallest scores.

    Each of `scores` is a float tensor [n] with 0 <= counts[i] <= n. Linear in n
    (selection, no sort), one host copy in all.
    """
    rows = []
    for layer, count in zip(scores, counts, strict=True):
        assert 0 <= count <= layer.numel(), (count, layer.numel())
        if count:
            kth = layer.kthvalue(count).values
            rows.append(torch.stack((kth.double(), (layer < kth).sum().double())))
    found = iter(torch.stack(rows).tolist() if rows else [])
    cuts = []
    for count in counts:
        if count == 0:
            cuts.append(NO_CUT)
        else:
            threshold, below = next(found)
            cuts.append(Cut(threshold, count - int(below), count))
    return cuts


def cuts_fraction(scores: Sequence[Tensor], fraction: float) -> list[Cut]:
    """For each layer the cut that takes this share of its scores, the smallest; to the nearest, 0 takes none."""
    exact = Fraction(str(fraction))
    return cuts_smallest(scores, [round(exact * layer.numel()) for layer in scores])


def chosen(scores: Tensor, cut: Cut) -> Tensor:
    """Bool tensor [n]: which of the float scores [n] the cut takes."""
    below = scores < cut.threshold
    if cut.ties == 0:
        return below
    equal = scores == cut.threshold
    return below | (equal & (equal.cumsum(0) <= cut.ties))


def seed_for(*parts: object) -> int:
    """A 63-bit seed from what names an event, such as (run seed, step, layer name).

    The same in every process, which Python's `hash` of a string is not.
    """
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def draw_free(is_free: Tensor, free: int, count: int, seed: int) -> Tensor:
    """`count` distinct positions where `is_free`, uniformly, in rising order.

    `is_free` is a bool tensor [n] with `free` True entries. Returns int64
    [count] on its device. Rejection sampling where at most half of the
    positions end up taken, else a permutation of the free ones: either way the
    cost is linear in the positions taken, never in all of a sparse layer.
    """
    n = is_free.numel()
    assert 0 <= count <= free <= n, (count, free, n)
    generator = torch.Generator().manual_seed(seed)
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=is_free.device)
    if (n - free + count) * 2 > n:
        positions = torch.nonzero(is_free).squeeze(1)
        order = torch.randperm(free, generator=generator)[:count].to(is_free.device)
        return positions[order].sort().values
    drawn = torch.empty(0, dtype=torch.int64, device=is_free.device)
    while drawn.numel() < count:  # Each draw hits a free position with probability of at least 1/2.
        missing = count - drawn.numel()
        candidates = torch.randint(n, (2 * missing + 16,), generator=generator).to(is_free.device)
        drawn = _first_occurrences(torch.cat((drawn, candidates[is_free[candidates]])))
    # The first `count` in the order of drawing: taking the smallest would favour low positions.
    return drawn[:count].sort().values


def _first_occurrences(values: Tensor) -> Tensor:
    """Drop repeats from an int64 tensor [n], keeping the order of first appearance."""
    ordered, source = values.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return values[source[first].sort().values]


def merge_sorted(a: Tensor, b: Tensor) -> Tensor:
    """Merge two disjoint rising int64 tensors into one. Linear in a, b log a in b."""
    merged = torch.empty(a.numel() + b.numel(), dtype=a.dtype, device=a.device)
    place = torch.searchsorted(a, b) + torch.arange(b.numel(), device=b.device)
    from_a = torch.ones(merged.numel(), dtype=torch.bool, device=a.device)
    from_a[place] = False
    merged[place] = b
    merged.masked_scatter_(from_a, a)  # unlike indexing by a mask, no host synchronisation on a GPU
    return merged
