"""Dynamic sparse reparameterization in NumPy, written from its description alone.

It shares no code with the package and prefers the obvious to the fast: full
scans, Python integers, sorting. Weights are single (unit size 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass
class Outcome:
    dropped: list[set[int]]
    grown: list[int]
    threshold: float


def proportional(total: int, shares: list[int], room: list[int]) -> list[int]:
    """Divide `total` in proportion to `shares`, no layer above its `room`, remainders to the largest fractions.

    The real-valued division gives layer l min(room, level * share): find the level by trying the layers
    in the order in which they fill up.
    """
    if total >= sum(room):
        return list(room)
    order = sorted(range(len(shares)), key=lambda i: (Fraction(room[i], shares[i]), i))
    level = Fraction(0)
    for position in range(len(order) + 1):
        full, partly = order[:position], order[position:]
        left = total - sum(room[i] for i in full)
        if left < 0 or not partly:
            continue
        level = Fraction(left, sum(shares[i] for i in partly))
        if all(level * shares[i] < room[i] for i in partly):
            break
    exact = [min(Fraction(r), level * s) for r, s in zip(room, shares, strict=True)]
    whole = [int(x) for x in exact]
    for i in sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))[: total - sum(whole)]:
        whole[i] += 1
    return whole


def smallest(weights: NDArray[np.float32], positions: list[int], k: int) -> set[int]:
    return set(sorted(positions, key=lambda i: (abs(weights[i]), i))[:k])


def reallocate(
    weights: list[NDArray[np.float32]], masks: list[NDArray[np.bool_]], threshold: float, target: int
) -> Outcome:
    active = [[int(i) for i in np.flatnonzero(mask)] for mask in masks]
    free = [int((~mask).sum()) for mask in masks]

    # 1. Drop what lies below the threshold; the largest weight of a layer stays.
    below = [
        sum(abs(w[i]) < np.float32(threshold) for i in positions) for w, positions in zip(weights, active, strict=True)
    ]
    counts = [min(int(k), len(positions) - 1) for k, positions in zip(below, active, strict=True)]
    # What was dropped may not return at once, so no more can move than is free in all.
    if sum(counts) > sum(free):
        moving = [i for i, k in enumerate(counts) if k > 0]
        lowered = proportional(sum(free), [counts[i] for i in moving], [counts[i] for i in moving])
        for i, k in zip(moving, lowered, strict=True):
            counts[i] = k
    dropped = [smallest(w, positions, k) for w, positions, k in zip(weights, active, counts, strict=True)]
    moved = sum(counts)

    # 2. Grow as many, more where more was kept.
    kept = [len(positions) - k for positions, k in zip(active, counts, strict=True)]
    grown = proportional(moved, kept, free)

    # 4. Adapt the threshold to the number that is asked, or that can move at all.
    reachable = min(target, sum(free), sum(len(positions) - 1 for positions in active))
    if moved > 1.1 * reachable:
        threshold /= 2
    elif moved < 0.9 * reachable:
        threshold *= 2
    return Outcome(dropped, grown, threshold)
