"""Waiting for storage that is full, read-only or gone, at the start and at the end of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dynsparse.distributed import sync

log = logging.getLogger(__name__)

LIMIT_SECONDS = 30.0
PAUSE_SECONDS = 1.0


def wait_for_storage(behind: Callable[[], list[str]], try_again: Callable[[], None]) -> None:
    """Call `try_again` until nothing is left to write, or the time is over. Both are collectives.

    `behind` names the files that could not be written yet, on rank 0 alone.
    """
    began, said = time.monotonic(), False
    while True:
        names = behind()
        goes_on = bool(names) and time.monotonic() - began < LIMIT_SECONDS
        if not sync.any_rank(goes_on):
            return
        if goes_on:
            if not said:
                said = True
                log.warning(
                    "waiting for up to %g s until these can be written; free space, or restore the folder: %s",
                    LIMIT_SECONDS,
                    ", ".join(names),
                )
            pause()
        try_again()


def pause() -> None:
    """Sleep between two tries. Tests replace it."""
    time.sleep(PAUSE_SECONDS)
