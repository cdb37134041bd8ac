"""Stopping on request: a signal sets a flag, the loop leaves at the next step."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        return self.is_set

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True
