"""Exact choices of units by score: the k smallest, or all below a threshold.

They are the same on every device and every rank: ties break by index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from dynsparse.masks.joint import kth_smallest
from dynsparse.masks.parted import Parted, Scores, each


@dataclass(frozen=True)
class Cut:
    """Choice of units by score: all below `threshold`, and the first `ties` that equal it.

    Example: of the scores 3 1 2 1 1 the three smallest are Cut(threshold=1, ties=3, count=3); the two smallest are
    Cut(threshold=1, ties=2, count=2), the units 1 and 3.
    """

    threshold: float
    ties: int
    count: int
    """Units that it takes of the scores that it was computed from."""


NO_CUT = Cut(threshold=float("-inf"), ties=0, count=0)


def cuts_below(scores: Sequence[Scores], threshold: float) -> list[Cut]:
    """Return each layer's cut that takes the scores below `threshold`. One copy to the host for all layers."""
    if not scores:
        return []
    counts = torch.stack([_below(layer, threshold) for layer in scores]).tolist()
    return [Cut(threshold, 0, count) for count in counts]


def _below(scores: Scores, threshold: float | Tensor) -> Tensor:
    return torch.stack([(part < threshold).count_nonzero() for part in each(scores)]).sum()


def cuts_smallest(scores: Sequence[Scores], counts: Sequence[int]) -> list[Cut]:
    """Return each layer's cut that takes exactly its `counts[i]` smallest scores.

    Each of `scores` has n floats with 0 <= counts[i] <= n. Linear in n (selection, no sort), and one copy to
    the host for all layers.
    """
    rows = []
    for layer, count in zip(scores, counts, strict=True):
        assert 0 <= count <= layer.numel(), (count, layer.numel())
        if count:
            kth = _kth_smallest(layer, count)
            rows.append(torch.stack((kth.double(), _below(layer, kth).double())))
    found = iter(torch.stack(rows).tolist() if rows else [])
    cuts = []
    for count in counts:
        if count == 0:
            cuts.append(NO_CUT)
        else:
            threshold, below = next(found)
            cuts.append(Cut(threshold, count - int(below), count))
    return cuts


def _kth_smallest(scores: Scores, k: int) -> Tensor:
    """Select by the faster of two ways: on a GPU `kthvalue` keeps one block of threads busy, `topk` many.

    Parts are searched in passes.
    """
    if isinstance(scores, Parted):
        return kth_smallest(scores, k)
    if scores.is_cuda:
        return scores.topk(k, largest=False, sorted=False).values.amax()
    return scores.kthvalue(k).values


def cuts_fraction(scores: Sequence[Scores], fraction: float) -> list[Cut]:
    """Return each layer's cut that takes this fraction of its scores, the smallest, rounded to whole units."""
    exact = Fraction(str(fraction))
    return cuts_smallest(scores, [round(exact * layer.numel()) for layer in scores])


def chosen(scores: Tensor, cut: Cut) -> Tensor:
    """Apply a cut to float scores [n]: bool [n], True where it takes the unit. No cut takes a NaN."""
    _, flags = next(chosen_in_parts([scores], cut))
    return flags


def chosen_in_parts(scores: Iterable[Tensor], cut: Cut) -> Iterator[tuple[Tensor, Tensor]]:
    """Apply a cut to the scores of a layer that come in parts. Yields each part, and what is taken of it: bool [n]."""
    ties: int | Tensor = cut.ties
    for part in scores:
        below = part < cut.threshold
        if cut.ties == 0:
            yield part, below
            continue
        equal = part == cut.threshold
        yield part, below.logical_or_(equal & (equal.cumsum(0) <= ties))
        ties = ties - equal.count_nonzero()
