"""One run at a time in a folder: a lock that shows that its holder lives, and that is taken over if it does not.

The file lock.json is made by one process alone, names it, and gets a sign of
life every few seconds. Where the holder's process can be looked up, in the same
container of the same machine, that decides. Elsewhere, such as on another
machine that sees the same storage, a start watches the file: a sign of life
within `STALE_SECONDS` and it is refused; none, and the holder has died. Locks
of the operating system would need no watching, but network file systems leave
them out or keep them to one machine. Nobody's clock is compared with another's.

Who stood still for so long may wake again, long after the other has finished
and given its lock back. So a second file, owner.json, names the holder for good:
only the next one that takes the lock changes it. It is asked before every write.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from dynsparse import files
from dynsparse.distributed import sync
from dynsparse.errors import StorageError, StorageFaultError, UserError
from dynsparse.training.run import names
from dynsparse.training.run.clock import now
from dynsparse.training.run.holder import Holder
from dynsparse.training.run.storage import StorageCheck

log = logging.getLogger(__name__)
T = TypeVar("T")

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Without a sign of life. Six beats: storage that others use too may stand still for a while."""
_POLL_SECONDS = 0.2
_MOST_BYTES = 1 << 16


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
        """
        `grace`: for how many seconds to wait for an earlier attempt of the same
        launch on another machine to end, before it is a reason to refuse.
        `again`: whether the folder has been this launch's before, so that one
        that is missing is no reason to make it: its storage is away.
        `on_loss` is called, by any thread, with a sentence, should another run
        have taken the lock: this process stood still for too long. And with
        whether that other run is an attempt of the same launch.
        """
        self.path = folder / names.LOCK
        self.launch = launch
        self.grace = grace
        self.again = again
        self.on_loss = on_loss
        self._owner = folder / names.OWNER
        self._me = Holder.myself(launch)
        self._began = time.monotonic()
        self._watch = Watch()
        self._claimed: tuple[Path, float] | None = None
        self._made: list[Path] = []
        self._file = -1
        self._odd = False
        self._lost: str | None = None
        self._storage = StorageCheck(folder)
        self._released = Event()
        self._thread: Thread | None = None

    def acquire(self, within: float = float("inf")) -> bool:
        """Take the lock. UserError if its holder lives, or where no file can be made.

        False if after `within` seconds it is not known yet whether the holder
        lives: to be called again, so that other ranks are told meanwhile.
        """
        deadline = time.monotonic() + within
        with self._said("written"):
            if self.again and not self.path.parent.is_dir():
                raise OSError(errno.ENODEV, "it is gone, or its storage is away")
            while not self._create():
                if not self._free() and time.monotonic() >= deadline:
                    return False
            for left in (*self.path.parent.glob(names.CLAIMS), *files.left_by_writers(self._owner)):
                if not files.is_folder(left):
                    left.unlink(missing_ok=True)  # Of starts that died as they took over.
        self._storage.remember()
        self._thread = Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return True

    def require(self) -> None:
        """Return if the folder is this process's to write to: to be called before every write, by any thread.

        `LostError`, after `on_loss`, if another run has taken it. OSError while nobody can tell: the storage is
        away. A folder that its user has removed comes back, with the lock.
        """
        if self._lost is not None:
            raise LostError(errno.EPERM, self._lost)
        owner = self._owner_there()
        if owner == self._me:
            return
        if self._released.is_set():  # A save may still be written after a fault.
            raise LostError(errno.EPERM, "the folder was given back")
        if owner is None and (self._is_locked_by_me() or self._is_left_empty()):
            self._own(self._require_nobodys)
            return
        self._lose(owner)

    def require_free(self, within: float) -> None:
        """Raise UserError if a holder of another launch is seen to live. Changes nothing; looks for so many seconds."""
        with self._said("read"):
            self._require_free(time.monotonic() + within)

    def _require_free(self, deadline: float) -> None:
        while (content := self._read()) is not None:
            holder = Holder.decode(content)
            if self._is_of_my_launch(holder):
                return
            if lives := self._lives(content):
                raise self._refusal(holder)
            if lives is False or time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Give it back, and leave no folder that holds nothing else. Without effect if it is not held."""
        if self._thread is not None:
            self._released.set()
            self._thread.join(2 * BEAT_SECONDS)
            if self._thread.is_alive():  # The storage hangs, and must not keep the process.
                return
            self._thread = None
            with contextlib.suppress(OSError):
                self._unlock(lambda path: Holder.decode(_content(path) or b"") == self._me)
            os.close(self._file)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _create(self) -> bool:
        """Make the file, which fails if there is one: on network file systems too."""
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
                self._unlock(lambda path: _is_same(path, file))
            os.close(file)
            raise
        self._file = file
        return True

    def _require_nobodys(self) -> None:
        if self._owner_there() is not None:
            raise LostError(errno.EPERM, "the folder is another's")

    def _require_same(self, file: int) -> None:
        if not _is_same(self.path, file):
            raise LostError(errno.EPERM, "the lock is another's")

    def _own(self, check: Callable[[], None]) -> None:
        """Write owner.json. `check` may raise at the last moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(self._owner, self._me.encode(self._me.since), check)

    def _unlock(self, is_mine: Callable[[Path], bool]) -> None:
        if (
            self._take_away(is_mine)
            and os.listdir(self.path.parent) == [names.OWNER]
            and self._owner_there() == self._me
        ):
            self._owner.unlink()  # There is nothing to own.

    def _take_away(self, is_meant: Callable[[Path], bool]) -> bool:
        """Remove the lock. One that has come in its place since it was looked at goes back."""
        aside = self.path.with_name(names.claim(secrets.token_hex(8)))
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return False
        meant = is_meant(aside)
        if not meant:
            with contextlib.suppress(OSError):  # Where there are no hard links its holder makes it anew.
                os.link(aside, self.path, follow_symlinks=False)
        files.remove(aside)
        return meant

    def _free(self) -> bool:
        """Whether the lock may be gone now: it is removed if its holder has died. Waits a little if nobody knows."""
        content = self._read()
        if content is None:
            return True
        holder, lives = Holder.decode(content), self._lives(content)
        if lives and not self._will_end(holder):
            raise self._refusal(holder)
        if lives is False:
            self._remove(content)
            return True
        time.sleep(_POLL_SECONDS)
        return False

    def _lives(self, content: bytes) -> bool | None:
        """Whether the holder that `content` tells of does; None while that is not known."""
        holder = Holder.decode(content)
        known = None if holder is None else holder.lives()
        if known is not None:
            return known
        changed = self._watch.look(content)
        if changed:
            return True
        return False if self._watch.silent > STALE_SECONDS else None

    def _will_end(self, holder: Holder | None) -> bool:
        """Where machines come and go, a launch may start rank 0 on another one before it has ended on the first."""
        elsewhere = holder is not None and holder.lives() is None
        return elsewhere and self._is_of_my_launch(holder) and time.monotonic() - self._began < self.grace

    def _is_of_my_launch(self, holder: Holder | None) -> bool:
        return holder is not None and self.launch is not None and holder.launch == self.launch

    def _remove(self, content: bytes) -> None:
        """Remove the lock if it is still `content`. Of many that want to, one does."""
        claim = self.path.with_name(names.claim(sha256(content).hexdigest()[:16]))
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._wait_for(claim)
            return
        try:
            if self._take_away(lambda path: _content(path) == content):
                holder = Holder.decode(content)
                is_gone = holder is None or holder.lives() is False
                why = "which is gone" if is_gone else f"which has shown no sign of life for {STALE_SECONDS:g} s"
                log.warning("%s: left by %s, %s; taken over", self.path, holder or "a start that died", why)
        finally:
            claim.unlink(missing_ok=True)

    def _wait_for(self, claim: Path) -> None:
        """A moment. A claim that stays is of a start that has died just then."""
        if self._claimed is None or self._claimed[0] != claim:
            self._claimed = claim, time.monotonic()
        if time.monotonic() - self._claimed[1] > STALE_SECONDS:
            files.remove(claim)
        time.sleep(_POLL_SECONDS)

    def _refusal(self, holder: Holder | None) -> UserError:
        return UserError(
            f"{self.path.parent} is in use by {holder or 'another start'}; wait until it ends, stop it, or set name="
        )

    def _read(self) -> bytes | None:
        return _content(self.path)

    def _owner_there(self) -> Holder | None:
        """Who is named in owner.json; None if nobody is. OSError while the storage is away."""
        content = _content(self._owner)
        if content is None:
            self._storage.require(STALE_SECONDS)
            return None
        return Holder.decode(content)

    def _is_left_empty(self) -> bool:
        """The folder was removed: it is not there, or was made anew and holds nothing."""
        folder = self.path.parent
        return not folder.exists() or not any(folder.iterdir())

    def _lose(self, owner: Holder | None) -> None:
        reason = (
            f"{self.path.parent} was taken over by {owner or 'another start'}: this process had stood still for more "
            f"than {STALE_SECONDS:g} s, or the folder was removed; it ends, and leaves the folder to it"
        )
        self._lost = reason
        self._released.set()
        self.on_loss(reason, self._is_of_my_launch(owner))
        raise LostError(errno.EPERM, reason)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                self.require()
                self._show_life()
            except OSError:  # Storage that is full or away for the moment: the next beat may reach it.
                continue

    def _show_life(self) -> None:
        """Write the time into the lock. One that is missing or spoilt is made anew, if it is so at two beats in a row:
        at one of them somebody may be about to take over."""
        content = self._read()
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
            self._take_away(lambda path: Holder.decode(_content(path) or b"") in (None, self._me))
            old = self._file
            if self._create():
                os.close(old)

    def _is_my_file(self) -> bool:
        return _is_same(self.path, self._file)

    def _is_locked_by_me(self) -> bool:
        return Holder.decode(self._read() or b"") == self._me

    def _write(self, file: int) -> None:
        """All the way to the storage, for others to see: a network file system may keep it for half a minute."""
        content = self._me.encode(now())
        os.pwrite(file, content, 0)
        os.ftruncate(file, len(content))
        os.fsync(file)

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Raise UserError for what the system says. `what` cannot be done."""
        folder = self.path.parent
        try:
            yield
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{folder}: not a folder; set name= or runs=") from None
        except IsADirectoryError as error:
            raise UserError(f"{error.filename}: is a folder; remove it, or set name=") from None
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise UserError(f"{error.filename}: is a folder; remove it, or set name=") from None
            kind = StorageError if files.may_pass(error) else UserError
            raise kind(f"{folder}: cannot be {what} ({error.strerror}); set runs= to a folder that can") from None


def _content(path: Path) -> bytes | None:
    """Of a small file anew, past any cache of a network file system; None if there is none.

    A link, a pipe or a device in its place is a file that says nothing.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            return b"no file"
        with files.open_regular(path) as file:
            return file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_same(path: Path, file: int) -> bool:
    """Whether what stands at `path` is the open file."""
    try:
        there, ours = os.lstat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


