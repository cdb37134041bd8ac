"""Numbers as people read them."""

from __future__ import annotations

import math

NOTHING = "–"


def count(value: float | None) -> str:
    """Return a count with commas: 12,345."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"


def signed(value: float) -> str:
    """Return +59, −59 or 0, with a minus sign as wide as the plus."""
    return NOTHING if math.isnan(value) else f"{value:+,.0f}".replace("-", "−") if value else "0"


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction in percent: 0.98 is 98.00 %."""
    return NOTHING if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """Return a time as 7.3 s, 4 min 05 s or 3 h 07 min."""
    if seconds is None or math.isnan(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def clipped(name: str, most: int) -> str:
    """Return a name without its middle if it is too long: layers differ at both ends of their names."""
    if len(name) <= most:
        return name
    tail = (most - 1) * 2 // 3
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"
