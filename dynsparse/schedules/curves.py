"""Curves from one value to another, as `progress` goes from 0 to 1 and stays there."""

from __future__ import annotations

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Return a value from `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def polynomial(start: float, end: float, progress: float, power: float) -> float:
    """Return a value from `start` to `end` whose distance to `end` falls as (1 - progress) to this power."""
    return end + (start - end) * math.pow(1 - min(1.0, progress), power)