class Watch:
    """For how long the content of a file has stayed as it is, as far as looks at it can tell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._content: bytes | None = None
        self._looked = 0.0
        self.silent = 0.0
        """Seconds. Between two looks a second at most: while storage stood still the holder could not write either."""

    def look(self, content: bytes) -> bool:
        """Whether it is another than at the look before."""
        before, self._content = self._content, content
        passed, self._looked = self._clock() - self._looked, self._clock()
        changed = before is not None and before != content
        self.silent = 0.0 if before is None or changed else self.silent + min(passed, 1.0)
        return changed


@contextlib.contextmanager
def holding(lock: RunLock, patience: float) -> Iterator[None]:
    """A collective: rank 0 holds `lock` for the time of the block. UserError on all ranks if it cannot be had.

    `patience`: after how many seconds the others, which wait, hear that it goes on.
    """
    try:
        while not sync.from_rank_0(lambda: waiting(lambda: lock.acquire(patience), patience, again=lock.again)):
            pass
        yield
    finally:
        lock.release()


def waiting(act: Callable[[], T], patience: float, *, again: bool) -> T:
    """Run `act`. In a launch that had the folder before (`again`), try for so many seconds while its storage is away.

    After that it is a fault, which torchrun answers with another attempt: no bad input, as it was well before.
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
