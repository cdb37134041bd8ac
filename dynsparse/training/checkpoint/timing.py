"""When to save by the clock, and a thread that writes while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread


class SaveTimer:
    """Says when `minutes` have passed since the last save; never if None. For rank 0, whose clock alone counts."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._clock = clock
        self._last = clock()

    def is_due(self) -> bool:
        return self._seconds is not None and self._clock() - self._last >= self._seconds

    def saved(self) -> None:
        """There is a save now, for whatever reason."""
        self._last = self._clock()


class InBackground:
    """One act at a time in a thread of its own. The process does not end before it, unless by a signal or os._exit."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, act: Callable[[], None]) -> None:
        """Wait for the act before, then start this one."""
        self.wait()
        self._thread = Thread(target=self._run, args=(act,), name="background")
        self._thread.start()

    def _run(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._error = error

    def wait(self, seconds: float | None = None) -> bool:
        """Until nothing runs, or so long. Returns whether nothing does. What the act raised is raised here, once."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
        return True
