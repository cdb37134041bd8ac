"""owner.json: who took the folder last. Only the next one that takes it changes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dynsparse import files
from dynsparse.training.run import names, timing
from dynsparse.training.run.holder import Holder
from dynsparse.training.run.lock_file import content_of
from dynsparse.training.run.storage import StorageCheck


class OwnerFile:
    """Names the owner of a run's folder for good, also when its lock is gone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / names.OWNER
        self.storage = StorageCheck(folder)

    def read(self) -> Holder | None:
        """Return who is named there; None if nobody is. OSError while the storage is away."""
        content = content_of(self.path)
        if content is None:
            self.storage.require(timing.STALE_SECONDS)
            return None
        return Holder.decode(content)

    def write(self, owner: Holder, check: Callable[[], None]) -> None:
        """Name the owner. `check` is called at the last moment, and may raise."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.path, owner.encode(owner.since), check)

    def remove_if_alone(self, owner: Holder) -> None:
        """Remove the file if it names this owner and the folder holds nothing else: there is nothing to own."""
        if os.listdir(self.path.parent) == [names.OWNER] and self.read() == owner:
            self.path.unlink()
