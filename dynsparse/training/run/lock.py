"""One run at a time in a folder: a lock that shows that its holder lives, and that is taken over if it does not.

One process alone makes the file lock.json. The file names it, and gets a sign of life every few seconds. Where the
holder's process can be looked up, in the same container of the same machine, that decides. Elsewhere, such as on
another machine that sees the same storage, a start watches the file. A sign of life within `timing.STALE_SECONDS`, and
the start is refused. None, and the holder has died. Locks of the operating system would need no watching, but network
file systems lack them or keep them to one machine. Nobody's clock is compared with another's.

A process that stood still for so long may wake again, long after the other has finished and given its lock back. So a
second file, owner.json, names the holder for good: only the next one that takes the lock changes it. It is read before
every write.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from dynsparse import files
from dynsparse.training.run import lock_file, names, timing
from dynsparse.training.run.clock import now
from dynsparse.training.run.holder import Holder
from dynsparse.training.run.lock_file import content_of, in_words, is_same
from dynsparse.training.run.owner_file import OwnerFile
from dynsparse.training.run.takeover import Takeover

log = logging.getLogger(__name__)


class LostError(OSError):
    """The folder is another run's now."""


class RunLock:
    """The lock of a run's folder. For rank 0, which alone writes there."""

    def __init__(
        self,
        folder: Path,
        launch: str | None = None,
        *,
        grace: float = 0.0,
        again: bool = False,
        on_loss: Callable[[str, bool], None] = lambda reason, same_launch: log.error("%s", reason),
    ) -> None:
        """`grace`: for how many seconds to wait until an earlier attempt of the launch on another machine has ended.

        Only then is it a reason to refuse. `again`: the folder has been this launch's before. If it is missing now,
        its storage is away, and it is not made anew. `on_loss` is called, by any thread, should another run have taken
        the lock because this process stood still for too long. It gets a sentence, and whether the other run is an
        attempt of the same launch.
        """
        self.path = folder / names.LOCK
        self.again = again
        self.on_loss = on_loss
        self._owner = OwnerFile(folder)
        self._takeover = Takeover(self.path, launch, grace)
        self._me = Holder.myself(launch)
        self._made: list[Path] = []
        """Folders that were made for the lock."""
        self._file = -1
        self._odd = False
        """Tells that the lock was missing or spoilt at the latest beat."""
        self._lost: str | None = None
        self._released = Event()
        self._thread: Thread | None = None

    def acquire(self, within: float = float("inf")) -> bool:
        """Take the lock. UserError if its holder lives, or where no file can be made.

        False if after `within` seconds it is not known yet whether the holder lives. Then call it again: meanwhile
        other ranks can be told.
        """
        deadline = time.monotonic() + within
        with in_words(self.path.parent, "written"):
            if self.again and not self.path.parent.is_dir():
                raise OSError(errno.ENODEV, "it is gone, or its storage is away")
            while not self._create():
                if not self._takeover.free() and time.monotonic() >= deadline:
                    return False
            self._remove_leftovers()
        self._owner.storage.remember()
        self._thread = Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return True

    def require(self) -> None:
        """Return if the folder is this process's to write to. To be called before every write, by any thread.

        `LostError`, after `on_loss`, if another run has taken it. OSError while nobody can tell: the storage is
        away. A folder that its user has removed comes back, with the lock.
        """
        if self._lost is not None:
            raise LostError(errno.EPERM, self._lost)
        owner = self._owner.read()
        if owner == self._me:
            return
        if self._released.is_set():  # A save may still be written after a fault.
            raise LostError(errno.EPERM, self._lost or "the folder was given back")
        if owner is None and (self._is_locked_by_me() or self._is_left_empty()):
            self._own(self._require_nobodys)
            return
        self._lose(owner)

    def require_free(self, within: float) -> None:
        """Raise UserError if a holder of another launch is seen to live. Changes nothing; looks for so many seconds."""
        with in_words(self.path.parent, "read"):
            self._takeover.require_free(within)

    def release(self) -> None:
        """Give it back, and leave no folder that holds nothing else. Without effect if it is not held."""
        if self._thread is not None:
            self._released.set()
            self._thread.join(2 * timing.BEAT_SECONDS)
            if self._thread.is_alive():  # The storage hangs, and must not keep the process.
                return
            self._thread = None
            with contextlib.suppress(OSError):
                self._unlock(self._names_me)
            os.close(self._file)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _create(self) -> bool:
        """Make the file. False if there is one: that is certain on network file systems too."""
        folder = self.path.parent
        self._made += [one for one in (*reversed(folder.parents), folder) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            self._own(lambda: self._require_same(file))
            self._require_same(file)
            self._write(file)
        except LostError:  # This process stood still for so long that its lock was taken for a dead one's.
            os.close(file)
            return False
        except OSError:
            with contextlib.suppress(OSError):
                self._unlock(lambda path: is_same(path, file))
            os.close(file)
            raise
        self._file = file
        return True

    def _remove_leftovers(self) -> None:
        """Remove what starts have left that died as they took over."""
        for left in (*self.path.parent.glob(names.CLAIMS), *files.left_by_writers(self._owner.path)):
            if not files.is_folder(left):
                left.unlink(missing_ok=True)

    def _own(self, check: Callable[[], None]) -> None:
        self._owner.write(self._me, check)

    def _require_nobodys(self) -> None:
        if self._owner.read() is not None:
            raise LostError(errno.EPERM, "the folder is another's")

    def _require_same(self, file: int) -> None:
        if not is_same(self.path, file):
            raise LostError(errno.EPERM, "the lock is another's")

    def _unlock(self, is_mine: Callable[[Path], bool]) -> None:
        if lock_file.take_away(self.path, is_mine):
            self._owner.remove_if_alone(self._me)

    def _names_me(self, path: Path) -> bool:
        return Holder.decode(content_of(path) or b"") == self._me

    def _is_locked_by_me(self) -> bool:
        return self._names_me(self.path)

    def _is_left_empty(self) -> bool:
        """Tell whether the folder was removed: it is not there, or was made anew and holds nothing."""
        folder = self.path.parent
        return not folder.exists() or not any(folder.iterdir())

    def _lose(self, owner: Holder | None) -> None:
        reason = (
            f"{self.path.parent} was taken over by {owner or 'another start'}: this process had stood still for more "
            f"than {timing.STALE_SECONDS:g} s, or the folder was removed; it ends, and leaves the folder to it"
        )
        self._lost = reason
        self._released.set()
        self.on_loss(reason, self._takeover.is_of_my_launch(owner))
        raise LostError(errno.EPERM, reason)

    def _beat(self) -> None:
        while not self._released.wait(timing.BEAT_SECONDS):
            try:
                self.require()
                self._show_life()
            except OSError:  # Storage that is full or away for the moment: the next beat may reach it.
                continue

    def _show_life(self) -> None:
        """Write the time into the lock.

        One that is missing or spoilt is made anew, if it is so at two beats in a row: at one of them somebody may be
        about to take over.
        """
        content = content_of(self.path)
        holder = None if content is None else Holder.decode(content)
        if holder == self._me and self._is_my_file():
            self._odd = False
            self._write(self._file)
        elif holder is not None and holder != self._me:
            self._lose(holder)
        elif not self._odd:
            self._odd = True
        else:
            self._odd = False
            self._make_anew()

    def _make_anew(self) -> None:
        lock_file.take_away(self.path, lambda path: Holder.decode(content_of(path) or b"") in (None, self._me))
        old = self._file
        if self._create():
            os.close(old)

    def _is_my_file(self) -> bool:
        return is_same(self.path, self._file)

    def _write(self, file: int) -> None:
        """Write all the way to the storage, for others to see: a network file system may keep it for half a minute."""
        content = self._me.encode(now())
        os.pwrite(file, content, 0)
        os.ftruncate(file, len(content))
        os.fsync(file)
