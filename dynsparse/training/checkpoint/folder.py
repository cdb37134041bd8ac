"""The checkpoints of a run, as its trainer uses them: saves in the background, tried again until they are written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from dynsparse.training.checkpoint.background import InBackground
from dynsparse.training.checkpoint.format import State, read
from dynsparse.training.checkpoint.kept import KeptFiles, step_files
from dynsparse.training.checkpoint.newest import newest
from dynsparse.training.checkpoint.snapshot import Snapshot
from dynsparse.training.checkpoint.unwritten import Unwritten
from dynsparse.training.run import names

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""Pause before what could not be written is tried again, where no save is due."""


class CheckpointFolder:
    """The checkpoints of a run.

    One save at a time is written, in the background if asked so; nothing else may write to the folder meanwhile.
    What cannot be written is kept in memory and tried again: the newest state, the best, the initial one.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        when_gone: Callable[[], None] = lambda: None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`when_gone` is called before a save that finds no folder, `guard` before each change of the disk.

        Both may raise OSError.
        """
        self.folder = folder
        self._files = KeptFiles(folder, keep, when_gone, guard)
        self._unwritten = Unwritten(folder)
        self._writing = InBackground()
        self._saves = 0
        self._waited = 0.0
        self._said_slow = False

    @property
    def failures(self) -> list[str]:
        """Reasons why the newest state, the best or the initial one is not on the disk, a line each.

        A save that is still being written is not among them: `wait` first.
        """
        return list(self._unwritten.failed.values())

    @property
    def failure(self) -> str | None:
        """First of `failures`, if any."""
        return next(iter(self.failures), None)

    @property
    def behind(self) -> list[str]:
        """Files that could not be written yet."""
        return [str(self.folder / name) for name in self._unwritten.failed]

    def files(self) -> list[Path]:
        """Return the checkpoints by step, newest first."""
        return step_files(self.folder)

    def newest(self, read: Callable[[Path], State] = read) -> tuple[Path, State] | None:
        """Return the newest checkpoint that `read` accepts: see `newest.newest`."""
        return newest(self.folder, read)

    def save(self, state: State, step: int, *, best: bool = False, initial: bool = False) -> None:
        """Save the state after `step`. A failure is kept in `failure` and logged; older files stay as they were."""
        self.begin(lambda: state, step, best=best, initial=initial)
        self.wait()

    def begin(
        self,
        content: Callable[[], State],
        step: int,
        *,
        best: bool = False,
        initial: bool = False,
        latest: bool = True,
    ) -> None:
        """Save in the background. `content` is called there, and must need nothing that training changes.

        The state gets the names of those of `best`, `initial` and `latest` that are True.
        """
        self._say_if_slow()
        self._saves += 1
        number = self._saves
        asked = {names.LATEST: latest, names.BEST: best, names.INITIAL: initial}
        wanted = [name for name, is_wanted in asked.items() if is_wanted]

        def save() -> None:
            if latest:
                self._unwritten.snapshots.pop(names.LATEST, None)  # Memory holds one newest state at a time.
            self._unwritten.add(Snapshot(content(), step, number), wanted)
            self._unwritten.write(self._files.put)

        self._writing.start(save)

    def wait(self) -> None:
        """Return when all is written, or known to have failed. Raises what no disk is to blame for."""
        self._writing.wait()

    def has_written(self, *, within: float) -> bool:
        """Wait for so many seconds at most. Returns whether nothing is left to write; raises as `wait` does.

        Ask before a snapshot is taken, so that one at a time is in memory, and no save is skipped.
        """
        began = time.monotonic()
        done = self._writing.wait(within)
        self._waited += time.monotonic() - began
        return done

    def retry(self, *, now: bool = False) -> None:
        """Try again, in the background, to write what could not be written. Unless it is `now`, not too often."""
        due = now or time.monotonic() - self._unwritten.failed_at >= RETRY_SECONDS
        if self._unwritten.failed and due and self._writing.wait(0):
            self._writing.start(lambda: self._unwritten.write(self._files.put))

    def _say_if_slow(self) -> None:
        if self._waited >= 1 and not self._said_slow:
            self._said_slow = True
            log.warning(
                "training waited %.1f s for the checkpoint before to be written: the disk of %s is slower than "
                "checkpoints are asked for; raise checkpoint.every_steps or every_minutes",
                self._waited,
                self.folder,
            )
        self._waited = 0.0
