"""Tell a holder that cannot be looked up from a dead one, by the signs of life in its file."""

from __future__ import annotations

import time
from collections.abc import Callable


class Watch:
    """Measures for how long the content of a file has stayed the same, as far as looks at it can tell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._content: bytes | None = None
        self._looked = 0.0
        self.silent = 0.0
        """Seconds. Between two looks a second at most: while storage stood still the holder could not write either."""

    def look(self, content: bytes) -> bool:
        """Tell whether the content differs from that of the look before."""
        before, self._content = self._content, content
        passed, self._looked = self._clock() - self._looked, self._clock()
        changed = before is not None and before != content
        self.silent = 0.0 if before is None or changed else self.silent + min(passed, 1.0)
        return changed
