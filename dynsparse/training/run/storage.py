"""Tell a folder that was removed from one whose storage is away for a while."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path


class StorageCheck:
    """The storage that a run's folder lies on, as it was when the run began."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._device: int | None = None
        self._gone_since: float | None = None

    def remember(self) -> None:
        """Note the device that the folder lies on. The folder must be there."""
        self._device = os.stat(self.folder).st_dev

    def require(self, patience: float) -> None:
        """Return if a missing folder may be made anew. Raise OSError while its storage may come back.

        A folder was removed if it is missing for more than `patience` seconds and the folder above it is on the same
        device. On another device, a file system is not mounted. A file written there would vanish when it is mounted.
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
