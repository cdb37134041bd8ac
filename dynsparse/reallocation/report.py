"""The report of one reallocation, for logs and observers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReallocationReport:
    """Effect of one reallocation. All counts are in weights, by layer."""

    step: int
    epoch: int
    dropped: Mapping[str, int]
    grown: Mapping[str, int]
    active: Mapping[str, int]
    """Active weights after the event."""
    scalars: Mapping[str, float]
    """The method's numbers that this event was decided with, such as the threshold."""
    explored: Mapping[str, float]
    """Fraction of each layer's positions that were ever active."""
    repaired: tuple[str, ...] = ()
    """Layers that differed between ranks and were repaired from rank 0."""
    seconds: float = field(default=0.0, compare=False)
    """Time of the host, from the first check of digests to the last."""
