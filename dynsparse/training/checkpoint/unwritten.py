"""Snapshots that are not on the disk yet, and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from dynsparse.training.checkpoint.snapshot import Snapshot
from dynsparse.training.run import names

log = logging.getLogger(__name__)

_ORDER = (names.LATEST, names.BEST, names.INITIAL)
"""The newest comes first: a run resumes from it."""
_REMEDY = "free space or restore the folder"


class Unwritten:
    """The newest state, the best and the initial one, each until it is written under its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots: dict[str, Snapshot] = {}
        """Snapshots by the name of the file that each is to become."""
        self.failed: dict[str, str] = {}
        """Errors by the name of the file that could not be written."""
        self.failed_at = 0.0
        """Time of the latest failure, on the monotonic clock."""

    def add(self, snapshot: Snapshot, wanted: list[str]) -> None:
        """Let the snapshot become the files of these names, in place of any that waits for one."""
        self.snapshots |= dict.fromkeys(wanted, snapshot)

    def write(self, put: Callable[[str, Snapshot], None]) -> None:
        """Call `put` for each snapshot. One for which it raises OSError stays, to be tried again."""
        for name in _ORDER:
            if (snapshot := self.snapshots.get(name)) is None:
                continue
            try:
                put(name, snapshot)
            except OSError as error:
                self._note(name, snapshot, error)
                continue
            del self.snapshots[name]
            if self.failed.pop(name, None):
                log.info("checkpoint %s: written at last, of step %d", self.folder / name, snapshot.step)

    def _note(self, name: str, snapshot: Snapshot, error: OSError) -> None:
        """Keep in mind, and say once, that this could not be written."""
        self.failed_at = time.monotonic()
        message = self._message(name, snapshot, error)
        known, self.failed[name] = self.failed.get(name), message
        if known != message and (name == names.LATEST or names.LATEST not in self.failed):
            log.warning("%s. Training goes on, and the writing is tried again", message)

    def _message(self, name: str, snapshot: Snapshot, error: OSError) -> str:
        path, step = self.folder / name, snapshot.step
        if name == names.LATEST:
            path = self.folder / names.of_step(step)
            what = f"cannot be written ({error}); {_REMEDY}, then resume: the checkpoints before it are valid"
        elif name == names.BEST:
            what = f"could not be written ({error}), of step {step}; {_REMEDY}: it is missing, or of before"
        else:
            what = (
                f"could not be written ({error}), and the state is in no other file; {_REMEDY}, then start anew with "
                f"--overwrite, or resume without this file with --resume auto"
            )
        return f"checkpoint {path}: {what}"
