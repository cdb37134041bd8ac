"""When to save by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable


class SaveTimer:
    """Says when `minutes` have passed since the last save; never if None. For rank 0, whose clock alone counts."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._clock = clock
        self._last = clock()

    def is_due(self) -> bool:
        """Tell whether the time has come."""
        return self._seconds is not None and self._clock() - self._last >= self._seconds

    def saved(self) -> None:
        """Begin to count anew: there is a save now, for whatever reason."""
        self._last = self._clock()
