"""Rounds in which several ways to do the same take turns, and the rule by which one of them wins.

Machines are shared and noisy. Only ratios within a round count, and their median.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Act = Callable[[], Any]
Times = dict[str, list[float]]
"""Seconds of one call of each way, by round. A way that was given up has fewer."""

LEAST_ROUNDS = 3
GIVEN_UP = 1.2
"""A way that takes longer than this, times the first one's time, in each of the first rounds has no more turns."""
LEAST_TURN = 0.002
"""Seconds that the first way computes in a turn, at least: short calls are repeated, and the fastest counts."""
MOST_CALLS = 50


@dataclass(frozen=True)
class Ratio:
    """Times of one way over those of another in the same round: the median and the quartiles."""

    median: float
    low: float
    high: float

    def wins(self, margin: float) -> bool:
        """Return whether the way is faster by the fraction `margin`, and in three rounds of four faster at all."""
        return self.median <= 1 - margin and self.high < 1


def in_turn(ways: Mapping[str, Act], rounds: int) -> Times:
    """Time each way in each of several rounds, after one round that does not count.

    The first way is what the others are compared to. In a round the ways have their turns in an order that moves on by
    one each time. Losers are given up (GIVEN_UP).
    """
    first, *_ = ways
    calls = {way: _calls(act) for way, act in ways.items()}
    times: Times = {way: [] for way in ways}
    order = list(ways)
    for _ in range(rounds):
        for way in order:
            times[way].append(_seconds(ways[way], min(calls[first], calls[way])))
        order = [way for way in [*order[1:], order[0]] if way == first or not _is_lost(times[way], times[first])]
        if order == [first]:
            break
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> Ratio:
    """Return the ratios of the rounds that both have."""
    found = [one / other for one, other in zip(times, base, strict=False)]
    low, median, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
    return Ratio(median, low, high)


def _is_lost(times: Sequence[float], base: Sequence[float]) -> bool:
    enough = len(times) >= LEAST_ROUNDS
    return enough and all(one > GIVEN_UP * other for one, other in zip(times, base, strict=False))


def _calls(act: Act) -> int:
    """Return how many calls make a turn; the two that are made here warm up."""
    act()
    return min(MOST_CALLS, max(1, math.ceil(LEAST_TURN / _seconds(act, 1))))


def _seconds(act: Act, calls: int) -> float:
    """Return the seconds of the fastest of some calls: one that nothing else on the machine interrupted."""
    return min(_seconds_of_one(act) for _ in range(calls))


def _seconds_of_one(act: Act) -> float:
    began = _now()
    act()
    return _now() - began


def _now() -> float:
    """Return the time in seconds, with nothing left to do on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
