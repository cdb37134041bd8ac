"""Times of several ways to do the same, side by side.

Machines are shared and noisy: only ratios within a round count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Times = Mapping[str, Sequence[float]]


def finished() -> float:
    """The time in seconds, with nothing left to do on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_rounds(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: int = 1,
    before: Callable[[str], Any] = lambda way: None,
) -> dict[str, list[float]]:
    """Seconds of each way in each round. In a round each has its turn, in an order that turns by one each time.

    `before` gets the way whose turn comes, to prepare what it works on: its time does not count.
    """
    times: dict[str, list[float]] = {way: [] for way in ways}
    order = list(ways)
    for number in range(-warm_up, rounds):
        for way in order:
            before(way)
            began = finished()
            ways[way]()
            if number >= 0:
                times[way].append(finished() - began)
        order.append(order.pop(0))
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Of what was measured several times: median, quartiles, extremes."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "low": low,
        "high": high,
        "min": min(values),
        "max": max(values),
    }


def ratios(times: Times, base: str) -> dict[str, dict[str, float]]:
    """Of each way to `base`, round by round."""
    return {way: summary([a / b for a, b in zip(found, times[base], strict=True)]) for way, found in times.items()}


def compared(times: Times, base: str) -> dict[str, Any]:
    """What to keep of `in_rounds`: milliseconds of each way, and ratios to `base` within a round."""
    ms = {way: summary([1000 * seconds for seconds in found]) for way, found in times.items()}
    return {"rounds": len(times[base]), "ms": ms, f"ratio_to_{base}": ratios(times, base)}
