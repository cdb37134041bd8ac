"""Exact choices among units: the k smallest, and k free positions at random.

Both are the same on every device and every rank: ties break by index, random
draws are integer arithmetic on a seed that names the event.
"""

from __future__ import annotations

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
