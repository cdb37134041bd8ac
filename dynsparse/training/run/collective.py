"""Hold a run's lock on rank 0, while the other ranks wait for it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from dynsparse.distributed import sync
from dynsparse.errors import StorageError, StorageFaultError
from dynsparse.training.run.lock import RunLock

log = logging.getLogger(__name__)
T = TypeVar("T")


@contextlib.contextmanager
def holding(lock: RunLock, patience: float) -> Iterator[None]:
    """Hold `lock` on rank 0 for the time of the block: a collective. UserError on all ranks if it cannot be had.

    `patience`: after how many seconds the others, which wait, hear that it is still being tried.
    """
    try:
        while not sync.from_rank_0(lambda: waiting(lambda: lock.acquire(patience), patience, again=lock.again)):
            pass
        yield
    finally:
        lock.release()


def waiting(act: Callable[[], T], patience: float, *, again: bool) -> T:
    """Run `act`. In a launch that had the folder before (`again`), try for so many seconds while its storage is away.

    After that it is a fault, which torchrun answers with another attempt. It is no bad input: it was well before.
    """
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            return act()
        except StorageError as error:
            if not again:
                raise
            if time.monotonic() > deadline:
                raise StorageFaultError(str(error)) from None
            if not said:
                log.warning("%s: waiting for %g s for it to come back", error, patience)
            said = True
            time.sleep(1)
