"""Stopping on request: a signal sets a flag, the loop leaves at the next step."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False
        self.ends_launch = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        return self.is_set

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True
        # torchrun itself sends SIGTERM where it will start the workers anew: after a fault of another, or when machines
        # join or leave. Told to stop, it passes the signal on and starts nothing more. So SIGTERM to a worker alone
        # means "save, and start again"; the others were sent by somebody who wants an end.
        self.ends_launch = self.ends_launch or number != signal.SIGTERM
