"""Child processes that ignore signals to the whole group: the process that started them answers those."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Block signals until the block ends. Processes that are started in it inherit that, and never get them."""
    resource_tracker.ensure_running()  # Started later, it would unblock the signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
