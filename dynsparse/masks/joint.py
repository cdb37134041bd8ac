"""One threshold for all layers: how many of the lowest scores fall to each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from dynsparse.masks.made import MOST, MadeAnew
from dynsparse.masks.parted import Parted, Scores
from dynsparse.masks.tensors import on_device

AT_ONCE = 1 << 24
"""Bytes of flags that are made at once on a GPU."""
Ordered = Iterable[Tensor]
"""Integers of a layer that are ordered as its scores are, in parts."""
_FLOATS = {32: torch.float32, 64: torch.float64}
_INTEGERS = {32: torch.int32, 64: torch.int64}


def joint_counts(
    scores: Sequence[Scores], sizes: Sequence[int], weights: int, least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Units to take of each layer, so that all together have `weights` weights: the lowest scores of all go first.

    `scores` are float32 or float64 [n] each, `sizes` the weights in a unit. Layer i gives `least[i]` units at least,
    and `most[i]` at most. Equal scores go to the first layers. The sum falls short of `weights` by less than a unit of
    the layer that is next, unless all give their most; it exceeds it only where `least` does.

    Exact: a search over the 2^32 bit patterns of a float, 2^64 of a double, without a sort. Each pass over the scores
    finds one bit of the threshold. Scores of a GPU that do not fit MOST bytes, or are parted, are asked for anew in
    each pass. It then finds four bits. One copy to the host.

    Example: 3 weights of [1 5 2] and [3 4], at most 2 of each: 1, 2 and 3, that is 2 and 1.
    """
    kinds = [(layer.dtype, layer.numel(), layer.device, layer.is_cuda) for layer in scores]  # Each is made once for it.
    bits = 64 if any(dtype == torch.float64 for dtype, *_ in kinds) else 32
    _, _, device, on_gpu = kinds[0]
    fits = not on_gpu or sum(size for _, size, *_ in kinds) * bits // 8 <= MOST
    ordered: Sequence[Ordered] = MadeAnew(lambda i: _ordered(scores[i], bits), len(scores))
    found_at_once = 4
    if fits and not any(isinstance(layer, Parted) for layer in scores):
        ordered, found_at_once = [list(layer) for layer in ordered], 1
    limits = on_device([list(least), list(most)], device)
    threshold = _least_threshold(ordered, limits, sizes, weights, bits, found_at_once)
    below, upto = _taken(ordered, torch.stack((threshold - 1, threshold)), limits).tolist()
    left = weights - sum(count * one for count, one in zip(below, sizes, strict=True))
    for i, one in enumerate(sizes):
        more = min(upto[i] - below[i], max(0, left // one))
        below[i], left = below[i] + more, left - more * one
    return list(map(int, below))


def kth_smallest(scores: Parted, k: int) -> Tensor:
    """Return the k-th smallest score, counted from 1: a scalar. Nothing goes to the host."""
    dtype = scores.dtype
    bits = 64 if dtype == torch.float64 else 32
    limits = on_device([[0], [scores.numel()]], scores.device)
    found = _least_threshold([_ordered(scores, bits)], limits, [1], k, bits, 4)
    return _turned(found.to(_INTEGERS[bits]), bits).view(_FLOATS[bits]).to(dtype)


def _least_threshold(
    ordered: Sequence[Ordered], limits: Tensor, sizes: Sequence[int], weights: int, bits: int, at_once: int
) -> Tensor:
    """Return the least integer up to which all layers have `weights` weights; the largest of `bits` bits if none has.

    A pass compares with the ends of 2^at_once equal parts of the range, all but the last. It goes on in the first part
    whose end is enough. Example, 2 bits a pass: of 0..15 the ends are 3, 7, 11. If 7 is enough and 3 is not, 4..7 is
    left.
    """
    size = on_device(list(sizes), limits.device)
    low = torch.full((), -(1 << (bits - 1)), device=limits.device)
    for left in range(bits - at_once, -1, -at_once):
        part = 1 << left if left < 63 else -(1 << 63)  # The same, as 64 bits wrap.
        ends = low + torch.arange(1, 1 << at_once, device=limits.device) * part - 1
        short = (_taken(ordered, ends, limits) * size).sum(1) < weights
        low = low + short.sum() * part
    return low


def _taken(ordered: Sequence[Ordered], upto: Tensor, limits: Tensor) -> Tensor:
    """Count each layer's integers up to each of `upto` (int64 [n]), within limits, int64 [2, layers]: [n, layers]."""
    counts = [reduce(torch.add, (_counts_upto(part, upto) for part in layer)) for layer in ordered]
    return torch.stack(counts, 1).clamp(limits[0], limits[1])


def _counts_upto(numbers: Tensor, upto: Tensor) -> Tensor:
    """Count integers up to each of `upto`: on a GPU in few kernels, with AT_ONCE bytes of flags at a time."""
    if not numbers.is_cuda:
        return torch.stack([(numbers <= one).count_nonzero() for one in upto])
    some = upto.split(max(1, AT_ONCE // max(1, len(numbers))))
    return torch.cat([(numbers <= ends[:, None]).sum(1) for ends in some])


def _ordered(scores: Scores, bits: int) -> Ordered:
    """Return integers that are ordered as the floats are, in the parts of these; parts are made anew in each pass.

    They are int32 for 32 bits, of the scores as float32; else int64, of them as float64.
    """
    if isinstance(scores, Parted):
        return scores.then(lambda _, part: _as_integers(part, bits))
    return (_as_integers(scores, bits),)


def _as_integers(scores: Tensor, bits: int) -> Tensor:
    floats = scores.to(_FLOATS[bits])
    floats = torch.where(floats.isnan(), math.nan, floats)  # A NaN with a sign would come first.
    return _turned(floats.contiguous().view(_INTEGERS[bits]), bits)


def _turned(words: Tensor, bits: int) -> Tensor:
    """Turn the bits of floats into integers in their order, or back, in place: of negative ones all but the sign."""
    return words.bitwise_xor_((words >> (bits - 1)).bitwise_and_((1 << (bits - 1)) - 1))
