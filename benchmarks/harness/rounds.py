"""Rounds in which several ways to do the same take turns, and what is told of them.

Machines are shared and noisy: only ratios within a round count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

K = TypeVar("K")
T = TypeVar("T")
Act = Callable[[], Any]
Times = Mapping[str, Sequence[float]]
LEAST_ROUNDS = 3


def finished() -> float:
    """Return the time in seconds, with nothing left to do on the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(act: Act) -> float:
    """Call, and return the seconds until the GPU is done too."""
    began = finished()
    act()
    return finished() - began


def returned(act: Callable[[], T]) -> T:
    """Call, for ways that measure themselves."""
    return act()


def _nothing(way: Any) -> None:
    pass


def in_rounds(
    ways: Mapping[K, Act],
    rounds: int,
    *,
    warm_up: int = 1,
    before: Callable[[K], Any] = _nothing,
    measure: Callable[[Act], Any] = seconds_of,
    ends: float = float("inf"),
) -> dict[K, list[Any]]:
    """Measure each way in each round. In a round each has its turn, in an order that turns by one each time.

    `before` gets the way whose turn comes, to prepare what it works on: its time does not count. After `ends`
    (`time.monotonic()`) no round begins, once there are a few.
    """
    found: dict[K, list[Any]] = {way: [] for way in ways}
    order = list(ways)
    for number in range(-warm_up, rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > ends:
            break
        for way in order:
            before(way)
            taken = measure(ways[way])
            if number >= 0:
                found[way].append(taken)
        order.append(order.pop(0))
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of what was measured several times."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "low": low,
        "high": high,
        "min": min(values),
        "max": max(values),
    }


def summaries(found: Mapping[K, Sequence[float]], scale: float = 1) -> dict[K, dict[str, float]]:
    """Return the summary of each way, in units of 1 / `scale`: 1000 makes milliseconds of seconds."""
    return {way: summary([scale * value for value in values]) for way, values in found.items()}


def ratio(found: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Summary of the ratios within each round."""
    return summary([a / b for a, b in zip(found, base, strict=True)])


def ratios(times: Times, base: str) -> dict[str, dict[str, float]]:
    """Return the summary of each way's ratios to `base` within each round."""
    return {way: ratio(found, times[base]) for way, found in times.items()}


def compared(times: Times, base: str) -> dict[str, Any]:
    """Number of rounds, milliseconds of each way, and ratios to `base` within a round."""
    return {"rounds": len(times[base]), "ms": summaries(times, 1000), f"ratio_to_{base}": ratios(times, base)}
