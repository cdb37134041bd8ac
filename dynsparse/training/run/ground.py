"""Whether a folder was removed, or the storage that it lies on is away for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path


class Ground:
    """What a run's folder stands on: the folder above it, as it was when the run began."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._device: int | None = None
        self._gone_since: float | None = None

    def stand(self) -> None:
        """Remember the device. The folder is there."""
        self._device = os.stat(self.folder).st_dev

    def require(self, patience: float) -> None:
        """Return if the folder may be made anew should it be missing. OSError while its storage may come back.

        Missing for more than `patience` seconds it was removed, if what lies above is on the same device: else a
        file system is not mounted, and what were written would vanish under it when it is.
        """
        above = next(one for one in (self.folder, *self.folder.absolute().parents) if one.exists())
        if above == self.folder and os.stat(above).st_dev == self._device:
            self._gone_since = None
            return
        if self._gone_since is None:
            self._gone_since = self._clock()
        away = self._clock() - self._gone_since <= patience
        if away or os.stat(above).st_dev != self._device:
            raise OSError(errno.ENODEV, f"{self.folder} is gone, or its storage is away")
