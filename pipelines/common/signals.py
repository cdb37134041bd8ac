"""Processes that signals to the whole group leave alone: those are for the process that started them to answer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait for the end of the block, and never reach the processes started in it, which inherit that."""
    resource_tracker.ensure_running()  # Which would let the signals through again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
