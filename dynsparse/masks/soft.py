"""Soft draws: units without replacement by weights, the same on every rank and device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynsparse.masks.tensors import joined, sent
from dynsparse.seeds import random_bits

AT_ONCE = 1 << 20
"""Numbers that are drawn at once."""
_LEAST = 1e-290
"""Weight in place of 0: its cost is still below inf, which marks what must not be drawn."""
_PARTS = 4096
"""Parts of the range 1/2 to 1 in which the logarithm is taken as a straight line: off by 2^-25 at most."""


def soft_costs(weights: Tensor, seed: int) -> Tensor:
    """Return costs, float64 [n], of which the k lowest are a draw of k without replacement by `weights`.

    Each next one is drawn with a probability in proportion to its weight among those that are left (Efraimidis &
    Spirakis, "Weighted random sampling with a reservoir", 2006): exponential times at the rate of the weights, and the
    first k come. A weight of 0, or below, comes after all others.

    Example: weights 1 and 3. The first is the lower one in a quarter of all seeds.
    """
    times = exponentials(seed, torch.arange(weights.numel(), device=weights.device))
    return times.div_(weights.double().clamp(min=_LEAST).view(-1))


def soft_order(scores: Tensor, power: int, seed: int) -> Tensor:
    """Return costs, float64 [n], of which the k lowest are a draw of k by the weights 1 / scores^power.

    The higher the power, the surer the lowest scores come first. A NaN stays one.
    """
    times = exponentials(seed, torch.arange(scores.numel(), device=scores.device))
    return times.mul_(sharpened(scores, power))


def exponentials(seed: int, places: Tensor) -> Tensor:
    """Return numbers from the exponential distribution of mean 1, float64 [n]: number `places[i]` of the seed's stream.

    The same bits on every device. `torch.log` is not: so the logarithm comes from a table made on the CPU, and what is
    left is arithmetic that IEEE 754 rounds in one way. Made in pieces, as one takes some 90 bytes a number.
    """
    table = sent(torch.tensor(_LOGARITHMS, dtype=torch.float64), places.device)
    return joined([_exponentials(seed, piece, table) for piece in places.split(AT_ONCE)])


def _exponentials(seed: int, places: Tensor, table: Tensor) -> Tensor:
    uniform = (random_bits(seed, places) >> 10).add_(1).double()  # 1 to 2^53, each as likely.
    mantissa, exponent = torch.frexp(uniform)
    place = (mantissa - 0.5) * (2 * _PARTS)
    part = place.floor().clamp_(max=_PARTS - 1)
    low, high = table[part.long()], table[part.long() + 1]
    logarithm = (high - low).mul_(place - part).add_(low)
    return (53 - exponent).double().mul_(math.log(2)).sub_(logarithm)


_LOGARITHMS = [math.log(0.5 + part / (2 * _PARTS)) for part in range(_PARTS + 1)]


def sharpened(scores: Tensor, power: int) -> Tensor:
    """Return scores over their largest, to a whole power: float64 [n]. Negative ones count as 0.

    By divisions and multiplications alone, which are the same on every device.
    """
    values = scores.double().view(-1).clamp(min=0)
    largest = values.max() if values.numel() else values.new_ones(())
    base = values / torch.where(largest > 0, largest, torch.ones_like(largest))
    result = base
    for _ in range(power - 1):
        result = result * base
    return result
