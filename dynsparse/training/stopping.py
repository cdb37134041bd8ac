"""Stopping on request: a signal sets a flag, and the loop stops at the next step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from dynsparse import torchrun

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_SECONDS = 0.5


class StopFlag:
    """Set by SIGTERM, SIGINT, SIGUSR1 or SIGHUP, and by the end of torchrun; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False
        self.ends_launch = False

    def install(self) -> None:
        """Handle the signals from now on, and watch torchrun where it started this process."""
        for number in _SIGNALS:
            # SIGHUP stays ignored where it was from the start, as under nohup.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        if torchrun.is_parent():
            threading.Thread(target=self._watch_torchrun, name="torchrun watch", daemon=True).start()

    def __call__(self) -> bool:
        """Tell whether it is set."""
        return self.is_set

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True
        # torchrun itself sends SIGTERM where it will start the workers anew: after a fault of another, or when machines
        # join or leave. Told to stop, it passes the signal on and starts nothing more. So SIGTERM to a worker alone
        # means "save, and start again"; the others were sent by somebody who wants an end.
        self.ends_launch = self.ends_launch or number != signal.SIGTERM

    def _watch_torchrun(self) -> None:
        """Stop if torchrun is gone. Killed, it cannot end its workers, and nobody could stop or restart them."""
        never = threading.Event()
        while os.getppid() == torchrun.PARENT:
            never.wait(_SECONDS)
        if torchrun.notices_first():
            print("warning: torchrun is gone; the workers save and end", file=sys.stderr, flush=True)
        self.is_set = True
