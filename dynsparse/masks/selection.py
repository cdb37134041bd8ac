"""Exact choices among units: the k smallest, and k free positions at random.

Both are the same on every device and every rank: ties break by index, random
draws are integer arithmetic on a seed that names the event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = 0x94D049BB133111EB
"""Odd constants of SplitMix64, see `random_bits`."""


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
    counts = torch.stack([(layer < threshold).count_nonzero() for layer in scores]).tolist()
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
            kth = _kth_smallest(layer, count)
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


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """Scalar, the same either way; on a GPU `kthvalue` keeps one block of threads busy, `topk` many."""
    if scores.is_cuda:
        return scores.topk(k, largest=False, sorted=False).values.amax()
    return scores.kthvalue(k).values


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


def draw_distinct(sizes: Sequence[int], counts: Sequence[int], seeds: Sequence[int], device: torch.device) -> Tensor:
    """For each i `counts[i]` distinct numbers below `sizes[i]`, uniformly, with `seeds[i]`; numbered through.

    int64 [sum of counts] on `device`, rising: the numbers of i have the sizes before it added. What i gets depends
    on its own size, count and seed alone. Draw as many as are missing, keep the distinct ones, draw the rest from
    the numbers that are left: their share falls with its square, so a few rounds do, each of two host copies. The
    cost is linear in the counts, but for sorting them.
    """
    starts = list(accumulate(sizes, initial=0))
    inverted = [2 * count > size for size, count in zip(sizes, counts, strict=True)]  # Draw what to leave out.
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


def random_bits(seeds: Tensor | int, places: Tensor) -> Tensor:
    """int64 in [0, 2^63): entry i is output number `places[i]` of the stream with seed `seeds[i]` (int64, or one).

    SplitMix64 (Steele, Lea & Flood 2014), which reaches any place of a stream at once. Integer arithmetic alone: the
    same on every device.
    """
    words = (places + 1).mul_(GOLDEN).add_(seeds)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, MIX)):
        words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, 31)).bitwise_and_((1 << 63) - 1)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, as if unsigned."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 of these 64 bits."""
    return word - (1 << 64) if word >> 63 else word


def free_numbers(taken: Tensor, ranks: Tensor) -> Tensor:
    """The `ranks[i]`-th of the numbers 0, 1, 2, ... that are not in `taken`, counted from 0.

    Both are int64 and rising; so is the result.
    """
    return ranks + taken_before(taken, ranks)


def taken_before(taken: Tensor, ranks: Tensor) -> Tensor:
    """How many of `taken` lie before each of `free_numbers(taken, ranks)`."""
    free_before = taken - torch.arange(taken.numel(), device=taken.device)
    return torch.searchsorted(free_before, ranks, right=True)


def merge_sorted(a: Tensor, b: Tensor) -> Tensor:
    """Merge two disjoint rising int64 tensors into one. Linear in a, b log a in b."""
    return insert(a, b, torch.searchsorted(a, b))


def insert(a: Tensor, b: Tensor, before: Tensor) -> Tensor:
    """All of `a` and `b`, in their orders, `before[i]` of a before b[i]."""
    merged = torch.empty(a.numel() + b.numel(), dtype=a.dtype, device=a.device)
    place = before + torch.arange(b.numel(), device=b.device)
    from_a = torch.ones(merged.numel(), dtype=torch.bool, device=a.device).index_fill_(0, place, False)
    merged.scatter_(0, place, b)
    merged.masked_scatter_(from_a, a)  # unlike indexing by a mask, no host synchronisation on a GPU
    return merged
