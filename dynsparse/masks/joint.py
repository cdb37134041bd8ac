"""One threshold for all layers: how many of the lowest scores fall to each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joint_counts(
    scores: Sequence[Tensor], sizes: Sequence[int], weights: int, least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Units to take of each layer, so that all together have `weights` weights: the lowest scores of all go first.

    `scores` are float32 or float64 [n] each, `sizes` the weights in a unit. Layer i gives `least[i]` units at least,
    and `most[i]` at most. Equal scores go to the first layers. The sum falls short of `weights` by less than a unit of
    the layer that is next, unless all give their most; it exceeds it only where `least` does.

    Exact: bisection over the 2^32 bit patterns of a float, 2^64 of a double, each round a pass over the scores, without
    a sort. One copy to the host for all layers.

    Example: 3 weights of [1 5 2] and [3 4], at most 2 of each: 1, 2 and 3, that is 2 and 1.
    """
    bits = 64 if any(layer.dtype == torch.float64 for layer in scores) else 32
    ordered = [_ordered(layer, bits) for layer in scores]
    device, end = scores[0].device, 1 << (bits - 1)
    low, high, size = (torch.tensor(number, device=device) for number in (-end, end - 1, list(sizes)))
    limits = torch.tensor([list(least), list(most)], device=device)

    def taken(upto: Tensor) -> Tensor:
        counts = torch.stack([(layer <= upto).count_nonzero() for layer in ordered])
        return counts.clamp(limits[0], limits[1])

    low, high = low.clone(), high.clone()
    for _ in range(bits):  # The least threshold that gives enough lies in low..high.
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # Their sum may not fit 64 bits.
        enough = (taken(middle) * size).sum() >= weights
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    below, upto = torch.stack((taken(high - 1), taken(high))).tolist()
    left = weights - sum(count * one for count, one in zip(below, sizes, strict=True))
    for i, one in enumerate(sizes):
        more = min(upto[i] - below[i], max(0, left // one))
        below[i], left = below[i] + more, left - more * one
    return list(map(int, below))


def _ordered(scores: Tensor, bits: int) -> Tensor:
    """Return integers that are ordered as the floats are, NaN last: negative floats have their other bits turned over.

    They are int32 for 32 bits, of the scores as float32; else int64, of them as float64.
    """
    floats, integers = (torch.float32, torch.int32) if bits == 32 else (torch.float64, torch.int64)
    words = scores.to(floats).contiguous().view(integers)
    return words ^ ((words >> (bits - 1)) & ((1 << (bits - 1)) - 1))
